"""What is scored and ranked together: consumers that read by one weight, and the segments that they tie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.shared_weights import origin, tied_consumers
from ucpe_onnx.analysis.slots import IntArray, components
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.selection.criteria import FloatArray


def tied_scores(trace: Trace, scores: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Scores in which a weight that several consumers read counts as one: for all of them the mean of their scores."""
    tied = dict(scores)
    for family in tied_consumers(trace, scores):
        if len(family) > 1:
            mean = np.mean([scores[consumer.name] for consumer in family], axis=0)
            tied.update({consumer.name: mean for consumer in family})
    return tied


@dataclass(frozen=True)
class TiedSegments:
    """Segments that keep the same, since consumers in them read by the same weight; mostly it is one alone.

    Attributes:
        segments: by number.
        readers: their consumers that have scores.
        places: for each segment where its slots are among those of all, shape (slots,).
    """

    segments: tuple[Segment, ...]
    readers: tuple[Consumer, ...]
    places: Mapping[int, IntArray]

    @property
    def count(self) -> int:
        """How many slots there are in all."""
        return max(int(places.max(initial=-1)) for places in self.places.values()) + 1

    @property
    def recurs(self) -> bool:
        """Whether a recurrence is among the readers."""
        return any(reader.use.recurrence for reader in self.readers)

    def slots_of(self, consumer: Consumer) -> IntArray:
        """The slot among those of all that each channel of a consumer is, shape (C_in,)."""
        return self.places[consumer.segment][consumer.slots]

    def widths(self) -> FloatArray:
        """How many channels each slot stands for: the mean over the consumers that read it, shape (slots,)."""
        counts = np.array([np.bincount(self.slots_of(consumer), minlength=self.count) for consumer in self.readers])
        return np.asarray(np.maximum(counts.sum(axis=0) / np.maximum((counts > 0).sum(axis=0), 1), 1.0))

    def any(self, flags: Iterable[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
        """Which slots have a flag in some segment."""
        found = np.zeros(self.count, dtype=bool)
        for segment, held in zip(self.segments, flags, strict=True):
            found[self.places[segment.id][held]] = True
        return found

    def score(self, scores: Mapping[str, FloatArray]) -> FloatArray:
        """Importance of each slot: the mean over the segments that have it."""
        total, count = np.zeros(self.count), np.zeros(self.count)
        for segment in self.segments:
            readers = [c for c in self.readers if c.segment == segment.id and c.name in scores]
            np.add.at(total, self.places[segment.id], slot_scores(segment, readers, scores))
            np.add.at(count, self.places[segment.id], 1.0)
        return total / count

    def score_by_segment(self, scores: Mapping[str, FloatArray]) -> dict[int, FloatArray | None]:
        """The same for each segment's own slots; None without any score."""
        if not any(consumer.name in scores for consumer in self.readers):
            return dict.fromkeys(self.places)
        score = self.score(scores)
        return {number: score[places] for number, places in self.places.items()}

    def strata(self, slots: IntArray, scope: str) -> list[IntArray]:
        """Slots that are ranked together."""
        first = self.segments[0]
        if len(self.segments) == 1:
            return [slots[stratum] for stratum in strata_of(first, slots, scope)]
        partitioned = next((segment for segment in self.segments if segment.partitions), first)
        local = np.full(self.count, -1, dtype=np.int64)
        local[self.places[partitioned.id]] = np.arange(len(partitioned.classes))
        inside = local[slots] >= 0
        local = local[slots[inside]]
        by_group = [slots[inside][stratum] for stratum in strata_of(partitioned, local, scope)]
        return [stratum for stratum in (*by_group, slots[~inside]) if stratum.size]

    def keep_one_per_group(self, dropped: npt.NDArray[np.bool_], score: FloatArray) -> None:
        """Keep the best slot of a group that would vanish, in place."""
        for segment in self.segments:
            for group in segment.groups:
                members = self.places[segment.id][list(group)]
                if dropped[members].all():
                    dropped[members[np.argmax(score[members])]] = False


def tied_segments(trace: Trace, names: Iterable[str] | None = None) -> list[TiedSegments]:
    """All segments of a model, with those tied that the nodes of one weight read, or make.

    Args:
        trace: the analysed model.
        names: the consumers that count; None: all.
    """
    counted = dict.fromkeys(trace.consumers if names is None else names)
    starts = np.cumsum([0, *(len(segment.classes) for segment in trace.segments)])
    ends: list[tuple[IntArray, IntArray]] = [(np.zeros(0, dtype=np.int64),) * 2]
    over: list[tuple[int, int]] = []
    for (segment, slots), *others in _sharing(trace, counted):
        for other, same in others:
            ends.append((starts[segment] + slots, starts[other] + same))
            over.append((segment, other))
    left, right = (np.concatenate(side) for side in zip(*ends, strict=True))
    slot = components(int(starts[-1]), left, right)
    pairs = np.array(over, dtype=np.int64).reshape(-1, 2)
    family = components(len(trace.segments), pairs[:, 0], pairs[:, 1])
    found = []
    for number in np.unique(family):
        segments = tuple(trace.segments[index] for index in np.flatnonzero(family == number))
        every = np.unique(np.concatenate([slot[starts[s.id] : starts[s.id + 1]] for s in segments]))
        places = {s.id: np.searchsorted(every, slot[starts[s.id] : starts[s.id + 1]]) for s in segments}
        readers = (name for segment in segments for name in segment.consumers if name in counted)
        found.append(TiedSegments(segments, tuple(trace.consumers[name] for name in readers), places))
    return found


def _sharing(trace: Trace, names: Iterable[str]) -> Iterator[list[tuple[int, IntArray]]]:
    """For each axis of a weight the channels that it reads or makes: their segments, and their slots in these."""
    for family in tied_consumers(trace, names):
        yield [(consumer.segment, consumer.slots) for consumer in family]
    segment_of = {axis: segment for segment in trace.segments for axis in segment.axes}
    made: dict[tuple[str, int, int, int], list[tuple[int, IntArray]]] = defaultdict(list)
    for use in trace.producers:
        if use.tensor_axis in segment_of:
            segment, classes = segment_of[use.tensor_axis], trace.slots.axes[use.tensor_axis]
            source = origin(trace.graph, use.weight)
            key = source.name, source.axes[use.weight_axis], use.groups, classes.size
            made[key].append((segment.id, segment.local(classes)))
    yield from made.values()


def strata_of(segment: Segment, slots: IntArray, scope: str) -> list[IntArray]:
    """Places among the slots that are ranked together.

    The groups of a convolution must keep equally many channels: with each ranked by itself, none has to be filled up.
    """
    if not segment.partitions or scope != "local":
        return [np.arange(slots.size)]
    group = segment.group_of[slots]
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def slot_scores(segment: Segment, readers: Sequence[Consumer], scores: Mapping[str, FloatArray]) -> FloatArray:
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
