"""Segments: connected components of axes, with their slots numbered, grouped and checked for a consistent order."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from ucpe_onnx.analysis.layout import LayoutConflict, links_by_target, segment_layouts
from ucpe_onnx.analysis.slots import AxisKey, IntArray, Slots, components
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.analysis.tracer import Link, Tracer, WeightUse


def find_segments(tracer: Tracer) -> Trace:
    """Solve the tracer's equivalences and cut the graph into segments."""
    _number_dynamic_consumers(tracer)
    slots = tracer.table.resolve()
    members = _axes_by_segment(tracer, slots)
    links: dict[int, list[Link]] = defaultdict(list)
    segment_of = {axis: number for number, axes in enumerate(members) for axis in axes}
    for link in tracer.links:
        if link.target in segment_of:
            links[segment_of[link.target]].append(link)
    _freeze_unread(tracer, slots, members)
    signature = _piece_signatures(tracer, slots)
    segments = tuple(
        _segment(number, axes, links[number], tracer, slots=slots, signature=signature)
        for number, axes in enumerate(members)
    )
    trace = Trace(tracer.graph, slots, {}, segments, tuple(tracer.producers), tracer.rewrites)
    segments = tuple(_checked(trace, segment) for segment in segments)
    consumers = {use.node.name: _consumer(use, slots, segments, segment_of) for use in tracer.consumers}
    return replace(trace, segments=segments, consumers=consumers)


def _number_dynamic_consumers(tracer: Tracer) -> None:
    """A consumer whose data axis has no known length still has C_in channels, by its weight; they stay."""
    for use in tracer.consumers:
        if tracer.ids(use.tensor_axis) is None:
            shape = tracer.graph.constants.shape(use.weight) or ()
            copies = use.groups if use.weight_axis == 1 else 1  # a ConvTranspose's weight holds them all on axis 0
            ids = tracer.table.add(use.tensor_axis, shape[use.weight_axis] * copies)
            tracer.table.freeze(ids, f"dynamic channel axis: {use.node.op_type} at {use.node.name}")


def _axes_by_segment(tracer: Tracer, slots: Slots) -> list[list[AxisKey]]:
    """Axes connected by links, for components that a producer makes or a consumer reads, by first appearance."""
    index = {axis: number for number, axis in enumerate(slots.axes)}
    left = np.array([index[link.source] for link in tracer.links], dtype=np.int64)
    right = np.array([index[link.target] for link in tracer.links], dtype=np.int64)
    root = components(len(index), left, right)
    wanted = {
        int(root[index[use.tensor_axis]]) for use in (*tracer.consumers, *tracer.producers) if use.tensor_axis in index
    }
    members: dict[int, list[AxisKey]] = {}
    for axis, number in index.items():
        component = int(root[number])
        if component in wanted:
            members.setdefault(component, []).append(axis)
    return list(members.values())


def _freeze_unread(tracer: Tracer, slots: Slots, members: list[list[AxisKey]]) -> None:
    read = np.zeros(slots.count, dtype=bool)
    for use in tracer.consumers:
        read[slots.axes[use.tensor_axis]] = True
    for axes in members:
        classes = np.unique(np.concatenate([slots.axes[axis] for axis in axes]))
        unread = classes[~read[classes] & ~slots.frozen[classes]]
        slots.freeze(unread, "no consumer with a constant weight reads it")


def _piece_signatures(tracer: Tracer, slots: Slots) -> IntArray:
    """A number per slot class that differs where some operator cuts an axis between two classes.

    Each part of a cut axis (operand of a Concat; what lies before, in and behind the range of a Slice) adds its own
    random 62-bit number to its classes, so that equal sums mean, but for a chance of 2**-62, equal sets of parts.
    """
    random = np.random.default_rng(0)
    signature = np.zeros(slots.count, dtype=np.int64)
    for link in tracer.links:
        for axis, positions in ((link.source, link.source_positions), (link.target, link.target_positions)):
            if positions is None:
                continue
            linked = np.zeros(slots.axes[axis].size, dtype=bool)
            linked[positions] = True
            cuts = np.flatnonzero(np.diff(linked)) + 1
            for part in np.split(slots.axes[axis], cuts) if cuts.size else ():
                signature[np.unique(part)] += random.integers(1, 2**62)
    return signature


