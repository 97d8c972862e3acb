"""How many slots each group of a segment keeps, and which ones fill it up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import FUSING, LAYER_OPS
from ucpe_onnx.analysis.layout import covers_target
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Segment, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.selection.criteria import FloatArray

_WORTHWHILE = 0.1
"""A grouped convolution gains less by whole blocks than it loses by being wider by a larger share than this."""

LOCAL_POOLS = frozenset({"AveragePool", "MaxPool"})
_POOLS = LOCAL_POOLS | {"GlobalAveragePool", "GlobalMaxPool"}


def needed_slots(trace: Trace, segment: Segment, masks: Mapping[str, Mask]) -> npt.NDArray[np.bool_]:
    """The slots that must be emitted: frozen, or kept by some consumer; shape (slots,)."""
    needed: npt.NDArray[np.bool_] = segment.frozen.copy()
    for name in segment.consumers:
        consumer = trace.consumers[name]
        kept = consumer.slots if name not in masks else consumer.slots[masks[name]]
        needed[kept] = True
    return needed


def emitted_slots(
    trace: Trace,
    segment: Segment,
    masks: Mapping[str, Mask],
    target: Target,
    *,
    score: FloatArray | None = None,
    fill: bool = False,
) -> npt.NDArray[np.bool_]:
    """The slots that the emitted graph makes: the needed ones, each group rounded up to a width that runs well.

    A group is never left empty: an operator that makes no channel at all would not load.

    Args:
        trace: the analysed model.
        segment: one of its segments.
        masks: what the consumers keep.
        target: the runtime that widths are rounded for.
        score: importance of each slot, shape (slots,); the most important ones fill up. None: the first ones do.
        fill: round up to whole blocks, whose further channels cost nothing, for a caller that then uses them.

    Returns:
        True for an emitted slot, shape (slots,).
    """
    emitted = needed_slots(trace, segment, masks)
    if emitted.all():
        return emitted
    ranking = np.argsort(np.argsort(-score, kind="stable")) if score is not None else np.arange(emitted.size)
    _round_groups(trace, segment, target, emitted, ranking, fill=fill)
    wanted = [
        (segment.local(trace.slots.axes[axis]), multiple, most)
        for axis, multiple, most in _wanted(trace, segment, target)
    ]
    width = 0
    while width < (width := int(emitted.sum())):  # whatever one axis is given may leave another uneven
        _balance(trace, segment, emitted, ranking)
        for slots, multiple, most in wanted:
            _fill_up(slots, multiple, most, emitted, ranking)
    return emitted


def _round_groups(
    trace: Trace,
    segment: Segment,
    target: Target,
    emitted: npt.NDArray[np.bool_],
    ranking: IntArray,
    *,
    fill: bool,
) -> None:
    """Fill up each group to a width that runs well, in place."""
    multiple = width_multiple(trace, segment, target)
    grouped = _partitioned(trace, segment)
    for group in segment.groups:
        members = np.asarray(group)
        if segment.frozen[members[0]]:
            continue
        count = int(emitted[members].sum())
        rounding = target.block if fill and target.blocked and len(group) >= 2 * target.block else multiple
        if grouped[members[0]] and len(group) < target.block:
            rounding = 1  # a convolution whose groups are narrower than a block is in no blocked layout anyway
        width = max(1, target.width(count, len(group), rounding))
        spare = members[~emitted[members]]
        emitted[spare[np.argsort(ranking[spare])][: width - count]] = True


def _partitioned(trace: Trace, segment: Segment) -> npt.NDArray[np.bool_]:
    """The slots that lie on a partitioned axis, shape (slots,)."""
    inside = np.zeros(len(segment.classes), dtype=bool)
    for partition in segment.partitions:
        inside[segment.local(trace.slots.axes[partition.axis])] = True
    return inside


def _balance(trace: Trace, segment: Segment, emitted: npt.NDArray[np.bool_], ranking: IntArray) -> None:
    """Fill up the parts of partitioned axes until all parts of an axis are equally long, in place.

    This ends: every round adds slots, and with all of them the parts are as long as they were.
    """
    unequal = True
    while unequal:
        unequal = False
        for partition in segment.partitions:
            parts = segment.local(trace.slots.axes[partition.axis]).reshape(partition.parts, -1)
            widths = emitted[parts].sum(axis=1)
            for part, missing in zip(parts, widths.max() - widths, strict=True):
                if missing:
                    unequal = True
                    spare = np.unique(part[~emitted[part]])
                    emitted[spare[np.argsort(ranking[spare])][:missing]] = True


def _fill_up(slots: IntArray, multiple: int, most: float, emitted: npt.NDArray[np.bool_], ranking: IntArray) -> None:
    """Emit as many more slots of an axis as make its length a multiple, in place, unless that is too large a share."""
    spare = np.unique(slots[~emitted[slots]])
    length = int(emitted[slots].sum())
    missing = -length % multiple
    if missing <= most * length:
        emitted[spare[np.argsort(ranking[spare])][:missing]] = True


def _wanted(trace: Trace, segment: Segment, target: Target) -> Iterator[tuple[AxisKey, int, float]]:
    """Axes that convolutions read or make, what their lengths had better be multiples of, and how much that is worth.

    Groups of slots are rounded one by one, which is enough for axes that hold whole groups; others hold what a Split
    leaves of several. An axis that is no such multiple to begin with is left as it is, and so is a depthwise
    convolution between grouped ones that are in no blocked layout: there it would take reorders on both sides.
    """
    if not (target.blocked or target.aligned):
        return
    axes = set(segment.axes)
    whole: list[tuple[AxisKey, int, float]] = []
    grouped: list[tuple[AxisKey, int, float]] = []
    plain = False
    for node in _nodes_at(trace, segment):
        if node.op_type in FUSING and axes.intersection(((node.inputs[0], 1), (node.outputs[0], 1))):
            groups = int(node.attributes.get("group", 1))
            if groups == 1:
                whole.append(((node.inputs[0], 1), target.read_multiple, math.inf))
            else:
                wants = tuple(_grouped_multiples(trace, node, groups, target))
                plain = plain or not wants
                grouped += wants
    for axis, multiple, most in whole if plain else whole + grouped:
        if axis in axes and trace.slots.axes[axis].size % multiple == 0:
            yield axis, multiple, most


def _grouped_multiples(trace: Trace, node: Node, groups: int, target: Target) -> Iterator[tuple[AxisKey, int, float]]:
    """What the axes of a convolution in groups had better be; nothing for one that is in no blocked layout."""
    made, read, *_ = trace.graph.shape(node.inputs[LAYER_OPS[node.op_type].weight]) or (0, 0)
    each = target.grouped_multiple
    if read == 1:
        yield (node.inputs[0], 1), target.depthwise_multiple, math.inf
    elif isinstance(read, int) and isinstance(made, int) and not read % each and not made // groups % each:
        yield (node.inputs[0], 1), groups * each, _WORTHWHILE
        yield (node.outputs[0], 1), groups * each, _WORTHWHILE


def width_multiple(trace: Trace, segment: Segment, target: Target) -> int:
    """The strictest multiple that an operator on the segment asks for."""
    joined = any(
        not covers_target(link, trace.slots.axes[axis].size) for axis, links in segment.links.items() for link in links
    )
    pooled = any(True for _ in pooled_axes(trace, segment, _POOLS))
    return target.joined_multiple if joined or pooled else target.read_multiple


def pooled_axes(trace: Trace, segment: Segment, pools: frozenset[str] = LOCAL_POOLS) -> Iterator[AxisKey]:
    """The axes of a segment's channels that pools read."""
    axes = set(segment.axes)
    for node in _nodes_at(trace, segment):
        if node.op_type in pools and (node.inputs[0], 1) in axes:
            yield node.inputs[0], 1


def _nodes_at(trace: Trace, segment: Segment) -> list[Node]:
    """The nodes that read or make a tensor of a segment, in graph order: all that has to be looked at for it."""
    graph, found = trace.graph, {}
    for tensor in dict.fromkeys(tensor for tensor, _ in segment.axes if isinstance(tensor, str)):
        for node in (graph.makers.get(tensor), *(reader for reader, _ in graph.readers.get(tensor, ()))):
            if node is not None:
                found[node.index] = node
    return [found[index] for index in sorted(found)]
