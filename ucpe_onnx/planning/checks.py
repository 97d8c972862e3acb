"""Does a plan that comes from outside fit the model?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ucpe_onnx.analysis.layout import LayoutConflict, segment_layouts
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.errors import MaskError
from ucpe_onnx.lowerings import LOWERINGS, Lowering, Need, Reads
from ucpe_onnx.masks import check_masks
from ucpe_onnx.plan import ConsumerPlan, Plan, SegmentPlan
from ucpe_onnx.planning.routes import Routes


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
    routes = Routes(trace)
    for segment, decided in zip(trace.segments, plan.segments, strict=True):
        _check_order(segment, decided)
        _check_lowerings(segment, decided)
        layouts = _layouts(trace, segment, decided)
        for name in segment.consumers:
            consumer = trace.consumers[name]
            checked = _checked(consumer, consumers[name], decided)
            consumers[name] = _with_reading(routes, consumer, checked, decided, layouts[consumer.use.tensor_axis])
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
        layouts = segment_layouts(trace, segment, decided.order)
    except LayoutConflict as error:
        raise MaskError(f"segment {segment.id}: its order suits no layout: {error}") from error
    for partition in segment.partitions:
        held = layouts[partition.axis] // (trace.slots.axes[partition.axis].size // partition.parts)
        if np.unique(np.bincount(held, minlength=partition.parts)).size > 1:
            raise MaskError(
                f"segment {segment.id}: its order leaves the {partition.parts} parts of axis {partition.axis[1]} of"
                f" {partition.axis[0]!r} unequal; the groups of a convolution must keep equally many channels"
            )
    return layouts


def _checked(consumer: Consumer, plan: ConsumerPlan, decided: SegmentPlan) -> ConsumerPlan:
    """Facts, which must be the model's, and the mask."""
    facts = (plan.channels, plan.segment, plan.slots)
    if facts != (consumer.channels, consumer.segment, tuple(consumer.slots.tolist())):
        raise MaskError(
            f"consumer {consumer.name!r}: channels, segment or slots differ from the model's; make a new plan"
        )
    if list(plan.keep) != sorted(set(plan.keep)):
        raise MaskError(f"consumer {consumer.name!r}: keep must hold ascending channels, each once")
    return plan


def _with_reading(
    routes: Routes, consumer: Consumer, plan: ConsumerPlan, decided: SegmentPlan, layout: IntArray
) -> ConsumerPlan:
    """What a consumer reads must follow from its lowering; it is filled in where the plan has left it out."""
    where = f"consumer {consumer.name!r}"
    lowering = decided.lowering(consumer.name)
    _check_possible(routes, consumer, decided, lowering)
    gone = sorted(set(plan.keep) - set(layout.tolist()))
    if gone and lowering.reads != Reads.OWN:
        raise MaskError(f"{where}: keeps channel {gone[0]}, which the segment's order leaves out")
    derived = routes.read(consumer, lowering, (decided.blocks, layout), plan.mask())
    if not plan.read:
        plan = replace(plan, read=tuple(derived.tolist()))
    if lowering.reads in (Reads.WHOLE, Reads.SELECTION):
        _check_selection(where, lowering, plan, layout)
    if lowering.reads != Reads.SELECTION and plan.read != tuple(derived.tolist()):
        raise MaskError(
            f"{where}: lowering {lowering.name!r} contradicts the {len(plan.read)} of {layout.size} channels that it"
            " reads; leave read out to have it filled in"
        )
    return plan


def _check_possible(routes: Routes, consumer: Consumer, decided: SegmentPlan, lowering: Lowering) -> None:
    where = f"consumer {consumer.name!r}"
    unmet = routes.unmet(consumer, lowering)
    if lowering.split and not decided.split and unmet != Need.SELECT:
        raise MaskError(f"{where}: lowering {lowering.name!r}, but the blocks of segment {decided.id} are not split")
    if unmet is not None:
        raise MaskError(f"{where}: {unmet.value}")


def _check_selection(where: str, lowering: Lowering, plan: ConsumerPlan, layout: IntArray) -> None:
    place = {channel: index for index, channel in enumerate(layout.tolist())}
    places = [place.get(channel, -1) for channel in plan.read]
    if -1 in places or places != sorted(set(places)) or not set(plan.keep) <= set(plan.read):
        raise MaskError(f"{where}: read must hold the kept channels, in emitted order")
    if len(places) == layout.size and lowering.reads == Reads.SELECTION:
        raise MaskError(
            f"{where}: lowering {lowering.name!r} contradicts the {len(places)} of {layout.size} channels that it reads"
        )
    if lowering.contiguous and places[-1] - places[0] + 1 != len(places):
        raise MaskError(f"{where}: lowering {lowering.name!r}, but the channels that it reads are not contiguous")
