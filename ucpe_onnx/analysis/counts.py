"""What a model weighs: parameters, multiply-accumulates, bytes, nodes, memory copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.layer_ops import GATES, LAYER_OPS, LayerOp
from ucpe_onnx.model.limits import all_tensors, bodies
from ucpe_onnx.model.serialise import model_size

COPIES = ("Gather", "Slice", "Split", "Concat", "Pad")
"""Operators that only select or move channels."""

_QUANTISED = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_Dim = TypeVar("_Dim")


@dataclass(frozen=True)
class ModelStats:
    """Size of a model.

    Attributes:
        parameters: elements of its floating-point tensors, in subgraphs too, and of 8-bit ones with two axes or more.
        macs: multiply-accumulates of convolutions, matrix products and recurrent layers for one run on the given input
            shapes; None if a shape can't be inferred. Both branches of an If count, the body of a Loop or Scan once.
        bytes: of the serialised model.
        nodes: number of nodes, in bodies too.
        copies: number of nodes by operator that only select or move channels, in bodies too.
    """

    parameters: int
    macs: int | None
    bytes: int
    nodes: int
    copies: Mapping[str, int]

    def lighter_than(self, other: ModelStats) -> bool:
        """Whether there is less to do, or to hold, than in another model."""
        fewer_macs = self.macs is not None and other.macs is not None and self.macs < other.macs
        return self.parameters < other.parameters or fewer_macs

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.bytes,
            "nodes": self.nodes,
            "copies": dict(self.copies),
        }


def model_stats(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> ModelStats:
    """Weigh a model.

    Args:
        model: the model; not changed.
        shapes: the input shapes to count multiply-accumulates for, by input name.
    """
    operators = list(_operators(model.graph.node))
    return ModelStats(
        parameters=sum(math.prod(t.dims) for t in all_tensors(model) if holds_weights(t)),
        macs=count_macs(model, shapes),
        bytes=model_size(model),
        nodes=len(operators),
        copies={op: operators.count(op) for op in COPIES},
    )


def _operators(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The operator of every node, of those in bodies too."""
    for node in nodes:
        yield node.op_type
        for body in bodies(node):
            yield from _operators(body.node)


def holds_weights(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's elements count as parameters."""
    return tensor.data_type in _FLOATS or (tensor.data_type in _QUANTISED and len(tensor.dims) > 1)


def factors_of(
    op: LayerOp, node: Node, data: Sequence[_Dim], weight: Sequence[_Dim], out: Sequence[_Dim]
) -> tuple[_Dim, ...]:
    """The lengths whose product is the number of a layer's multiply-accumulates.

    Args:
        op: what is known of the node's operator.
        node: the node.
        data: shape of what it reads.
        weight: shape of its weight, or of the other factor.
        out: shape of what it makes.
    """
    if op.convolution:
        return (*(data if op.transposed else out), *weight[1:])
    return (*out, data[0] if node.attributes.get("transA") else data[-1])


def products_of(node: Node, shape: Callable[[str], Sequence[_Dim] | None]) -> tuple[tuple[_Dim | int, ...], ...] | None:
    """The lengths whose products are the multiply-accumulates of a node's weights, one tuple for each weight.

    Args:
        node: the node.
        shape: the shape of a tensor; None if it is not known.

    Returns:
        A recurrent layer has two: of what it reads, and of its recurrence. A node without weights has none; None if a
        shape is not known.
    """
    op = LAYER_OPS.get(node.op_type)
    if op is not None:
        shapes = [shape(name) for name in (node.inputs[op.data], node.inputs[op.weight], node.outputs[0])]
        data, weight, out = shapes
        return None if data is None or weight is None or out is None else (factors_of(op, node, data, weight, out),)
    if node.op_type not in GATES:
        return ()
    read = [shape(name) for name in node.inputs[:3]]
    if any(found is None or len(found) != 3 for found in read):
        return None
    data, *weights = (found or () for found in read)
    return tuple((*data[:2], *weight) for weight in weights)


def count_macs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates for one run on given input shapes; None if some layer's shape can't be inferred."""
    view = GraphView(model, shapes)
    total = 0
    for node in view.nodes:
        products = products_of(node, view.shape)
        if products is None:
            return None
        for factors in products:
            known = [f for f in factors if isinstance(f, int)]
            if len(known) < len(factors):
                return None
            total += math.prod(known)
    return total
