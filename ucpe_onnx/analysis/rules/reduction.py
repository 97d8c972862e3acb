"""Reductions: the reduced axes stay, the others pass."""

from __future__ import annotations

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints, normalized_axis
from ucpe_onnx.analysis.tracer import Tracer


def reduce(tracer: Tracer, node: Node) -> None:
    """ReduceMean and its like over known axes, kept as length 1 or dropped."""
    rank = tracer.rank(node.inputs[0])
    axes = constant_ints(tracer, node, "axes", 1)
    if rank is None or axes is None:
        tracer.freeze_node(node, f"axes computed at run time or unknown rank: {node.op_type} at {node.name}")
        return
    if not axes and not node.attributes.get("noop_with_empty_axes", 0):
        axes = list(range(rank))
    _without(tracer, node, {normalized_axis(axis, rank) for axis in axes})


def arg_reduce(tracer: Tracer, node: Node) -> None:
    """ArgMax and ArgMin over one axis."""
    rank = tracer.rank(node.inputs[0])
    if rank is None:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    _without(tracer, node, {normalized_axis(int(node.attributes.get("axis", 0)), rank)})


def _without(tracer: Tracer, node: Node, reduced: set[int]) -> None:
    data, out = node.inputs[0], node.outputs[0]
    keep = bool(node.attributes.get("keepdims", 1))
    rank = tracer.rank(data) or 0
    tracer.freeze(data, f"reduced axis of {node.op_type} at {node.name}", sorted(reduced))
    target = 0
    for axis in range(rank):
        if axis in reduced:
            if keep:
                tracer.freeze(out, f"reduced axis of {node.op_type} at {node.name}", [axis])
            target += keep
        else:
            tracer.link((data, axis), (out, target), node)
            target += 1


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

RULES = {f"Reduce{name}": reduce for name in _REDUCTIONS} | {"ArgMax": arg_reduce, "ArgMin": arg_reduce}
