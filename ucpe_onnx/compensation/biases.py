"""Where a layer's bias is, or can be put without another node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer, own_initializer
from ucpe_onnx.analysis.graph import GraphView, Node

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bias:
    """A constant that is added to a layer's output, or subtracted from it as the mean of a batch normalisation.

    Attributes:
        tensor: the initializer, one number for each output channel.
        sign: 1 if it is added, -1 if it is subtracted.
        inside: whether it is an input of the layer itself, and so part of its output.
    """

    tensor: str
    sign: float
    inside: bool


@dataclass(frozen=True)
class Following:
    """What stands directly behind a layer and nothing else reads its output.

    Attributes:
        out: the tensor behind a batch normalisation, or behind the bias of a MatMul; or the layer's own output.
        slope: what the normalisation multiplies each output channel by; ones without one.
    """

    out: str
    slope: Array


def bias_of(graph: GraphView, layer: Layer) -> Bias | None:
    """The bias of a layer; None if it has none that can be changed."""
    if layer.bias:
        return _own(graph, layer.bias, layer.made, 1.0, inside=True)
    reader = _only_reader(graph, layer.out)
    if reader is None:
        return None
    if _normalises(reader, layer):
        return _own(graph, reader.inputs[3], layer.made, -1.0)
    if reader.op_type == "Add" and not layer.takes_bias:
        other = next((name for name in reader.inputs if name != layer.out), "")
        return _own(graph, other, layer.made, 1.0) if other in graph.constants else None
    return None


def following(graph: GraphView, layer: Layer) -> Following:
    """The batch normalisation or bias behind a layer, if there is one."""
    reader = _only_reader(graph, layer.out)
    if reader is not None and reader.op_type == "Add" and not layer.takes_bias:
        other = next((name for name in reader.inputs if name != layer.out), "")
        shape = graph.constants.shape(other)
        if shape is not None and len(shape) <= 1:
            return Following(reader.outputs[0], np.ones(layer.made))
    if reader is not None and _normalises(reader, layer):
        values = [graph.value(name) for name in reader.inputs[1:5]]
        if all(value is not None and value.size == layer.made for value in values):
            gamma, variance = np.asarray(values[0], np.float64), np.asarray(values[3], np.float64)
            epsilon = float(reader.attributes.get("epsilon", 1e-5))
            return Following(reader.outputs[0], gamma / np.sqrt(variance + epsilon))
    return Following(layer.out, np.ones(layer.made))


def shortcut_of(graph: GraphView, layer: Layer) -> str | None:
    """The tensor that is added to a layer's output and that is there before the layer is; None if there is none."""
    out = following(graph, layer).out
    reader = _only_reader(graph, out)
    if reader is None or reader.op_type != "Add" or out in graph.outputs:
        return None
    other = next((name for name in reader.inputs if name != out), None)
    maker = graph.makers.get(other or "")
    if other is None or other in graph.constants or (maker is not None and maker.index >= layer.node.index):
        return None
    shape = graph.shape(other)
    return other if shape is not None and shape == graph.shape(out) else None


def _normalises(reader: Node, layer: Layer) -> bool:
    """Whether a node is a batch normalisation of a layer's output with numbers that are stored."""
    if reader.op_type != "BatchNormalization" or reader.attributes.get("training_mode", 0):
        return False
    return len(reader.inputs) == 5 and reader.inputs[0] == layer.out


def _own(graph: GraphView, tensor: str, size: int, sign: float, *, inside: bool = False) -> Bias | None:
    value = graph.value(tensor)
    if value is None or value.size != size or not own_initializer(graph, tensor):
        return None
    if size > 1 and value.shape[-1] != size:  # a number for each row
        return None
    return Bias(tensor, sign, inside)


def _only_reader(graph: GraphView, tensor: str) -> Node | None:
    readers = graph.readers[tensor]
    if len(readers) != 1 or tensor in graph.outputs or tensor in graph.captured:
        return None
    return readers[0][0]
