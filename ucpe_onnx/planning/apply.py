"""From the solution of a segment's block problem to its part of the plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.lowerings import LOWERINGS, Lowering, Reads, whole
from ucpe_onnx.masks import Mask
from ucpe_onnx.plan import Plan, SegmentPlan
from ucpe_onnx.planning.leftovers import reading_leftovers
from ucpe_onnx.planning.lowered import Lowered, selected
from ucpe_onnx.planning.routes import Routes
from ucpe_onnx.planning.segment_problem import Question, SegmentProblem
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.solve.blocks import BlockSolution

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Solved:
    """A block problem with its solution.

    Attributes:
        posed: the problem.
        found: its solution.
        order: the slots of each group in emitted order, if nothing is split.
    """

    posed: SegmentProblem
    found: BlockSolution
    order: Groups


def applied(
    routes: Routes, question: Question, solved: Solved, target: Target, *, fill: bool
) -> tuple[SegmentPlan, dict[str, Lowered]]:
    """A segment's plan.

    Args:
        routes: what consumers can do.
        question: what the problem was made from.
        solved: the problem and its solution.
        target: the runtime.
        fill: let consumers use every channel that they read.

    Returns:
        The plan, and what each consumer reads.
    """
    segment = question.segment
    kinds = {name: c.kind for name, c in zip(solved.posed.readers, solved.found.choices, strict=True)}
    several = any(len(group) > 1 for group in solved.found.groups)
    apart = any(LOWERINGS[kind].reads == Reads.OWN for kind in kinds.values())
    blocks = _blocks(question, solved, several or apart)
    lowered = _all_lowered(routes, question, kinds, blocks, target)
    read = _without_unread(routes.trace, segment, blocks, lowered)
    if read != blocks:
        blocks, lowered = read, _all_lowered(routes, question, kinds, read, target)
    if fill:  # what is read is kept: no zero weights are left
        lowered = {name: choice.with_everything_kept() for name, choice in lowered.items()}
    plan = SegmentPlan(
        id=segment.id,
        order=tuple(slot for block in blocks for slot in block),
        blocks=blocks,
        lowerings={name: choice.kind for name, choice in lowered.items()},
        objective=round(solved.found.objective, 3),
        bound=round(solved.found.bound, 3),
        status=solved.found.status,
        split=any(LOWERINGS[choice.kind].split for choice in lowered.values()),
    )
    return plan, lowered


def _blocks(question: Question, solved: Solved, new: bool) -> Groups:
    """The slots of every block; frozen groups and groups that nothing changes keep their order."""
    if not new:
        return solved.order
    waiting = [list(slots) for slots in solved.posed.classes]
    blocks: list[tuple[int, ...]] = []
    for number, group in enumerate(solved.found.groups):
        if question.segment.frozen[question.segment.groups[number][0]]:
            blocks.append(solved.order[number])
            continue
        spare = list(solved.posed.spare[number])
        for block in group:
            slots = [slot for member, count in block.channels for slot in _take(waiting[member], count)]
            blocks.append(tuple(sorted([*slots, *_take(spare, block.spare)])))
        if not group:  # nobody needs it, but an operator that makes no channels would not load
            blocks.append(solved.order[number][:1])
    return tuple(blocks)


def _take(slots: list[int], count: int) -> list[int]:
    taken, slots[:] = slots[:count], slots[count:]
    return taken


def _all_lowered(
    routes: Routes, question: Question, kinds: Mapping[str, str], blocks: Groups, target: Target
) -> dict[str, Lowered]:
    """What each consumer reads of the blocks."""
    order = tuple(slot for block in blocks for slot in block)
    layouts = segment_layouts(routes.trace, question.segment, order)
    lowered = {
        name: _lowered(
            routes,
            routes.trace.consumers[name],
            question.masks.get(name),
            LOWERINGS[kind],
            (blocks, layouts, target),
        )
        for name, kind in kinds.items()
    }
    return reading_leftovers(routes.trace, question.segment, (order, layouts, target), lowered)


def _without_unread(trace: Trace, segment: Segment, blocks: Groups, lowered: Mapping[str, Lowered]) -> Groups:
    """The blocks without those of which every consumer reads others; of a group one channel stays, else nothing loads.

    A group that nobody needs has got a width that runs well all the same.
    """
    reads = {name: LOWERINGS[choice.kind].reads for name, choice in lowered.items()}
    if Reads.BLOCKS not in reads.values() or Reads.OWN in reads.values():
        return blocks  # the one reads all that there is; what the other reads has no part in the blocks
    read = segment.frozen.copy()
    for name, choice in lowered.items():
        read[trace.consumers[name].slots[choice.read]] = True
    stay = {int(segment.group_of[slot]) for block in blocks for slot in block if read[slot]}
    left: list[tuple[int, ...]] = []
    for block in blocks:
        group = int(segment.group_of[block[0]])
        if read[list(block)].any():
            left.append(block)
        elif group not in stay:
            stay.add(group)
            left.append(block[:1])
    return tuple(left)


def _lowered(
    routes: Routes,
    consumer: Consumer,
    mask: Mask | None,
    lowering: Lowering,
    emitted: tuple[Groups, Mapping[AxisKey, IntArray], Target],
) -> Lowered:
    blocks, layouts, target = emitted
    layout = layouts[consumer.use.tensor_axis]
    keep = np.ones(consumer.channels, dtype=bool) if mask is None else mask
    if lowering.reads == Reads.SELECTION:
        return selected(consumer, layout, keep, target)
    single = lowering.split and len(routes.blocks_of(consumer, blocks, layout)) <= 1
    if single or lowering.reads == Reads.WHOLE:
        return Lowered.whole(layout, keep)
    return Lowered(lowering.name, routes.read(consumer, lowering, (blocks, layout), keep))


def in_input_layout(trace: Trace, plan: Plan) -> Plan:
    """A plan with the same masks that removes no channel: weights become zero, the graph stays."""
    return left_alone(trace, plan, range(len(trace.segments)), masked=True)


def left_alone(trace: Trace, plan: Plan, segments: Collection[int], *, masked: bool) -> Plan:
    """A plan in which some segments stay as they are in the input.

    Args:
        trace: the analysed model.
        plan: the decisions; those for other segments stay.
        segments: numbers of the segments.
        masked: whether their consumers keep their masks, as zero weights; else they keep everything.
    """
    consumers = dict(plan.consumers)
    decided = list(plan.segments)
    for number in segments:
        segment = trace.segments[number]
        kinds = {}
        for name in segment.consumers:
            whole_axis = tuple(range(plan.consumers[name].channels))
            keep = plan.consumers[name].keep if masked else whole_axis
            consumers[name] = replace(plan.consumers[name], keep=keep, read=whole_axis)
            kinds[name] = whole(everything_kept=len(keep) == len(whole_axis)).name
        order = tuple(range(len(segment.classes)))
        decided[number] = SegmentPlan(segment.id, order, (order,), kinds)
    return replace(plan, consumers=consumers, segments=tuple(decided))
