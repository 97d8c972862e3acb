"""From an order of the slots to the emitted order of the positions of every axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.structure import Segment, Trace
from ucpe_onnx.analysis.tracer import Link


class LayoutConflict(Exception):
    """Two operators need the same axis in different orders.

    Attributes:
        axis: the axis.
    """

    def __init__(self, axis: AxisKey) -> None:
        super().__init__(f"axis {axis[1]} of {axis[0]!r} is needed in two different orders")
        self.axis = axis


def segment_layouts(trace: Trace, segment: Segment, order: Iterable[int]) -> dict[AxisKey, IntArray]:
    """The emitted layout of every axis of a segment.

    Axes that nothing precedes (a producer's output, a constant) take the order of their groups of slots and, within a
    group, the given one; all others follow from these along the links.

    Args:
        trace: the analysed graph.
        segment: one of its segments.
        order: the slots (numbered within the segment) that are emitted, in emitted order. With all of them in their
            own order nothing changes, nor does it if all are frozen.

    Returns:
        For each axis its original positions that are emitted, in emitted order.

    Raises:
        LayoutConflict: an axis follows two others that disagree.
    """
    emitted = np.fromiter(order, dtype=np.int64)
    if segment.frozen.all() or np.array_equal(emitted, np.arange(len(segment.classes))):
        return {axis: np.arange(trace.slots.axes[axis].size) for axis in segment.axes}
    return laid_out(trace, segment, emitted)


def laid_out(trace: Trace, segment: Segment, emitted: IntArray) -> dict[AxisKey, IntArray]:
    """Like :func:`segment_layouts`, by the rules alone: slots of different groups may change places on an axis."""
    rank = np.full(len(segment.classes), -1, dtype=np.int64)
    rank[emitted] = np.arange(emitted.size)
    by_target: Mapping[AxisKey, list[Link]] = segment.links
    layouts: dict[AxisKey, IntArray] = {}
    for axis in segment.axes:  # in graph order: sources come before targets
        local = segment.local(trace.slots.axes[axis])
        free = partial(_by_group, segment, axis, local, rank)
        links = [link for link in by_target.get(axis, ()) if not link.free]
        if not links:
            layouts[axis] = free()
            continue
        candidates = _followed(links, layouts, local.size, free)
        first = candidates[0]
        if any(not np.array_equal(first, other) for other in candidates[1:]):
            raise LayoutConflict(axis)
        layouts[axis] = first
    return layouts


def _by_group(segment: Segment, axis: AxisKey, local: IntArray, rank: IntArray) -> IntArray:
    """Emitted positions sorted by the axis' parts, then by their group's first place there, by rank, and by place."""
    if segment.frozen[local].all():
        return np.arange(local.size, dtype=np.int64)
    at = np.flatnonzero(rank[local] >= 0)
    parts = segment.parts.get(axis, np.zeros(local.size, dtype=np.int64))
    _, piece = np.unique(parts * len(segment.groups) + segment.group_of[local], return_inverse=True)
    piece = piece.reshape(-1)
    first = np.full(local.size, local.size, dtype=np.int64)
    np.minimum.at(first, piece, np.arange(local.size))
    return at[np.lexsort((at, rank[local][at], first[piece][at], parts[at]))]


def _followed(
    links: list[Link], layouts: Mapping[AxisKey, IntArray], size: int, free: Callable[[], IntArray]
) -> list[IntArray]:
    """The layouts that the links give: one per link that covers the axis, one for all that cover a part of it."""
    whole: list[tuple[Link, IntArray]] = []
    parts: list[tuple[Link, IntArray]] = []
    for link in links:
        layout = _through(link, layouts[link.source])
        (whole if covers_target(link, size) else parts).append((link, layout))
    result = [layout for _, layout in whole]
    if parts:
        result.append(_joined(parts, size, free))
    return result


def _through(link: Link, source: IntArray) -> IntArray:
    if link.source_positions is None or link.target_positions is None:
        return source
    place = np.full(
        max(int(link.source_positions.max(initial=-1)), int(source.max(initial=-1))) + 1, -1, dtype=np.int64
    )
    place[source] = np.arange(source.size)
    places = place[link.source_positions]
    kept = places >= 0
    target = link.target_positions[kept]
    keys = [target, places[kept]]
    if link.outer is not None:
        keys.append(link.outer[kept])
    layout = target[np.lexsort(keys)]
    _, first = np.unique(layout, return_index=True)
    return layout[np.sort(first)]  # several source positions may make one of the target


def _joined(parts: list[tuple[Link, IntArray]], size: int, free: Callable[[], IntArray]) -> IntArray:
    """Parts one after the other; positions that no link covers (padding) stay between them."""
    piece = np.full(size, -1, dtype=np.int64)
    for index, (link, _) in enumerate(parts):
        piece[link.target_positions] = index
    layouts = [layout for _, layout in parts]
    bare = np.empty(0, dtype=np.int64)
    if (piece < 0).any():
        own = free()
        bare = own[piece[own] < 0]
    if not bare.size:
        starts = [
            int(link.target_positions.min(initial=size)) for link, _ in parts if link.target_positions is not None
        ]
        return np.concatenate([layouts[i] for i in np.argsort(starts, kind="stable")])
    runs = np.split(np.arange(size), np.flatnonzero(np.diff(piece)) + 1)
    return np.concatenate([layouts[piece[r[0]]] if piece[r[0]] >= 0 else bare[np.isin(bare, r)] for r in runs])


def covers_target(link: Link, size: int) -> bool:
    """Whether a link says where every position of its target comes from."""
    return link.target_positions is None or np.unique(link.target_positions).size == size


def links_by_target(links: Iterable[Link]) -> dict[AxisKey, list[Link]]:
    """Group links by the axis that follows, keeping their order."""
    grouped: dict[AxisKey, list[Link]] = defaultdict(list)
    for link in links:
        grouped[link.target].append(link)
    return dict(grouped)