def _segment(
    number: int, axes: list[AxisKey], links: list[Link], tracer: Tracer, *, slots: Slots, signature: IntArray
) -> Segment:
    classes, first = np.unique(np.concatenate([slots.axes[axis] for axis in axes]), return_index=True)
    classes = classes[np.argsort(first)]
    frozen = slots.frozen[classes]
    _freeze_repeats(axes, links, slots, frozen, classes)
    keys = np.stack([signature[classes], frozen.astype(np.int64)])
    _, label = np.unique(keys, axis=1, return_inverse=True)
    label = label.reshape(-1)
    order = {int(k): i for i, k in enumerate(dict.fromkeys(label.tolist()))}
    group_of = np.array([order[int(k)] for k in label], dtype=np.int64)
    groups = tuple(tuple(np.flatnonzero(group_of == g).tolist()) for g in range(len(order)))
    inside = set(axes)
    return Segment(
        id=number,
        axes=tuple(_in_link_order(axes, links)),
        classes=classes,
        frozen=frozen,
        reasons=_reasons(slots, classes),
        groups=groups,
        group_of=group_of,
        links=links_by_target(links),
        consumers=tuple(dict.fromkeys(u.node.name for u in tracer.consumers if u.tensor_axis in inside)),
        producers=tuple(dict.fromkeys(u.node.name for u in tracer.producers if u.tensor_axis in inside)),
    )


def _freeze_repeats(
    axes: list[AxisKey], links: list[Link], slots: Slots, frozen: np.ndarray, classes: IntArray
) -> None:
    """A producer whose channels are tied to each other (through concat([x, x]) and an Add) can't be reordered."""
    followers = {link.target for link in links}
    for axis in axes:
        ids = slots.axes[axis]
        if axis in followers:
            continue
        unique, count = np.unique(ids, return_counts=True)
        tied = unique[count > 1]
        if tied.size:
            slots.freeze(tied, f"channels of {axis[0]!r} tied to each other")
            frozen |= np.isin(classes, tied)


def _in_link_order(axes: list[AxisKey], links: list[Link]) -> list[AxisKey]:
    """Axes sorted so that every link's source comes before its target."""
    followers = {link.target for link in links}
    ordered = dict.fromkeys(axis for axis in axes if axis not in followers)
    ordered.update(dict.fromkeys(link.target for link in links))
    return list(ordered)


def _reasons(slots: Slots, classes: IntArray) -> tuple[str, ...]:
    inside = np.zeros(slots.count, dtype=bool)
    inside[classes] = True
    return tuple(dict.fromkeys(reason for frozen, reason in slots.reasons if inside[frozen].any()))


def _checked(trace: Trace, segment: Segment) -> Segment:
    """The segment, wholly frozen if its operators can't agree on an order of the channels.

    In a layout two positions keep their order, or take that of their slots if these are of one group. So the original
    order and the one that reverses every group show every disagreement that some order could bring about.
    """
    if segment.frozen.all():
        return segment
    try:
        for reverse in (False, True):
            _check_layouts(trace, segment, reverse=reverse)
    except LayoutConflict as conflict:
        reason = f"no order of the channels suits every operator: {conflict}"
        trace.slots.freeze(segment.classes, reason)
        return replace(
            segment,
            frozen=np.ones_like(segment.frozen),
            reasons=(*segment.reasons, reason),
            groups=(tuple(range(segment.classes.size)),),
            group_of=np.zeros_like(segment.group_of),
        )
    return segment


def _check_layouts(trace: Trace, segment: Segment, *, reverse: bool) -> None:
    """Lay the whole segment out; what must stay has to stay, and the parts that an operator cuts have to stay parts."""
    groups = [g[::-1] if reverse and not segment.frozen[g[0]] else g for g in segment.groups]
    layouts = segment_layouts(trace, segment, [slot for group in groups for slot in group])
    for axis, layout in layouts.items():
        stays = not reverse or segment.frozen[segment.local(trace.slots.axes[axis])].all()
        if stays and not np.array_equal(layout, np.arange(layout.size)):
            raise LayoutConflict(axis)
    for link in (link for links in segment.links.values() for link in links):
        if link.source_positions is not None:
            inside = np.zeros(layouts[link.source].size, dtype=bool)
            inside[link.source_positions] = True
            part = np.cumsum(np.diff(inside, prepend=inside[:1]))
            if (np.diff(part[layouts[link.source]]) < 0).any():
                raise LayoutConflict(link.source)


def _consumer(use: WeightUse, slots: Slots, segments: tuple[Segment, ...], segment_of: dict[AxisKey, int]) -> Consumer:
    segment = segments[segment_of[use.tensor_axis]]
    local = segment.local(slots.axes[use.tensor_axis])
    return Consumer(use, local.size, local, segment.id, ~segment.frozen[local])
