"""A model without its large weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import numpy as np
import onnx

_SMALL = 4096
"""Initializers up to this many elements may be shapes, axes or sizes: shape inference gets to see their values."""


_MOST_PROPAGATED = 1 << 20
"""Elements of shapes and what is computed from them, in all. Inference keeps each as a message of a hundred bytes."""

_LONGEST_SHAPE = 64.0
"""Elements that the shape of a tensor may have, as far as nobody knows better."""


def inferred(light: onnx.ModelProto) -> onnx.ModelProto:
    """A model with inferred shapes, also of what is computed from shapes, unless that would fill the memory.

    A chain of Concats, each of the one before and itself, makes gigabytes of a file of a few kilobytes.

    Raises:
        Exception: of onnx's, of unrelated types, where inference stops.
    """
    if _propagated(light.graph, {}) <= _MOST_PROPAGATED:
        with contextlib.suppress(Exception):  # what stops propagation does not always stop inference
            return onnx.shape_inference.infer_shapes(light, data_prop=True)
    return onnx.shape_inference.infer_shapes(light)


def _propagated(graph: onnx.GraphProto, around: Mapping[str, float]) -> float:
    """How many elements the propagation of integers through a graph may make at most, those of bodies included.

    Args:
        graph: the graph.
        around: the elements of integer tensors around it, by name; others are not propagated.
    """
    known = {**around, **{t.name: _elements(t) for t in graph.initializer}}
    total = 0.0
    for node in graph.node:
        read = [known.get(name, 0.0) for name in node.input]
        if node.op_type == "Concat":
            made = sum(read)
        elif node.op_type == "Tile":
            made = math.inf if read and read[0] else 0.0
        elif node.op_type == "Shape":
            made = _LONGEST_SHAPE
        elif node.op_type == "Constant":
            made = sum(_elements(attribute.t) for attribute in node.attribute if attribute.HasField("t"))
        else:
            made = max(read, default=0.0)
        for name in node.output:
            known[name] = made
            total += made if made > _LONGEST_SHAPE else 0.0  # what shapes of ordinary length take is no matter
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            total += sum(_propagated(body, known) for body in bodies)
    return total


def _elements(tensor: onnx.TensorProto) -> float:
    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return float(math.prod(tensor.dims)) if tensor.data_type in integers else 0.0


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
