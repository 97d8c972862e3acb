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
from ucpe_onnx.errors import MaskError
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
            recurrence, ``<node>/recurrence``, the hidden units of the step before through R, in all directions. Layers
            in the body of an If, Loop or Scan are called ``<node>/<attribute>/<name in the body>``.

    Returns:
        A copy of the model with edited initializers. A weight that several nodes read, or that is computed from
        constants, gets an initializer of its own.

    Raises:
        MaskError: a name is no consumer of the model, or a mask has a wrong length or keeps nothing.
    """
    return _masked(inline_functions(model), masks)


def _masked(
    model: onnx.ModelProto, masks: Mapping[str, Mask], foreign: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """The same for a model without functions, or for a body with initializers that are not its own."""
    names = node_names(model.graph.node)
    bodies, masks = _by_body(model, names, masks)
    position = {name: index for index, name in enumerate(names) if name in masks}
    finder = _Weights(model)
    found = {name: finder.of(index, np.size(masks[name])) for name, index in position.items()}
    weights = {name: weight for name, weight in found.items() if weight is not None}
    weights.update(finder.recurrences())
    channels = {name: weight.channels for name, weight in weights.items()}
    masks = check_masks(masks, {name: count for name, count in channels.items() if count})

    masks = {name: mask for name, mask in masks.items() if not mask.all()}
    own = {weights[name].tensor for name in masks if finder.readers[weights[name].tensor] == 1} - foreign
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
    for (index, attribute), inner in bodies.items():
        body = next(each.g for each in copy.graph.node[index].attribute if each.name == attribute)
        _mask_body(body, inner, model, finder.constants, f"{names[index]}/{attribute}")
    return copy


def _by_body(
    model: onnx.ModelProto, names: list[str], masks: Mapping[str, Mask]
) -> tuple[dict[tuple[int, str], dict[str, Mask]], dict[str, Mask]]:
    """The masks of layers in bodies, by node and attribute and the name there, and the others."""
    inside: dict[tuple[int, str], dict[str, Mask]] = {}
    rest = dict(masks)
    outside = {*names, *recurrence_names(model.graph.node).values()}
    for index, node in enumerate(model.graph.node):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                start = f"{names[index]}/{attribute.name}/"
                for name in [name for name in rest if name.startswith(start) and name not in outside]:
                    inside.setdefault((index, attribute.name), {})[name.removeprefix(start)] = rest.pop(name)
    return inside, rest


def _mask_body(
    body: onnx.GraphProto, masks: Mapping[str, Mask], model: onnx.ModelProto, constants: Constants, where: str
) -> None:
    """Edit a body in place; the weights of the graphs around it that it reads become its own."""
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    alone.graph.CopyFrom(body)
    stored = {tensor.name for tensor in body.initializer}
    made = stored | {value.name for value in body.input} | {name for node in body.node for name in node.output}
    around = [name for name in dict.fromkeys(_reads(body)) if name not in made and name in constants]
    alone.graph.initializer.extend(numpy_helper.from_array(np.array(constants.value(name)), name) for name in around)
    try:
        masked = _masked(alone, masks, frozenset(around))
    except MaskError as error:
        raise MaskError(f"{where}: {error}") from error
    edited = [tensor for tensor in masked.graph.initializer if tensor.name not in around]
    body.ClearField("node")
    body.ClearField("initializer")
    for tensor in edited:
        if tensor.name in stored or model.ir_version >= _FREE_INITIALIZERS:
            body.initializer.append(tensor)
        else:
            body.node.append(onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    body.node.extend(masked.graph.node)


def _reads(graph: onnx.GraphProto) -> list[str]:
    """Everything that a graph and its bodies read."""
    return [name for node in graph.node for name in node.input if name] + _read_elsewhere(graph)


_FREE_INITIALIZERS = 4
"""The IR version from which on bodies may hold initializers that are not their inputs."""


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

    def of(self, index: int, length: int = 0) -> _Weight | None:
        """The weight of a node; None if it has none that is constant.

        Args:
            index: the node.
            length: that of its mask, which tells the axes of an Einsum that sums over several apart.
        """
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
        axis = None if shape is None else _channel_axis(node, at, shape, length)
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
    "DeformConv": 1,
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


def _channel_axis(node: onnx.NodeProto, weight_input: int, shape: tuple[int, ...], length: int) -> int | None:
    """The weight's axis over input channels; None if the operator does not take such a weight."""
    rank = len(shape)
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return 2 if rank == 3 else None
    if node.op_type == "Einsum":
        return _summed_axis(node, shape, length)
    if node.op_type in ("Gemm", "FusedGemm", "QGemm"):
        return 1 if _attribute(node, "transB", 0) else 0
    if "MatMul" in node.op_type:  # X @ W reads the rows of W, W @ X its columns
        turned = bool(_attribute(node, "transB" if weight_input else "transA", 0))
        several = rank > 2 and node.op_type in ("MatMul", "FusedMatMul")  # a matrix for each of many
        return rank - 2 + int(turned == bool(weight_input)) if rank == 2 or several else None
    if node.op_type == "Attention":
        return 0 if rank == 2 else None
    return 0 if node.op_type == "ConvTranspose" else 1


def _summed_axis(node: onnx.NodeProto, shape: tuple[int, ...], length: int) -> int | None:
    """The constant's axis for a letter of ``data,constant->result`` that is summed over.

    Of several letters it is the last whose length is the mask's.
    """
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms, _, result = equation.partition("->")
    data, _, weight = terms.partition(",")
    if "->" not in equation:
        result = "".join(letter for letter in data + weight if (data + weight).count(letter) == 1)
    if "." in weight:
        return None
    axes = [weight.index(letter) for letter in data if letter in weight and letter not in result]
    fitting = [axis for axis in axes if axis < len(shape) and shape[axis] == length] or axes
    return fitting[-1] if fitting else None


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
