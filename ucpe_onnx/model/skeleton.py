"""A model without its large weights."""

from __future__ import annotations

import numpy as np
import onnx

_SMALL = 4096
"""Initializers up to this many elements may be shapes, axes or sizes: shape inference gets to see their values."""


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
