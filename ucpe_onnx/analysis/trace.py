"""Trace a graph: which channels are the same slot, which node reads and makes them, which must stay and why."""

from __future__ import annotations

import onnx

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.rules import RULES
from ucpe_onnx.analysis.segments import find_segments
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.analysis.tracer import Tracer

__all__ = ["Consumer", "Segment", "Trace", "trace"]


def trace(model: onnx.ModelProto) -> Trace:
    """Analyse a model.

    Args:
        model: the model; not changed.

    Returns:
        Slots, segments, consumers and producers. Whatever an operator without a rule touches is frozen.
    """
    graph = GraphView(model)
    tracer = Tracer(graph)
    for name in (*graph.inputs, *sorted(graph.constants.overridable)):
        tracer.freeze(name, f"graph input {name}")
    for sparse in model.graph.sparse_initializer:
        tracer.freeze(sparse.values.name, f"sparse initializer {sparse.values.name}")
    for node in graph.nodes:
        if not all(name in graph.constants for name in node.outputs if name):
            _apply_rule(tracer, node)
    for name in sorted(graph.captured):
        tracer.freeze(name, f"tensor {name} is read inside of a subgraph")
    for name in graph.outputs:
        tracer.freeze(name, f"graph output {name}")
    return find_segments(tracer)


_TAKES_CONSTANT_DATA = frozenset({"Concat", "MatMul", "Gemm", "Where", "PRelu"}) | {
    op for op, rule in RULES.items() if rule is RULES["Add"]
}


def _apply_rule(tracer: Tracer, node: Node) -> None:
    rule = RULES.get(node.op_type)
    if rule is None:
        tracer.freeze_node(node, f"operator without a rule: {node.op_type} at {node.name}")
        return
    if node.op_type not in _TAKES_CONSTANT_DATA and isinstance(tracer.operand(node, 0), tuple):
        tracer.freeze_node(node, f"constant data: {node.op_type} at {node.name}")
        return
    try:
        rule(tracer, node)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        tracer.freeze_node(node, f"malformed node ({type(error).__name__}: {error}): {node.op_type} at {node.name}")
