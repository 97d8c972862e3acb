"""From scores to masks: local or global, unconstrained or constrained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.selection.criteria import FloatArray


def matches(name: str, pattern: str) -> bool:
    """Whether a consumer's name fits a pattern of ``--ignore`` or ``--ratio-for``: equal to it, or by its wildcards."""
    return name == pattern or fnmatchcase(name, pattern)


@dataclass(frozen=True)
class Selection:
    """How much to prune, and where.

    Attributes:
        ratio: share of the prunable channels that go, in [0, 1).
        scope: ``local``: that share of every consumer (or segment); ``global``: of all together, by one threshold.
        constrained: consumers of a slot keep it all or none (one mask per segment).
        ignore: patterns (``fnmatch``) of consumers that keep everything.
        ratio_for: ratios of their own for consumers that match a pattern; the last match counts.
        most: no consumer (or segment) loses a larger share than this; None: no limit.
    """

    ratio: float = 0.25
    scope: str = "local"
    constrained: bool = False
    ignore: tuple[str, ...] = ()
    ratio_for: tuple[tuple[str, float], ...] = ()
    most: float | None = None

    def ratio_of(self, name: str) -> float:
        """The ratio that applies to a consumer."""
        if any(matches(name, pattern) for pattern in self.ignore):
            return 0.0
        return next((r for pattern, r in reversed(self.ratio_for) if matches(name, pattern)), self.ratio)


def select_masks(trace: Trace, scores: Mapping[str, FloatArray], selection: Selection) -> dict[str, Mask]:
    """Choose what every consumer keeps.

    Of n prunable channels exactly ``int(ratio * n)`` go (local), lowest scores first, never all that a consumer has.

    Args:
        trace: the analysed model.
        scores: by consumer one score per input channel.
        selection: how much to prune.

    Returns:
        A mask for every consumer that loses a channel.
    """
    choose = _constrained if selection.constrained else _unconstrained
    masks = choose(trace, scores, selection)
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _unconstrained(trace: Trace, scores: Mapping[str, FloatArray], selection: Selection) -> dict[str, Mask]:
    """Every consumer by itself; its units are slots, so that a flattened channel stays or goes as a whole."""
    units: list[tuple[IntArray, float, FloatArray]] = []
    names: list[str] = []
    for name, score in scores.items():
        if selection.ratio_of(name) > 0:
            consumer = trace.consumers[name]
            slots, first = np.unique(consumer.slots[consumer.prunable], return_index=True)
            for stratum in _strata(trace.segments[consumer.segment], slots, selection.scope):
                units.append((slots[stratum], selection.ratio_of(name), score[consumer.prunable][first][stratum]))
                names.append(name)
    gone: dict[str, list[IntArray]] = {}
    for name, dropped in zip(names, _drop(units, selection), strict=True):
        gone.setdefault(name, []).append(dropped)
    masks = {}
    for name, parts in gone.items():
        consumer = trace.consumers[name]
        keep = ~np.isin(consumer.slots, np.concatenate(parts)) | ~consumer.prunable
        masks[name] = _never_empty(consumer, keep, scores[name])
    return masks


def _strata(segment: Segment, slots: IntArray, scope: str) -> list[IntArray]:
    """Places among the slots that are ranked together.

    The groups of a convolution must keep equally many channels: with each ranked by itself, none has to be filled up.
    """
    if not segment.partitions or scope != "local":
        return [np.arange(slots.size)]
    group = segment.group_of[slots]
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def _never_empty(consumer: Consumer, mask: Mask, score: FloatArray) -> Mask:
    if not mask.any():
        mask = consumer.slots == consumer.slots[int(np.argmax(score))]
    return mask


def _drop(units: list[tuple[IntArray, float, FloatArray]], selection: Selection) -> list[IntArray]:
    """For each (slots, ratio, scores) the slots that go."""
    most = 1.0 if selection.most is None else selection.most
    orders = [np.argsort(score, kind="stable") for _, _, score in units]
    if selection.scope == "local":
        ratios = (int(min(ratio, most) * len(slots)) for slots, ratio, _ in units)
        return [slots[order[:count]] for (slots, _, _), order, count in zip(units, orders, ratios, strict=True)]
    if not units:
        return []
    allowed = [np.zeros(len(order), dtype=bool) for order in orders]
    for may, order in zip(allowed, orders, strict=True):
        may[order[: int(most * len(order))]] = True
    every = np.concatenate([score for _, _, score in units])
    ranked = np.argsort(every, kind="stable")
    ranked = ranked[np.concatenate(allowed)[ranked]]
    gone = np.zeros(len(every), dtype=bool)
    gone[ranked[: int(sum(ratio * len(slots) for slots, ratio, _ in units))]] = True
    ends = np.cumsum([len(slots) for slots, _, _ in units])
    return [slots[part] for (slots, _, _), part in zip(units, np.split(gone, ends[:-1]), strict=True)]


def _constrained(trace: Trace, scores: Mapping[str, FloatArray], selection: Selection) -> dict[str, Mask]:
    """One mask per segment, by the consumers' mean score of each slot."""
    units = []
    owners: list[tuple[Segment, list[Consumer]]] = []
    for segment in trace.segments:
        readers = [trace.consumers[name] for name in segment.consumers if name in scores]
        free = np.flatnonzero(~segment.frozen)
        held = [c.slots for c in readers if selection.ratio_of(c.name) == 0]
        free = free[~np.isin(free, np.concatenate(held))] if held else free
        if readers and free.size:
            ratio = min((r for c in readers if (r := selection.ratio_of(c.name)) > 0), default=0.0)
            score = slot_scores(segment, readers, scores)
            for stratum in _strata(segment, free, selection.scope):
                units.append((free[stratum], ratio, score[free[stratum]]))
                owners.append((segment, readers))
    chosen = {segment.id: (segment, readers, np.zeros(len(segment.classes), dtype=bool)) for segment, readers in owners}
    for (segment, _), gone in zip(owners, _drop(units, selection), strict=True):
        chosen[segment.id][2][gone] = True
    masks: dict[str, Mask] = {}
    for segment, readers, dropped in chosen.values():
        _keep_one_per_group(segment, dropped, slot_scores(segment, readers, scores))
        for consumer in readers:
            masks[consumer.name] = _never_empty(consumer, ~dropped[consumer.slots], scores[consumer.name])
    return masks


def _keep_one_per_group(segment: Segment, dropped: npt.NDArray[np.bool_], score: FloatArray) -> None:
    for group in segment.groups:
        members = np.asarray(group)
        if dropped[members].all():
            dropped[members[np.argmax(score[members])]] = False


def slot_scores(segment: Segment, readers: list[Consumer], scores: Mapping[str, FloatArray]) -> FloatArray:
    """Importance of each slot of a segment: the mean over its readers of their scores, each scaled to mean 1.

    Scaling makes readers with few large weights and readers with many small ones count alike.

    Returns:
        Shape (slots,); 0 for a slot that no reader scored.
    """
    total, count = np.zeros(len(segment.classes)), np.zeros(len(segment.classes))
    for consumer in readers:
        score = scores[consumer.name]
        finite = score[np.isfinite(score)]
        scale = float(finite.mean()) if finite.size and finite.mean() > 0 else 1.0
        np.add.at(total, consumer.slots, np.minimum(score / scale, 1e30))
        np.add.at(count, consumer.slots, 1.0)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)
