"""A model without its large weights."""

from __future__ import annotations

import numpy as np
import onnx

_SHAPE_TYPES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)

_SMALL = 4096
"""Initializers up to this many elements may be shapes, axes or sizes: shape inference gets to see their values."""


_MOST_PROPAGATED = 1 << 20
"""Elements that joins of shapes may make in all. Inference keeps each as a message of a hundred bytes."""


def inferred(light: onnx.ModelProto) -> onnx.ModelProto:
    """A model with inferred shapes, also of what is computed from shapes, unless that would fill the memory.

    A chain of Concats, each of the one before and itself, makes gigabytes of a file of a few kilobytes.

    Raises:
        Exception: of onnx's, of unrelated types, where inference stops.
    """
    plain = onnx.shape_inference.infer_shapes(light)
    joined = {name for node in light.graph.node if node.op_type == "Concat" for name in node.output}
    sizes = (
        np.prod([max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim], dtype=np.float64)
        for value in (*plain.graph.value_info, *plain.graph.output)
        if value.name in joined and value.type.tensor_type.elem_type in _SHAPE_TYPES
    )
    return plain if sum(sizes) > _MOST_PROPAGATED else onnx.shape_inference.infer_shapes(light, data_prop=True)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its large weights, which become inputs: what shape inference needs and no more."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in named:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    return light
