"""What each segment can come down to: slots that disappear for all consumers, and channels that single ones drop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.budget.losses import Losses, dropped, scaled
from ucpe_onnx.masks import Mask

LEVELS = 12
"""Widths of a segment that are looked at, at most ..."""

_SHARED_LEVELS = 7
"""... and of one that several consumers read: each of them has a curve of its own for each width."""

_OWN_LEVELS = 8
"""Of a consumer's own selection from what is left, likewise."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One way for a consumer.

    Attributes:
        base: which of its segment's widths goes with it.
        mask: what it keeps, shape (C_in,).
        kept: how many channels those are.
        loss: what that costs.
    """

    base: int
    mask: Mask
    kept: int
    loss: float


@dataclass(frozen=True, eq=False)
class SegmentChoices:
    """The ways for one segment.

    Attributes:
        segment: its number.
        bases: for each width the slots that are emitted, shape (slots,); all of them first.
        readings: the ways of each consumer with prunable channels.
    """

    segment: int
    bases: tuple[npt.NDArray[np.bool_], ...]
    readings: Mapping[str, tuple[Reading, ...]]


@dataclass(frozen=True)
class ChoiceLimits:
    """What may be chosen from.

    Attributes:
        mode: ``auto``, ``unconstrained`` or ``constrained``.
        most: for a consumer the largest share of its prunable channels that it may lose.
        multiple: for a segment what its width had better be a multiple of.
        reading: for a consumer what the number of channels that it reads had better be a multiple of.
    """

    mode: str
    most: Callable[[str], float]
    multiple: Callable[[Segment], int]
    reading: Callable[[Consumer], int]


def choices_for(trace: Trace, losses: Losses, limits: ChoiceLimits) -> list[SegmentChoices]:
    """The ways for every segment that something can be pruned from."""
    found = []
    for segment in trace.segments:
        readers = [trace.consumers[name] for name in segment.consumers if name in losses.weights]
        if readers:
            found.append(_Maker(trace, losses, limits, segment, readers).choices())
    return found


@dataclass(frozen=True)
class _Maker:
    trace: Trace
    losses: Losses
    limits: ChoiceLimits
    segment: Segment
    readers: list[Consumer]

    def choices(self) -> SegmentChoices:
        order = self._order()
        several = len(self.segment.consumers) > 1
        recurs = any(reader.use.recurrence for reader in self.readers)
        shrinks = not several or recurs or self.limits.mode != "unconstrained"
        counts = self._counts(self._bearable(order)) if shrinks else [0]
        bases: list[npt.NDArray[np.bool_]] = []
        readings: dict[str, list[Reading]] = {reader.name: [] for reader in self.readers}
        for count in counts:
            emitted = np.ones(len(self.segment.classes), dtype=bool)
            emitted[order[:count]] = False
            ways = {
                reader.name: self._ways(reader, emitted, len(bases), self._selects(reader)) for reader in self.readers
            }
            if all(ways.values()):
                bases.append(emitted)
                for name, found in ways.items():
                    readings[name] += found
        return SegmentChoices(self.segment.id, tuple(bases), {name: tuple(ways) for name, ways in readings.items()})

    def _selects(self, reader: Consumer) -> bool:
        """Whether a consumer may drop channels that are emitted: for others, or since they must stay.

        A recurrence reads all that is emitted.
        """
        if reader.use.recurrence:
            return False
        offered = bool((reader.prunable & self.segment.frozen[reader.slots]).any())
        others = len(self.segment.consumers) > 1 or offered
        return others and self.limits.mode != "constrained"

    def _order(self) -> npt.NDArray[np.int64]:
        """Slots that may disappear, those first that cost their consumers least in all."""
        total, place = np.zeros((2, len(self.segment.classes)))
        held = self.segment.frozen.copy()
        for name in self.segment.consumers:
            consumer = self.trace.consumers[name]
            if name not in self.losses.weights or self.limits.most(name) <= 0:
                held[consumer.slots] = True
                continue
            curve = self.losses.curve(name)
            held[consumer.slots[~consumer.prunable]] = True
            for index, (unit, loss) in enumerate(zip(curve.order, curve.losses, strict=True)):
                total[consumer.slots[unit[0]]] += loss
                place[consumer.slots[unit[0]]] += index
        free = np.flatnonzero(~held)
        # What costs nothing, or everything, goes in the order of the curves too: a curve must begin with what goes.
        return free[np.lexsort((place[free], total[free]))]

    def _bearable(self, order: npt.NDArray[np.int64]) -> int:
        """How many slots may go, in this order, so that no consumer loses more than it may, or all that it has."""
        rank = np.full(len(self.segment.classes), len(order))
        rank[order] = np.arange(len(order))
        most = len(order)
        for reader in self.readers:
            ranks = np.sort(rank[reader.slots])
            allowed = min(self._allowed(reader), reader.channels - 1)
            most = min(most, int(ranks[allowed]))  # the first channel that has to stay
        return most

    def _allowed(self, reader: Consumer) -> int:
        """How many channels a consumer may lose."""
        return int(self.limits.most(reader.name) * reader.prunable.sum())

    def _counts(self, most: int) -> list[int]:
        """How many slots go: so that widths are multiples, from none to all but one multiple, evenly spread."""
        slots, multiple = len(self.segment.classes), self.limits.multiple(self.segment)
        levels = LEVELS if len(self.readers) == 1 else _SHARED_LEVELS
        fitting = [gone for gone in range(1, most + 1) if (slots - gone) % multiple == 0 and slots > gone]
        if len(fitting) >= levels:
            fitting = [fitting[round(i * (len(fitting) - 1) / (levels - 2))] for i in range(levels - 1)]
        return [0, *fitting]

    def _ways(self, reader: Consumer, emitted: npt.NDArray[np.bool_], base: int, selects: bool) -> list[Reading]:
        """A consumer's ways with what is emitted: all of it and, if it may select, ever less; none if it loses more."""
        gone = ~emitted[reader.slots]
        allowed = self._allowed(reader)
        if gone.sum() > allowed or gone.all():
            return []
        # A consumer alone loses channels in the order of its own curve: what goes first is its beginning.
        curve = self.losses.curve(reader.name, gone if len(self.readers) > 1 and gone.any() else None)
        prices = scaled(curve)
        channels = np.cumsum([0, *(len(unit) for unit in curve.order)])
        start = int(np.searchsorted(channels, gone.sum()))
        last = int(np.searchsorted(channels, allowed, side="right")) - 1
        if last == len(curve.order) and not (~reader.prunable).any():
            last -= 1  # a consumer that keeps nothing would not load
        levels = {start}
        if selects and last > start:
            wanted = (start + (last - start) * i / _OWN_LEVELS for i in range(1, _OWN_LEVELS + 1))
            levels |= {self._fitting(reader, channels, round(count)) for count in wanted} - set(range(start))
        ways = []
        for count in sorted(levels):
            mask = dropped(self.trace, reader.name, curve, count) & ~gone
            ways.append(Reading(base, mask, int(mask.sum()), float(prices[count])))
        return ways

    def _fitting(self, reader: Consumer, channels: npt.NDArray[np.int64], count: int) -> int:
        """At most so many units to drop, fewer if then a multiple of channels is left."""
        multiple = self.limits.reading(reader)
        return next((c for c in range(count, -1, -1) if (reader.channels - channels[c]) % multiple == 0), count)
