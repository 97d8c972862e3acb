"""The masked model: the reference that every emitted model must equal.

This module edits initializers and nothing else, and shares no code with the analysis' rules or the rewriter: a mistake
there can't hide here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.masks import Mask, check_masks
from ucpe_onnx.model.functions import inline_functions
from ucpe_onnx.model.naming import fresh_name, node_names, recurrence_names, tensor_names
from ucpe_onnx.model.offload import copy_model


def masked_model(model: onnx.ModelProto, masks: Mapping[str, Mask]) -> onnx.ModelProto:
    """Set to zero, for every consumer, the slices of its weight that belong to dropped input channels.

    Args:
        model: the model; not changed.
        masks: for each consumer, by its name, a boolean array of shape (C_in,), True = keep. Consumers that are not
            named keep everything. A recurrent layer is two: its node reads the input's features through W, and its
            recurrence, ``<node>/recurrence``, the hidden units of the step before through R, in all directions.

    Returns:
        A copy of the model with edited initializers. A weight that several nodes read, or that is computed from
        constants, gets an initializer of its own.

    Raises:
        MaskError: a name is no consumer of the model, or a mask has a wrong length or keeps nothing.
    """
    model = inline_functions(model)
    names = node_names(model.graph.node)
    position = {name: index for index, name in enumerate(names) if name in masks}
    finder = _Weights(model)
    weights = {name: weight for name, index in position.items() if (weight := finder.of(index)) is not None}
    weights.update(finder.recurrences())
    channels = {name: weight.channels for name, weight in weights.items()}
    masks = check_masks(masks, {name: count for name, count in channels.items() if count})

    masks = {name: mask for name, mask in masks.items() if not mask.all()}
    own = {weights[name].tensor for name in masks if finder.readers[weights[name].tensor] == 1}
    copy = copy_model(model, [i for i, tensor in enumerate(model.graph.initializer) if tensor.name in own])
    stored = {tensor.name: tensor for tensor in copy.graph.initializer if tensor.name in own}
    taken = tensor_names(model.graph)
    for name, mask in masks.items():
        weight = weights[name]
        edited = np.array(finder.constants.value(weight.tensor))
        _zero(weight, edited, mask)
        if weight.tensor in stored:
            stored[weight.tensor].CopyFrom(numpy_helper.from_array(edited, weight.tensor))
        else:
            fresh = fresh_name(f"{weight.tensor}_masked", taken)
            copy.graph.node[weight.node].input[weight.input] = fresh
            copy.graph.initializer.append(numpy_helper.from_array(edited, fresh))
    return copy


@dataclass(frozen=True)
class _Weight:
    """A constant that a consumer reads its channels through, at the node that uses it first.

    Attributes:
        node: index of that node: the consumer, or the QuantizeLinear or DequantizeLinear that leads to it.
        input: its input.
        tensor: the constant.
        axis: the axis over input channels.
        groups: convolution groups, each of which has its own range of channels on that axis of Conv.
        zero: what stands for zero, in a shape that broadcasts against the value.
        channels: C_in; 0 for a depthwise convolution, which carries channels along.
    """

    node: int
    input: int
    tensor: str
    axis: int
    groups: int
    zero: npt.NDArray[np.generic]
    channels: int


class _Weights:
    """Finds the weights of consumers, by the definitions of the operators."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = model.graph.node
        self.constants = Constants(model)
        self.makers = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.readers = Counter(name for node in self.nodes for name in node.input)
        self.readers.update(_read_elsewhere(model.graph))

    def of(self, index: int) -> _Weight | None:
        """The weight of a node; None if it has none that is constant."""
        node = self.nodes[index]
        if node.op_type not in _WEIGHT_INPUT or node.domain not in ("", "ai.onnx", "com.microsoft"):
            return None
        if node.op_type == "Attention" and node.domain != "com.microsoft":  # ONNX's own has no weight
            return None
        at = _WEIGHT_INPUT[node.op_type]
        if "MatMul" in node.op_type and self._source(index, 0) is not None:
            at = 0
        source = self._source(index, at)
        tensor = "" if source is None else self.nodes[source[0]].input[source[1]]
        shape = self.constants.shape(tensor)
        axis = None if shape is None else _channel_axis(node, at, len(shape))
        if source is None or shape is None or axis is None:
            return None
        groups = _attribute(node, "group", 1) if "Conv" in node.op_type else 1
        channels = shape[axis] * (1 if node.op_type == "ConvTranspose" else groups)
        if 1 < groups == channels:
            channels = 0
        return _Weight(*source, tensor, axis, groups, self._zero(source, len(shape)), channels)

    def recurrences(self) -> Iterator[tuple[str, _Weight]]:
        """The names of recurrences, and their weights R (directions, gates * units, units) where these are constant."""
        for index, name in recurrence_names(self.nodes).items():
            source = self._source(index, _RECURRENCE)
            tensor = "" if source is None else self.nodes[source[0]].input[source[1]]
            shape = self.constants.shape(tensor)
            if source is not None and shape is not None and len(shape) == 3:
                yield name, _Weight(*source, tensor, 2, 1, self._zero(source, 3), shape[2])

    def _source(self, index: int, at: int) -> tuple[int, int] | None:
        """Where the constant behind an input is used first; None if there is none."""
        while at < len(self.nodes[index].input) and (name := self.nodes[index].input[at]) not in self.constants:
            maker = self.makers.get(name)
            if maker is None or self.nodes[maker].op_type not in ("QuantizeLinear", "DequantizeLinear"):
                return None
            if self.readers[name] != 1 or _attribute(self.nodes[maker], "block_size", 0):
                return None
            index, at = maker, 0
        return (index, at) if at < len(self.nodes[index].input) else None

    def _zero(self, source: tuple[int, int], rank: int) -> npt.NDArray[np.generic]:
        """The zero point of a quantised weight, else 0."""
        node = self.nodes[source[0]]
        quantised = ("DequantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger")
        offset = dict.fromkeys(quantised, 2)
        at = source[1] + offset.get(node.op_type, len(node.input))
        point = self.constants.value(node.input[at]) if at < len(node.input) and node.input[at] else None
        if point is None or point.size == 1:
            return np.zeros((), np.int8) if point is None else point.reshape(())
        along = {"DequantizeLinear": _attribute(node, "axis", 1) % rank, "QLinearConv": 0, "ConvInteger": 0}
        along["QGemm"] = 1 - _attribute(node, "transB", 0)
        axis = along.get(node.op_type, rank - 1)
        return point.reshape([-1 if a == axis else 1 for a in range(rank)])


