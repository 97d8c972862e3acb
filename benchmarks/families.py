"""What kind of network a file holds, and which of its weights can't be pruned, and why."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

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
_FORMS = {"Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "QuantizeLinear", "DequantizeLinear"}
"""What lies between a weight and its layer."""


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and all graphs within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


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
    """Of a model, the weights: floating-point constants of two axes or more, in elements.

    Attributes:
        stored: All of them.
        read: Those that consumers read.
        share: Of those that consumers read, the part that reads or makes prunable channels.
        staying: For each kind of reason, how many stay for it; those with several reasons count for each in parts.
    """

    stored: int
    read: int
    share: float
    staying: Mapping[str, int]

    @property
    def share_of_all(self) -> float:
        """Of all weights, the part that reads or makes prunable channels."""
        return min(1.0, self.share * self.read / self.stored) if self.stored else 0.0


def weights_of(model: onnx.ModelProto, traced: Trace) -> Weights:
    """Count the weights of an analysed model."""
    sizes = dict(_stored(model))
    read = {consumer.use.weight: _size(traced, consumer) for consumer in traced.consumers.values()}
    staying: Counter[str] = Counter()
    for consumer in traced.consumers.values():
        segment = traced.segments[consumer.segment]
        reasons = sorted(set(map(kind, segment.reasons))) or ["no reason"]
        for reason in reasons:
            staying[reason] += round(_size(traced, consumer) * _frozen(traced, consumer) / len(reasons))
    readers = _readers(model)
    for name, size in sizes.items():
        operator = _reader(name, readers, read)
        if operator:
            staying[f"no consumer's: a weight of {operator}"] += size
    found = {reason: count for reason, count in staying.most_common() if count}
    return Weights(sum(sizes.values()), sum(read.values()), prunable_share(traced), found)


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


def _stored(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type in (*floating, *integers) and len(tensor.dims) > 1:
                yield tensor.name, math.prod(tensor.dims)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.t.data_type in floating and len(attribute.t.dims) > 1:
                    yield node.output[0], math.prod(attribute.t.dims)


def _readers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Of each tensor the node that reads it first."""
    found: dict[str, onnx.NodeProto] = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            for name in node.input:
                found.setdefault(name, node)
    return found


def _reader(name: str, readers: Mapping[str, onnx.NodeProto], read: Collection[str]) -> str:
    """The operator that a weight goes to, behind what only changes its form; nothing if that is a consumer."""
    node = readers.get(name)
    while name not in read and node is not None and node.op_type in _FORMS:
        name = node.output[0]
        node = readers.get(name)
    if name in read:
        return ""
    return node.op_type if node is not None else "nothing"
