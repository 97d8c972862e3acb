"""Segments: connected components of axes, with their slots numbered, grouped and checked for a consistent order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.layout import LayoutConflict, laid_out, links_by_target
from ucpe_onnx.analysis.slots import AxisKey, IntArray, Slots, components
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.analysis.tracer import EqualParts, Link, Tracer, WeightUse


@dataclass(frozen=True)
class _Material:
    """What a segment is made of, in graph order."""

    axes: list[AxisKey]
    links: list[Link] = field(default_factory=list)
    consumers: dict[str, None] = field(default_factory=dict)
    producers: dict[str, None] = field(default_factory=dict)
    partitions: list[EqualParts] = field(default_factory=list)
    frozen_by: dict[str, int] = field(default_factory=dict)


def find_segments(tracer: Tracer) -> Trace:
    """Solve the tracer's equivalences and cut the graph into segments."""
    _number_dynamic_consumers(tracer)
    slots = tracer.table.resolve()
    members = _axes_by_segment(tracer, slots)
    segment_of = {axis: number for number, axes in enumerate(members) for axis in axes}
    _freeze_unread(tracer, slots, members)
    parts = _cut_parts(tracer, slots)
    signature = _piece_signatures(tracer, slots)
    segments = tuple(
        _segment(number, material, slots, parts, signature)
        for number, material in enumerate(_collected(tracer, slots, members, segment_of))
    )
    trace = Trace(tracer.graph, slots, {}, segments, tuple(tracer.producers), tracer.rewrites, tuple(tracer.stopped))
    segments = tuple(_checked(trace, segment) for segment in segments)
    consumers = {use.name: _consumer(use, slots, segments, segment_of) for use in tracer.consumers}
    return replace(trace, segments=segments, consumers=consumers)


def _collected(
    tracer: Tracer, slots: Slots, members: list[list[AxisKey]], segment_of: Mapping[AxisKey, int]
) -> list[_Material]:
    """Hand everything that the tracer holds to the segment that it belongs to."""
    materials = [_Material(axes) for axes in members]
    for link in tracer.links:
        if link.target in segment_of:
            materials[segment_of[link.target]].links.append(link)
    for consumer in tracer.consumers:
        materials[segment_of[consumer.tensor_axis]].consumers[consumer.name] = None
    for producer in tracer.producers:
        if producer.tensor_axis in segment_of:
            materials[segment_of[producer.tensor_axis]].producers[producer.node.name] = None
    for partition in tracer.partitions:
        if partition.axis in segment_of:
            materials[segment_of[partition.axis]].partitions.append(partition)
    owner = np.full(slots.count, -1, dtype=np.int64)
    for axis, number in segment_of.items():
        owner[slots.axes[axis]] = number
    first = slots.first_reasons()
    for index, (classes, reason) in enumerate(slots.reasons):
        numbers, at = np.unique(owner[classes], return_inverse=True)
        counts = np.bincount(at.reshape(-1), weights=first[classes] == index, minlength=numbers.size)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number >= 0:
                frozen_by = materials[number].frozen_by
                frozen_by[reason] = frozen_by.get(reason, 0) + int(count)
    return materials


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
        if not read[classes].any():
            slots.freeze(classes[~slots.frozen[classes]], "no consumer with a constant weight reads it")


