"""Trace a graph: which channels are the same slot, which node reads and makes them, which must stay and why."""

from __future__ import annotations

import onnx

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.rules import RULES, TAKES_CONSTANT_DATA
from ucpe_onnx.analysis.rules.quantisation import link_codecs
from ucpe_onnx.analysis.rules.rearrange import Rearrangements, find_rearrangements, rearranged
from ucpe_onnx.analysis.rules.unfollowed import why_not_followed
from ucpe_onnx.analysis.segments import find_segments
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.analysis.tracer import NotFollowedError, Tracer

__all__ = ["Consumer", "Segment", "Trace", "trace"]


def trace(model: onnx.ModelProto) -> Trace:
    """Analyse a model.

    Args:
        model: the model; not changed.

    Returns:
        Slots, segments, consumers and producers. Whatever an operator without a rule touches is frozen.
    """
    graph = GraphView(model)
    chains = find_rearrangements(graph)
    tracer = _applied(Tracer(graph), chains)
    if tracer.open_splits or tracer.open_reads:
        tracer = _applied(Tracer(graph, _choices(tracer)), chains)
    return find_segments(tracer)


def _applied(tracer: Tracer, chains: Rearrangements) -> Tracer:
    """Apply every rule."""
    graph = tracer.graph
    for name in graph.inputs:
        tracer.freeze(name, f"graph input {name}")
    for sparse in graph.model.graph.sparse_initializer:
        tracer.freeze(sparse.values.name, f"sparse initializer {sparse.values.name}")
    for node in graph.nodes:
        if not all(name in graph.constants for name in node.outputs if name):
            _apply_rule(tracer, node, chains)
    for name in sorted(graph.captured):
        tracer.freeze(name, f"tensor {name} is read inside of a subgraph")
    for name in graph.outputs:
        tracer.freeze(name, f"graph output {name}")
    link_codecs(tracer)
    return tracer


def _choices(tracer: Tracer) -> dict[int, int | str]:
    """For every split axis the first of the new axes that nothing behind it freezes; if all are frozen, the reason.

    Of several axes that a node contracts, the first that is not frozen, or the last.
    """
    slots = tracer.table.resolve()
    first = slots.first_reasons()
    choices: dict[int, int | str] = {}
    for index, axes in tracer.open_splits.items():
        out = tracer.graph.nodes[index].outputs[0]
        classes = [slots.axes[(out, axis)] for axis in axes]
        free = [axis for axis, held in zip(axes, classes, strict=True) if not slots.frozen[held].all()]
        choices[index] = free[0] if free else slots.reasons[first[classes[0][0]]][1]
    for index, axes in tracer.open_reads.items():
        data = tracer.graph.nodes[index].inputs[0]
        held = [slots.axes.get((data, axis)) for axis in axes]
        free = [axis for axis, ids in zip(axes, held, strict=True) if ids is not None and not slots.frozen[ids].all()]
        choices[index] = (free or axes[-1:])[0]
    return choices


def _apply_rule(tracer: Tracer, node: Node, chains: Rearrangements) -> None:
    if rearranged(tracer, node, chains):
        return
    rule = RULES.get(node.op_type)
    if rule is None:
        tracer.freeze_node(node, f"{why_not_followed(node.op_type)}: {node.op_type} at {node.name}")
        return
    if node.op_type not in TAKES_CONSTANT_DATA and isinstance(tracer.operand(node, 0), tuple):
        tracer.freeze_node(node, f"constant data: {node.op_type} at {node.name}")
        return
    try:
        rule(tracer, node)
    except NotFollowedError as error:
        tracer.freeze_node(node, f"{error}: {node.op_type} at {node.name}")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        tracer.freeze_node(node, f"malformed node ({type(error).__name__}: {error}): {node.op_type} at {node.name}")
