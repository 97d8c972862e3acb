"""Does a plan that comes from outside fit the model?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ucpe_onnx.analysis.layout import LayoutConflict, segment_layouts
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.errors import MaskError
from ucpe_onnx.masks import check_masks
from ucpe_onnx.plan import LOWERINGS, ConsumerPlan, Plan, SegmentPlan


def check_plan(plan: Plan, trace: Trace, sha256: str) -> Plan:
    """Check a plan against a model before anything is emitted.

    Args:
        plan: the plan; messages leave out what it is called.
        trace: the analysed model.
        sha256: hash of the model.

    Returns:
        The plan, consumers in graph order, ``read`` filled in where a hand-written plan has left it out.

    Raises:
        MaskError: the plan is for another model, or contradicts itself or the model.
    """
    if plan.source_sha256 and plan.source_sha256 != sha256:
        raise MaskError(
            f"it was made for another model (sha256 {plan.source_sha256[:12]}..., this one is {sha256[:12]}...):"
            " make a new one, or empty its source_sha256 to apply it all the same"
        )
    if set(plan.consumers) != set(trace.consumers):
        odd = sorted(set(plan.consumers) ^ set(trace.consumers))[0]
        raise MaskError(f"it disagrees with the model on consumer {odd!r}; make a new plan")
    channels = {name: consumer.channels for name, consumer in trace.consumers.items()}
    check_masks({name: list(c.keep) for name, c in plan.consumers.items()}, channels)
    if [s.id for s in plan.segments] != [s.id for s in trace.segments]:
        raise MaskError("it disagrees with the model on the segments; make a new plan")
    consumers = dict(plan.consumers)
    for segment, decided in zip(trace.segments, plan.segments, strict=True):
        _check_order(segment, decided)
        _check_lowerings(segment, decided)
        layouts = _layouts(trace, segment, decided)
        for name in segment.consumers:
            consumer = trace.consumers[name]
            consumers[name] = _checked(name, consumer, consumers[name], decided, layouts[consumer.use.tensor_axis])
    return replace(plan, consumers={name: consumers[name] for name in trace.consumers})


def _check_order(segment: Segment, decided: SegmentPlan) -> None:
    where = f"segment {segment.id}"
    order = set(decided.order)
    if len(order) < len(decided.order) or not order <= set(range(len(segment.classes))):
        raise MaskError(f"{where}: order repeats a slot or names one that does not exist")
    if tuple(slot for block in decided.blocks for slot in block) != decided.order:
        raise MaskError(f"{where}: blocks and order differ; blocks are the slots of order, cut into groups")
    missing = set(np.flatnonzero(segment.frozen).tolist()) - order
    if missing:
        raise MaskError(f"{where}: slot {min(missing)} is frozen and must be in the order")
    for group in segment.groups:
        members = set(group)
        present = [slot for slot in decided.order if slot in members]
        if not present:
            raise MaskError(f"{where}: keeps none of the slots {group[0]} to {group[-1]}, one at least must stay")
        if segment.frozen[group[0]] and present != sorted(present):
            raise MaskError(f"{where}: frozen slots must keep their order")


def _check_lowerings(segment: Segment, decided: SegmentPlan) -> None:
    for name, kind in decided.lowerings.items():
        if name not in segment.consumers:
            raise MaskError(f"segment {segment.id}: lowering for {name!r}, which does not read this segment")
        if kind not in LOWERINGS:
            raise MaskError(
                f"segment {segment.id}: unknown lowering {kind!r} for {name!r}; choose from {', '.join(LOWERINGS)}"
            )


def _layouts(trace: Trace, segment: Segment, decided: SegmentPlan) -> Mapping[AxisKey, IntArray]:
    try:
        return segment_layouts(trace, segment, decided.order)
    except LayoutConflict as error:
        raise MaskError(f"segment {segment.id}: its order suits no layout: {error}") from error


def _checked(name: str, consumer: Consumer, plan: ConsumerPlan, decided: SegmentPlan, layout: IntArray) -> ConsumerPlan:
    where = f"consumer {name!r}"
    facts = (plan.channels, plan.segment, plan.slots)
    if facts != (consumer.channels, consumer.segment, tuple(consumer.slots.tolist())):
        raise MaskError(f"{where}: channels, segment or slots differ from the model's; make a new plan")
    if list(plan.keep) != sorted(set(plan.keep)):
        raise MaskError(f"{where}: keep must hold ascending channels, each once")
    gone = sorted(set(plan.keep) - set(layout.tolist()))
    if gone:
        raise MaskError(f"{where}: keeps channel {gone[0]}, which the segment's order leaves out")
    kind = decided.lowerings.get(name, "union")
    if not plan.read:
        plan = replace(plan, read=_reading(plan, kind, layout))
    place = {channel: index for index, channel in enumerate(layout.tolist())}
    places = [place.get(channel, -1) for channel in plan.read]
    if -1 in places or places != sorted(set(places)) or not set(plan.keep) <= set(plan.read):
        raise MaskError(f"{where}: read must hold the kept channels, in emitted order")
    _check_kind(where, kind, places, consumer, layout.size)
    return plan


def _check_kind(where: str, kind: str, places: list[int], consumer: Consumer, available: int) -> None:
    everything = len(places) == available
    if everything != (kind in ("direct", "union")):
        raise MaskError(
            f"{where}: lowering {kind!r} contradicts the {len(places)} of {available} channels that it reads"
        )
    if kind == "slice" and places[-1] - places[0] + 1 != len(places):
        raise MaskError(f"{where}: lowering 'slice', but the channels that it reads are not contiguous")
    if not everything and consumer.use.groups > 1:
        raise MaskError(f"{where}: its channels are bound to convolution groups, so it must read all")


def _reading(plan: ConsumerPlan, kind: str, layout: IntArray) -> tuple[int, ...]:
    kept = np.flatnonzero(plan.mask()[layout])
    if kind == "gather":
        return tuple(layout[kept].tolist())
    if kind == "slice":
        return tuple(layout[kept[0] : kept[-1] + 1].tolist())
    return tuple(layout.tolist())
