"""Constants behind QuantizeLinear and DequantizeLinear: where the numbers lie, and what zero is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.layer_ops import LAYER_OPS, REAL

ConstantUse = tuple[int, int]
"""One use of a constant: (node index, input index)."""

_CODECS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Quantization:
    """How integers stand for real numbers: real = (integer - zero point) * scale.

    Attributes:
        scale: name of the scale, "" for one that is not the node's to know.
        zero_point: name of the zero point, "" for zero.
        axis: the axis along which they vary, if they have more than one element.
    """

    scale: str
    zero_point: str
    axis: int


def is_codec(node: Node) -> bool:
    """Whether a node is QuantizeLinear or DequantizeLinear."""
    return node.op_type in _CODECS


def constant_use(graph: GraphView, node: Node, index: int) -> ConstantUse | None:
    """Where the constant that reaches an input is used first; None if the input is computed from activations.

    A quantised weight is followed through DequantizeLinear (and QuantizeLinear) if nothing else reads what these make,
    and they stand in the same body.
    """
    scopes, scope = graph.unfolding.scopes, graph.unfolding.scopes.get(node.name, "")
    while (name := node.inputs[index]) not in graph.constants:
        maker = graph.makers.get(name)
        if maker is None or not is_codec(maker) or len(graph.readers[name]) != 1:
            return None
        if scopes.get(maker.name, "") != scope:
            return None
        if name in graph.outputs or name in graph.captured or int(maker.attributes.get("block_size", 0)):
            return None
        node, index = maker, 0
    return node.index, index


def codecs_behind(graph: GraphView, use: ConstantUse) -> Iterator[Node]:
    """The QuantizeLinear and DequantizeLinear nodes that a constant passes, starting where it is used."""
    node = graph.nodes[use[0]]
    while is_codec(node) and use[1] == 0:
        yield node
        if not graph.readers[node.outputs[0]]:
            return
        node = graph.readers[node.outputs[0]][0][0]


def codec_parameters(graph: GraphView, use: ConstantUse, axis: int) -> Iterator[ConstantUse]:
    """Scales and zero points, on the way of a constant through codecs, that have an entry for each place along an axis.

    Args:
        graph: the graph.
        use: where the constant is used.
        axis: of the constant.
    """
    shape = graph.constants.shape(graph.nodes[use[0]].inputs[use[1]]) or ()
    for codec in codecs_behind(graph, use):
        if int(codec.attributes.get("axis", 1)) % max(len(shape), 1) != axis:
            continue
        for index in (1, 2):
            if (graph.constants.shape(_input(codec, index)) or (1,)) not in ((), (1,)):
                yield codec.index, index


def quantization_of(graph: GraphView, use: ConstantUse, rank: int) -> Quantization | None:
    """How the integers of a constant are meant; None if it holds real numbers.

    Args:
        graph: the graph.
        use: where the constant is used.
        rank: its number of axes.
    """
    node = graph.nodes[use[0]]
    if node.op_type == "DequantizeLinear" and use[1] == 0:
        return Quantization(node.inputs[1], _input(node, 2), int(node.attributes.get("axis", 1)) % max(rank, 1))
    op = LAYER_OPS.get(node.op_type)
    coding = REAL if op is None else op.coding_of(use[1])
    if op is None or not coding.inputs:
        return None
    axis = op.coded_axis(node.attributes, rank)
    return Quantization(_input(node, coding.scale), _input(node, coding.zero_point), axis)


def zero_value(graph: GraphView, use: ConstantUse, rank: int) -> npt.NDArray[Any]:
    """What stands for zero in a constant, in a shape that broadcasts against it."""
    quantization = quantization_of(graph, use, rank)
    point = None if quantization is None else graph.value(quantization.zero_point)
    if quantization is None or point is None:
        return np.zeros((), dtype=np.int8)
    return _along(point, quantization.axis, rank)


def real_value(graph: GraphView, use: ConstantUse) -> npt.NDArray[Any]:
    """The real numbers that a constant stands for; unknown scales count as one."""
    value = np.asarray(graph.value(graph.nodes[use[0]].inputs[use[1]]))
    quantization = quantization_of(graph, use, value.ndim)
    if quantization is None:
        return value
    real: npt.NDArray[Any] = value.astype(np.float32) - zero_value(graph, use, value.ndim).astype(np.float32)
    scale = graph.value(quantization.scale)
    return real if scale is None else real * _along(scale, quantization.axis, value.ndim).astype(np.float32)


def _along(values: npt.NDArray[Any], axis: int, rank: int) -> npt.NDArray[Any]:
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if a == axis else 1 for a in range(rank)])


def _input(node: Node, index: int | None) -> str:
    return node.inputs[index] if index is not None and index < len(node.inputs) else ""
