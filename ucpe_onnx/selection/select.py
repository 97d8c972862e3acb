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
        ratio: share of the prunable channels that go, in [0, 1). Of channels that only go together (a head of
            attention) each counts: a quarter of 12 heads is 3.
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

    Of n prunable channels ``int(ratio * n)`` go (local), lowest scores first, never all that a consumer has; fewer
    where the next to go are several that only go together.

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
    units: list[_Units] = []
    names: list[str] = []
    for name, score in scores.items():
        if selection.ratio_of(name) > 0:
            consumer = trace.consumers[name]
            slots, first, widths = np.unique(consumer.slots[consumer.prunable], return_index=True, return_counts=True)
            for stratum in _strata(trace.segments[consumer.segment], slots, selection.scope):
                ranked = score[consumer.prunable][first][stratum]
                units.append(_Units(slots[stratum], selection.ratio_of(name), ranked, widths[stratum]))
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


@dataclass(frozen=True, eq=False)
class _Units:
    """What is ranked together with a threshold of its own, if the scope is local.

    Attributes:
        slots: the slots, shape (slots,).
        ratio: the share of their channels that goes.
        scores: their importance, by channel, shape (slots,).
        widths: how many channels each stands for, shape (slots,).
    """

    slots: IntArray
    ratio: float
    scores: FloatArray
    widths: FloatArray

    @property
    def channels(self) -> float:
        """How many channels there are."""
        return float(self.widths.sum())

    def lowest(self, share: float) -> IntArray:
        """Places of the lowest scores that make up no more than a share of the channels."""
        relative = self.widths / self.widths.max(initial=1)  # ones, where they are equal: int(share * n) are meant
        return _lowest(self.scores, relative, share * float(relative.sum()))


def _lowest(scores: FloatArray, widths: FloatArray, channels: float) -> IntArray:
    """Places of the lowest scores that make up no more than so many channels."""
    order = np.argsort(scores, kind="stable")
    return order[: int(np.count_nonzero(np.cumsum(widths[order]) <= channels))]


def _drop(units: list[_Units], selection: Selection) -> list[IntArray]:
    """For each of the units the slots that go."""
    most = 1.0 if selection.most is None else selection.most
    if selection.scope == "local":
        return [u.slots[u.lowest(min(u.ratio, most))] for u in units]
    if not units:
        return []
    allowed = [u.lowest(most) for u in units]
    owner = np.repeat(np.arange(len(units)), [len(places) for places in allowed])
    slots, scores, widths = (
        np.concatenate([getattr(u, name)[places] for u, places in zip(units, allowed, strict=True)])
        for name in ("slots", "scores", "widths")
    )
    gone = np.zeros(len(slots), dtype=bool)
    gone[_lowest(scores, widths, sum(u.ratio * u.channels for u in units))] = True
    return [slots[gone & (owner == number)] for number in range(len(units))]


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
                members = free[stratum]
                units.append(_Units(members, ratio, score[members], _mean_widths(segment, readers)[members]))
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


def _mean_widths(segment: Segment, readers: list[Consumer]) -> FloatArray:
    """How many channels each slot stands for: the mean over the consumers that read it, shape (slots,)."""
    counts = np.array([np.bincount(consumer.slots, minlength=len(segment.classes)) for consumer in readers])
    return np.asarray(np.maximum(counts.sum(axis=0) / np.maximum((counts > 0).sum(axis=0), 1), 1.0))


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
