"""What kind of network a file holds, and which of its weights can't be pruned, and why."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from models.emitter import graphs
from ucpe_onnx.analysis.structure import Consumer, Trace
from ucpe_onnx.inspect import prunable_share

CONTROL_FLOW, RECURRENT, TRANSFORMER, CNN, OTHER = FAMILIES = (
    "control flow",
    "recurrent",
    "transformer",
    "CNN",
    "other",
)

_FUSED_ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention"}
_AROUND_SCORES = {"Add", "Sub", "Mul", "Div", "Where", "Reshape", "Transpose", "Cast", "Clip", "Max", "Tanh", "Slice"}
"""What lies between the products of queries and keys, and their softmax."""
_OPERANDS = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Max", "Min", "Where", "Equal", "Less", "Greater", "PRelu"),
    *("Expand", "Tile", "Pad", "ScatterND", "ScatterElements", "GatherElements", "LayerNormalization"),
}
"""Operators whose constants are no weights: tables of positions, anchors, masks."""
_WEIGHTS = {
    *(onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16),
    *(onnx.TensorProto.INT8, onnx.TensorProto.UINT8),
}


def family(model: onnx.ModelProto) -> str:
    """The first that fits: control flow, recurrent, transformer, CNN, other.

    A transformer is what takes a softmax of products of activations, whatever else it has.
    """
    every = list(graphs(model.graph))
    operators = {node.op_type for graph in every for node in graph.node}
    if operators & {"If", "Loop", "Scan"}:
        return CONTROL_FLOW
    if operators & {"LSTM", "GRU", "RNN"}:
        return RECURRENT
    if operators & _FUSED_ATTENTION or any(_attends(graph) for graph in every):
        return TRANSFORMER
    return CNN if operators & {"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "ConvInteger"} else OTHER


def _attends(graph: onnx.GraphProto) -> bool:
    made = {name: node for node in graph.node for name in node.output}
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {name for name, node in made.items() if node.op_type in ("Constant", "DequantizeLinear")}
    waiting = [node.input[0] for node in graph.node if node.op_type == "Softmax"]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = made.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in ("MatMul", "FusedMatMul", "Einsum") and not constant & set(node.input):
            return True
        if node.op_type in _AROUND_SCORES:
            waiting += node.input
    return False


def kind(reason: str) -> str:
    """The reason without the names of nodes and tensors."""
    reason = re.sub(r"^(graph (?:in|out)put|sparse initializer|tensor) .*?( is .*)?$", r"\1\2", reason)
    return reason.split(" at ")[0]


@dataclass(frozen=True)
class Weights:
    """Of a model, the weights: constants of two axes or more that layers read, in elements.

    Attributes:
        share: Of those that consumers read, the part that reads or makes prunable channels.
        share_of_all: The same of all, those of depthwise convolutions among them; what no consumer reads stays.
        staying: For each kind of reason, the part of all that stays for it; reasons of one weight have parts by the
            channels that they freeze.
    """

    share: float
    share_of_all: float
    staying: Mapping[str, float]


def weights_of(model: onnx.ModelProto, traced: Trace) -> Weights:
    """Count the weights of an analysed model."""
    sizes = {consumer.use.weight: _size(traced, consumer) for consumer in traced.consumers.values()}
    staying: Counter[str] = Counter()
    for consumer in {consumer.use.weight: consumer for consumer in traced.consumers.values()}.values():
        frozen_by = traced.segments[consumer.segment].frozen_by
        for reason, count in frozen_by.items():
            part = count / sum(frozen_by.values())
            staying[kind(reason)] += sizes[consumer.use.weight] * _frozen(traced, consumer) * part
    total = sum(sizes.values())
    for size, node in _others(model, sizes):
        total += size
        staying[f"no consumer's: a weight of {node.op_type}"] += size * _made_frozen(traced, node)
    shares = {reason: round(count / total, 4) for reason, count in staying.most_common() if count * 1e4 >= total}
    of_all = 1.0 - sum(staying.values()) / total if total else 0.0
    return Weights(prunable_share(traced), of_all, shares)


def _size(traced: Trace, consumer: Consumer) -> int:
    return math.prod(traced.graph.constants.shape(consumer.use.weight) or ())


def _frozen(traced: Trace, consumer: Consumer) -> float:
    """The part of a consumer's weight that reads and makes channels that stay."""
    slots = traced.slots
    made = [
        use for use in traced.producers if use.node.name == consumer.use.node.name and use.tensor_axis in slots.axes
    ]
    stays = float(slots.frozen[slots.axes[made[-1].tensor_axis]].mean()) if made else 1.0
    return float((~consumer.prunable).mean()) * stays


def _made_frozen(traced: Trace, node: onnx.NodeProto) -> float:
    """The part of a depthwise convolution's channels that stays; of other layers, all."""
    axes, key = traced.slots.axes, (node.output[0], 1)
    depthwise = node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    return float(traced.slots.frozen[axes[key]].mean()) if depthwise and key in axes else 1.0


def _others(model: onnx.ModelProto, read: Collection[str]) -> Iterator[tuple[int, onnx.NodeProto]]:
    """Sizes and readers of the weights that no consumer reads, neither as they are nor what is computed of them."""
    readers: dict[str, onnx.NodeProto] = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, node)
    computed = _computed(model)
    for stored, size in _stored(model):
        name, reader = stored, readers.get(stored)
        while name not in read and reader is not None and computed.issuperset(reader.output):
            name = reader.output[0]
            reader = readers.get(name)
        if name not in read and reader is not None and reader.op_type not in _OPERANDS:
            yield size, reader


def _computed(model: onnx.ModelProto) -> set[str]:
    """Tensors that depend on no input: constants, and what is computed of them."""
    found = {""}
    for graph in graphs(model.graph):
        found |= {tensor.name for tensor in graph.initializer}
    for graph in graphs(model.graph):
        for node in graph.node:
            if found.issuperset(node.input) and not any(a.g.node or a.graphs for a in node.attribute):
                found.update(node.output)
    return found


def _stored(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Names and sizes of the constants that may be weights."""
    for graph in graphs(model.graph):
        named = [(tensor.name, tensor) for tensor in graph.initializer]
        named += [
            (n.output[0], a.t) for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
        ]
        for name, tensor in named:
            if tensor.data_type in _WEIGHTS and len(tensor.dims) > 1:
                yield name, math.prod(tensor.dims)
