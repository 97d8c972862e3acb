"""From scores to masks: local or global, unconstrained or constrained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import numpy as np

from ucpe_onnx.analysis.shared_weights import tied_consumers
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.trace import Consumer, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.selection.criteria import FloatArray
from ucpe_onnx.selection.tied import TiedSegments, strata_of, tied_scores, tied_segments


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
    where the next to go are several that only go together. All that read the units of a recurrent layer, its recurrence
    among them, keep the same even if the others are not constrained: a recurrence has to read every unit that is there,
    so one that it alone drops is no work less.

    Args:
        trace: the analysed model.
        scores: by consumer one score per input channel.
        selection: how much to prune.

    Returns:
        A mask for every consumer that loses a channel.
    """
    scores = tied_scores(trace, scores)
    together = [tied for tied in tied_segments(trace, scores) if selection.constrained or tied.recurs]
    with_others = {consumer.name for tied in together for consumer in tied.readers}
    families = tied_consumers(trace, [name for name in scores if name not in with_others])
    apart, by_family = _units_of_families(trace, families, scores, selection)
    joint, by_segment = _units_of_segments(together, scores, selection)
    gone = _drop([*apart, *joint], selection)
    masks = _masks_of_families(trace, by_family, gone[: len(apart)], scores)
    masks.update(_masks_of_segments(by_segment, gone[len(apart) :], scores))
    return {name: mask for name, mask in masks.items() if not mask.all()}


Family: TypeAlias = tuple[Consumer, ...]
"""Consumers that read by the same weight."""


def _units_of_families(
    trace: Trace, families: Sequence[Family], scores: Mapping[str, FloatArray], selection: Selection
) -> tuple[list[_Units], list[Family]]:
    """What is ranked where every consumer chooses by itself, or with those of the same weight, and for which of them.

    Units are slots, so that a flattened channel stays or goes as a whole.
    """
    units: list[_Units] = []
    owners: list[Family] = []
    for family in families:
        leader, ratio = family[0], min(selection.ratio_of(consumer.name) for consumer in family)
        prunable = _prunable(family)
        if ratio > 0:
            slots, first, widths = np.unique(leader.slots[prunable], return_index=True, return_counts=True)
            for stratum in strata_of(trace.segments[leader.segment], slots, selection.scope):
                ranked = scores[leader.name][prunable][first][stratum]
                units.append(_Units(slots[stratum], ratio, ranked, widths[stratum]))
                owners.append(family)
    return units, owners


def _masks_of_families(
    trace: Trace, owners: Sequence[Family], dropped: Sequence[IntArray], scores: Mapping[str, FloatArray]
) -> dict[str, Mask]:
    """Masks that all consumers of a weight share."""
    gone: dict[str, list[IntArray]] = {}
    families = {family[0].name: family for family in owners}
    for family, slots in zip(owners, dropped, strict=True):
        gone.setdefault(family[0].name, []).append(slots)
    masks = {}
    for name, parts in gone.items():
        leader = trace.consumers[name]
        keep = ~np.isin(leader.slots, np.concatenate(parts)) | ~_prunable(families[name])
        mask = _never_empty(leader, keep, scores[name])
        masks.update({consumer.name: mask for consumer in families[name]})
    return masks


def _prunable(family: Family) -> Mask:
    """The channels that may go for all consumers of a weight, shape (C_in,)."""
    together: Mask = np.logical_and.reduce([consumer.prunable for consumer in family])
    return together


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


def _units_of_segments(
    together: Iterable[TiedSegments], scores: Mapping[str, FloatArray], selection: Selection
) -> tuple[list[_Units], list[TiedSegments]]:
    """What is ranked where one mask is for a segment, or for those that a weight ties, and for which of them.

    A slot counts by the consumers' mean score.
    """
    units = []
    owners: list[TiedSegments] = []
    for tied in together:
        free = ~tied.any(segment.frozen for segment in tied.segments)
        ratios = [selection.ratio_of(consumer.name) for consumer in tied.readers]
        for consumer, ratio in zip(tied.readers, ratios, strict=True):
            if ratio == 0:
                free[tied.slots_of(consumer)] = False
        ratio = min((ratio for ratio in ratios if ratio > 0), default=0.0)
        if tied.readers and free.any():
            score, widths = tied.score(scores), tied.widths()
            for stratum in tied.strata(np.flatnonzero(free), selection.scope):
                units.append(_Units(stratum, ratio, score[stratum], widths[stratum]))
                owners.append(tied)
    return units, owners


def _masks_of_segments(
    owners: Sequence[TiedSegments], dropped: Sequence[IntArray], scores: Mapping[str, FloatArray]
) -> dict[str, Mask]:
    """Masks that all consumers of a segment share."""
    gone = {tied.segments[0].id: (tied, np.zeros(tied.count, dtype=bool)) for tied in owners}
    for tied, slots in zip(owners, dropped, strict=True):
        gone[tied.segments[0].id][1][slots] = True
    masks: dict[str, Mask] = {}
    for tied, flags in gone.values():
        tied.keep_one_per_group(flags, tied.score(scores))
        for consumer in tied.readers:
            masks[consumer.name] = _never_empty(consumer, ~flags[tied.slots_of(consumer)], scores[consumer.name])
    return masks