_WEIGHT_INPUT = {
    "Attention": 1,
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "Einsum": 1,
    "FusedConv": 1,
    "FusedGemm": 1,
    "FusedMatMul": 1,
    "GRU": 1,
    "Gemm": 1,
    "LSTM": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QGemm": 3,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "RNN": 1,
}
"""The input of each kind of consumer that holds its weight; a matrix product may have it on the left instead."""

_RECURRENCE = 2
"""The input of recurrent layers by which they read their hidden units."""


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _channel_axis(node: onnx.NodeProto, weight_input: int, rank: int) -> int | None:
    """The weight's axis over input channels; None if the operator does not take such a weight."""
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return 2 if rank == 3 else None
    if node.op_type == "Einsum":
        return _summed_axis(node)
    if node.op_type in ("Gemm", "FusedGemm", "QGemm"):
        return 1 if _attribute(node, "transB", 0) else 0
    if "MatMul" in node.op_type:  # X @ W reads the rows of W, W @ X its columns
        turned = bool(_attribute(node, "transB" if weight_input else "transA", 0))
        return int(turned == bool(weight_input)) if rank == 2 else None
    if node.op_type == "Attention":
        return 0 if rank == 2 else None
    return 0 if node.op_type == "ConvTranspose" else 1


def _summed_axis(node: onnx.NodeProto) -> int | None:
    """The constant's axis for the first letter of ``data,constant->result`` that is summed over."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms, _, result = equation.partition("->")
    data, _, weight = terms.partition(",")
    if "->" not in equation:
        result = "".join(letter for letter in data + weight if (data + weight).count(letter) == 1)
    return next((weight.index(letter) for letter in data if letter in weight and letter not in result), None)


def _zero(weight: _Weight, value: npt.NDArray[np.generic], mask: Mask) -> None:
    """Set the slices of dropped channels to zero, in place."""
    dropped = np.flatnonzero(~mask)
    fill = np.broadcast_to(weight.zero, value.shape)
    if weight.axis != 1 or weight.groups == 1:
        np.moveaxis(value, weight.axis, 0)[dropped] = np.moveaxis(fill, weight.axis, 0)[dropped]
        return
    rows, columns = value.shape[0] // weight.groups, value.shape[1]
    for channel in dropped:
        group = channel // columns
        at = slice(group * rows, (group + 1) * rows), channel % columns
        value[at] = fill[at]


def _read_elsewhere(graph: onnx.GraphProto) -> list[str]:
    """Tensors that graph outputs or subgraphs refer to."""
    names = [value.name for value in graph.output]
    for node in graph.node:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for body in bodies:
                names += [name for inner in body.node for name in inner.input] + _read_elsewhere(body)
    return names
