"""Models emitted by plans that say by hand how a segment is split and what its consumers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from tests.builders import Masked, masks_for
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target

Kept = Mapping[str, Sequence[int]]


def split_plan(
    traced: Trace, kept: Kept, lowerings: Mapping[str, str], blocks: Sequence[Sequence[int]] | None = None
) -> Plan:
    """A plan for masks given as kept indices, in which one segment is laid out by hand.

    Args:
        traced: the analysed model.
        kept: by consumer the channels that it keeps.
        lowerings: of some consumers of one segment; the others read everything.
        blocks: the segment's slots, block by block; None: it is not split.
    """
    plan = make_plan(traced, masks_for(traced, kept), Settings(Target(blocked=False), "union"))
    number = traced.consumers[next(iter(lowerings))].segment
    segment = plan.segments[number]
    changed = replace(segment, lowerings={**segment.lowerings, **lowerings})
    if blocks is not None:
        order = tuple(slot for block in blocks for slot in block)
        changed = replace(changed, order=order, blocks=tuple(map(tuple, blocks)), split=True)
    segments = tuple(changed if s.id == number else s for s in plan.segments)
    consumers = {
        name: replace(consumer, read=()) if consumer.segment == number else consumer
        for name, consumer in plan.consumers.items()
    }
    return check_plan(replace(plan, consumers=consumers, segments=segments), traced, "")


def routed(
    model: onnx.ModelProto,
    kept: Kept,
    lowerings: Mapping[str, str],
    blocks: Sequence[Sequence[int]] | None = None,
    *,
    optimise: bool = True,
) -> onnx.ModelProto:
    """Emit such a plan, and check that the model is valid and equals the masked one; returns it."""
    traced = trace(model)
    plan = split_plan(traced, kept, lowerings, blocks)
    emitted = emit(model, traced, plan)
    Masked(model, plan.masks(), optimise=optimise).check(emitted)
    return emitted


def nodes(model: onnx.ModelProto, *op_types: str) -> list[onnx.NodeProto]:
    """The nodes of some types."""
    return [node for node in model.graph.node if node.op_type in op_types]


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of a name."""
    (node,) = [node for node in model.graph.node if node.name == name]
    return node


def shape(model: onnx.ModelProto, tensor: str) -> list[int]:
    """The shape of an initializer."""
    (found,) = [list(each.dims) for each in model.graph.initializer if each.name == tensor]
    return found


def written(model: onnx.ModelProto) -> list[str]:
    """The graph in short: one line for each node, ``name: inputs -> outputs``, without constants."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        f"{node.name}: {' '.join(i for i in node.input if i not in stored)} -> {' '.join(node.output)}"
        for node in model.graph.node
    ]