def _cuts(tracer: Tracer, slots: Slots) -> Iterator[tuple[AxisKey, IntArray]]:
    """For every operator that cuts an axis, the axis and the first positions of all parts but the first."""
    for link in tracer.links:
        if link.free:
            continue
        for axis, positions in ((link.source, link.source_positions), (link.target, link.target_positions)):
            if positions is not None:
                yield axis, _ends(positions, slots.axes[axis].size)
    for partition in tracer.partitions:
        size = slots.axes[partition.axis].size
        yield partition.axis, np.arange(1, partition.parts) * (size // partition.parts)


def _ends(positions: IntArray, size: int) -> IntArray:
    """Where runs of positions begin and end within an axis of so many, in work that doesn't grow with the axis."""
    held = np.unique(positions)
    gaps = np.flatnonzero(np.diff(held) > 1)
    ends = np.concatenate([held[:1], held[gaps] + 1, held[gaps + 1], held[-1:] + 1])
    return np.unique(ends[(ends > 0) & (ends < size)])


def _cut_parts(tracer: Tracer, slots: Slots) -> dict[AxisKey, IntArray]:
    """The part that each position of an axis lies in, for axes that are cut or linked as a whole to one that is."""
    index = {axis: number for number, axis in enumerate(slots.axes)}
    whole = [link for link in tracer.links if link.source_positions is None]
    left = np.array([index[link.source] for link in whole], dtype=np.int64)
    right = np.array([index[link.target] for link in whole], dtype=np.int64)
    root = components(len(index), left, right)
    starts: dict[int, npt.NDArray[np.bool_]] = {}
    repeats = [
        (link.target, np.flatnonzero(np.diff(link.outer)) + 1) for link in tracer.links if link.outer is not None
    ]
    for axis, cuts in (*_cuts(tracer, slots), *repeats):
        if cuts.size:
            begins = starts.setdefault(int(root[index[axis]]), np.zeros(slots.axes[axis].size, dtype=bool))
            begins[cuts] = True
    labels = {number: np.cumsum(begins, dtype=np.int64) for number, begins in starts.items()}
    return {axis: labels[int(root[number])] for axis, number in index.items() if int(root[number]) in labels}


def _piece_signatures(tracer: Tracer, slots: Slots) -> IntArray:
    """A number per slot class that differs where some operator cuts an axis between two classes.

    Each part of a cut axis (operand of a Concat; what lies before, in and behind the range of a Slice) adds its own
    random 62-bit number to its classes, so that equal sums mean, but for a chance of 2**-62, equal sets of parts. All
    cuts of an axis are made at once: one by one, every operand of a Concat would go through all that is joined.
    """
    random = np.random.default_rng(0)
    signature = np.zeros(slots.count, dtype=np.int64)
    cuts_of: dict[AxisKey, list[IntArray]] = defaultdict(list)
    for axis, cuts in _cuts(tracer, slots):
        if cuts.size:
            cuts_of[axis].append(cuts)
    for axis, several in cuts_of.items():
        for part in np.split(slots.axes[axis], np.unique(np.concatenate(several))):
            signature[np.unique(part)] += random.integers(1, 2**62)
    return signature


def _segment(
    number: int, material: _Material, slots: Slots, parts: Mapping[AxisKey, IntArray], signature: IntArray
) -> Segment:
    axes, links = material.axes, material.links
    classes, first = np.unique(np.concatenate([slots.axes[axis] for axis in axes]), return_index=True)
    classes = classes[np.argsort(first)]
    frozen = slots.frozen[classes]
    keys = np.stack([signature[classes], frozen.astype(np.int64)])
    _, label = np.unique(keys, axis=1, return_inverse=True)
    label = label.reshape(-1)
    order = {int(k): i for i, k in enumerate(dict.fromkeys(label.tolist()))}
    group_of = np.array([order[int(k)] for k in label], dtype=np.int64)
    ends = np.cumsum(np.bincount(group_of, minlength=len(order)))[:-1]
    groups = tuple(tuple(group.tolist()) for group in np.split(np.argsort(group_of, kind="stable"), ends))
    return Segment(
        id=number,
        axes=tuple(_in_link_order(axes, links)),
        classes=classes,
        frozen=frozen,
        frozen_by=material.frozen_by,
        groups=groups,
        group_of=group_of,
        parts={axis: parts[axis] for axis in axes if axis in parts},
        partitions=tuple(material.partitions),
        links=links_by_target(links),
        consumers=tuple(material.consumers),
        producers=tuple(material.producers),
    )


def _in_link_order(axes: list[AxisKey], links: list[Link]) -> list[AxisKey]:
    """Axes sorted so that every link's source comes before its target."""
    followers = {link.target for link in links}
    ordered = dict.fromkeys(axis for axis in axes if axis not in followers)
    ordered.update(dict.fromkeys(link.target for link in links))
    return list(ordered)


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
        tensor = conflict.axis[0]
        node = trace.graph.makers.get(tensor) if isinstance(tensor, str) else trace.graph.nodes[tensor[0]]
        place = "" if node is None else f", {node.op_type} at {node.name}"
        reason = f"no order of the channels suits every operator: {conflict}{place}"
        trace.slots.freeze(segment.classes, reason)
        return replace(
            segment,
            frozen=np.ones_like(segment.frozen),
            frozen_by={**segment.frozen_by, reason: int((~segment.frozen).sum())},
            groups=(tuple(range(segment.classes.size)),),
            group_of=np.zeros_like(segment.group_of),
        )
    return segment


def _check_layouts(trace: Trace, segment: Segment, *, reverse: bool) -> None:
    """Lay the whole segment out; what must stay has to stay, and the parts that an operator cuts have to stay parts."""
    groups = [g[::-1] if reverse and not segment.frozen[g[0]] else g for g in segment.groups]
    layouts = laid_out(trace, segment, np.array([slot for group in groups for slot in group], dtype=np.int64))
    for axis, layout in layouts.items():
        stays = segment.frozen[segment.local(trace.slots.axes[axis])].all()
        if stays and not np.array_equal(layout, np.arange(layout.size)):
            raise LayoutConflict(axis)
        if axis in segment.parts and (np.diff(segment.parts[axis][layout]) < 0).any():
            raise LayoutConflict(axis)


def _consumer(use: WeightUse, slots: Slots, segments: tuple[Segment, ...], segment_of: dict[AxisKey, int]) -> Consumer:
    segment = segments[segment_of[use.tensor_axis]]
    local = segment.local(slots.axes[use.tensor_axis])
    return Consumer(use, local.size, local, segment.id, ~segment.frozen[local])
