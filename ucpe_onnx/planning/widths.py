"""How many slots each group of a segment keeps, and which ones fill it up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.criteria import FloatArray
from ucpe_onnx.analysis.layout import covers_target
from ucpe_onnx.analysis.trace import Segment, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.planning.target import Target

_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


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
    multiple = _multiple(trace, segment, target)
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
        if score is not None:
            spare = spare[np.argsort(-score[spare], kind="stable")]
        emitted[spare[: width - count]] = True
    _balance(trace, segment, emitted, score)
    return emitted


def _partitioned(trace: Trace, segment: Segment) -> npt.NDArray[np.bool_]:
    """The slots that lie on a partitioned axis, shape (slots,)."""
    inside = np.zeros(len(segment.classes), dtype=bool)
    for partition in segment.partitions:
        inside[segment.local(trace.slots.axes[partition.axis])] = True
    return inside


def _balance(trace: Trace, segment: Segment, emitted: npt.NDArray[np.bool_], score: FloatArray | None) -> None:
    """Fill up the parts of partitioned axes until all parts of an axis are equally long, in place.

    This ends: every round adds slots, and with all of them the parts are as long as they were.
    """
    ranking = np.argsort(np.argsort(-score, kind="stable")) if score is not None else np.arange(emitted.size)
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


def _multiple(trace: Trace, segment: Segment, target: Target) -> int:
    """The strictest multiple that an operator on the segment asks for."""
    joined = any(
        not covers_target(link, trace.slots.axes[axis].size) for axis, links in segment.links.items() for link in links
    )
    tensors = {tensor for tensor, axis in segment.axes if axis == 1 and isinstance(tensor, str)}
    pooled = any(node.op_type in _POOLS and node.inputs[0] in tensors for node in trace.graph.nodes)
    return target.joined_multiple if joined or pooled else target.read_multiple
