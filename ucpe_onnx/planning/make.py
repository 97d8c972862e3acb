"""Make a plan: for each segment the slots that stay, their order, and how every consumer reads them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx import __version__
from ucpe_onnx.analysis.criteria import FloatArray
from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.select import slot_scores
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.plan import ConsumerPlan, Plan, SegmentPlan
from ucpe_onnx.planning.cost import read_cost
from ucpe_onnx.planning.lower import LOWERING_RULES, Lowered, Reading
from ucpe_onnx.planning.target import Target
from ucpe_onnx.planning.widths import emitted_slots
from ucpe_onnx.solve import Ordering, OrderingProblem, Reader, solve_ordering


@dataclass(frozen=True)
class Settings:
    """How to lay out and lower.

    Attributes:
        target: the runtime that widths and lowerings are chosen for.
        lowering: a key of ``LOWERING_RULES``.
        fill: let consumers use every channel that they read anyway (``--mode auto``); else masks are honoured exactly.
        seconds: time limit for the solver, for the whole model.
        seed: for the solver.
        options: what the plan records of the caller's options.
        source_sha256: what the plan records of the input.
    """

    target: Target = field(default_factory=Target)
    lowering: str = "auto"
    fill: bool = False
    seconds: float = 10.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    source_sha256: str = ""


def make_plan(
    trace: Trace, masks: Mapping[str, Mask], settings: Settings, scores: Mapping[str, FloatArray] | None = None
) -> Plan:
    """Decide everything that the masks leave open.

    Args:
        trace: the analysed model.
        masks: by consumer what it keeps; consumers left out keep everything.
        settings: target, lowering, limits.
        scores: importance of the consumers' channels, to choose those that fill up a width.

    Returns:
        The plan; its masks are the given ones, or wider ones with ``fill``.
    """
    planner = _Planner(trace, masks, settings, scores or {}, time.monotonic() + settings.seconds)
    consumers: dict[str, ConsumerPlan] = {}
    segments = []
    for segment in trace.segments:
        plan, lowered = planner.plan(segment)
        segments.append(plan)
        for name, choice in lowered.items():
            consumers[name] = _consumer_plan(trace.consumers[name], choice, masks.get(name), settings.fill)
    ordered = {name: consumers[name] for name in trace.consumers}
    return Plan(settings.source_sha256, __version__, settings.options, ordered, tuple(segments))


@dataclass(frozen=True)
class _Planner:
    """Plans one segment after the other within a common deadline."""

    trace: Trace
    masks: Mapping[str, Mask]
    settings: Settings
    scores: Mapping[str, FloatArray]
    deadline: float

    def plan(self, segment: Segment) -> tuple[SegmentPlan, dict[str, Lowered]]:
        """Slots, order and lowerings of a segment. One that no mask touches stays as it is."""
        readers = [self.trace.consumers[name] for name in segment.consumers]
        if not any(name in self.masks for name in segment.consumers):
            order = tuple(range(len(segment.classes)))
            whole = {c.name: Lowered("direct", np.arange(c.channels, dtype=np.int64)) for c in readers}
            return SegmentPlan(segment.id, order, (order,), dict.fromkeys(whole, "direct")), whole
        emitted = self._emitted(segment, readers)
        ordering = self._order(segment, emitted)
        order = tuple(slot for group in ordering.groups for slot in group)
        layouts = segment_layouts(self.trace, segment, order)
        lowered = {consumer.name: self._lower(consumer, layouts) for consumer in readers}
        if self.settings.fill:  # what is read is kept: no zero weights are left
            lowered = {n: replace(c, kind="direct") if c.kind == "union" else c for n, c in lowered.items()}
        plan = SegmentPlan(
            id=segment.id,
            order=order,
            blocks=ordering.groups,
            lowerings={name: choice.kind for name, choice in lowered.items()},
            objective=ordering.objective,
            bound=ordering.bound,
            status=ordering.status,
            seconds=round(ordering.seconds, 6),
        )
        return plan, lowered

    def _emitted(self, segment: Segment, readers: list[Consumer]) -> npt.NDArray[np.bool_]:
        scored = [consumer for consumer in readers if consumer.name in self.scores]
        score = slot_scores(segment, scored, self.scores) if scored else None
        return emitted_slots(
            self.trace, segment, self.masks, self.settings.target, score=score, fill=self.settings.fill
        )

    def _order(self, segment: Segment, emitted: npt.NDArray[np.bool_]) -> Ordering:
        """Pose the ordering problem of the emitted slots and solve it."""
        groups = tuple(tuple(slot for slot in group if emitted[slot]) for group in segment.groups)
        fixed = frozenset(i for i, group in enumerate(segment.groups) if segment.frozen[group[0]])
        readers = []
        for name in segment.consumers:
            reader = _reader(segment, self.trace.consumers[name], self.masks[name]) if name in self.masks else None
            if reader is not None:
                cost = read_cost(self.trace, self.trace.consumers[name])
                weight = cost.copy_us(self.settings.target, int(self.masks[name].sum()), int(emitted.sum()))
                readers.append(Reader(name, *reader, round(weight, 3)))
        problem = OrderingProblem(groups=groups, readers=tuple(readers), fixed=fixed)
        seconds = max(0.05, self.deadline - time.monotonic())
        return solve_ordering(problem, seconds=seconds, seed=self.settings.seed)

    def _lower(self, consumer: Consumer, layouts: Mapping[AxisKey, IntArray]) -> Lowered:
        layout = layouts[consumer.use.tensor_axis]
        mask = self.masks.get(consumer.name)
        if mask is None:
            return Lowered("direct", layout)
        shape = read_cost(self.trace, consumer)
        reading = Reading(layout, mask, shape, self.settings.target, grouped=consumer.use.groups > 1)
        return LOWERING_RULES[self.settings.lowering](reading)


def _reader(segment: Segment, consumer: Consumer, mask: Mask) -> tuple[frozenset[int], tuple[int, ...]] | None:
    """Kept slots and sequence of groups; None if no order can serve the consumer.

    That is so where a slot is read in several places apart (concat of a tensor with itself, channels-last flatten) or
    only some of its positions are kept.
    """
    runs = consumer.slots[np.flatnonzero(np.diff(consumer.slots, prepend=-1))]
    kept, dropped = consumer.slots[mask], consumer.slots[~mask]
    if len(np.unique(runs)) < len(runs) or np.isin(kept, dropped).any():
        return None
    groups = segment.group_of[runs]
    sequence = groups[np.flatnonzero(np.diff(groups, prepend=-1))].tolist()
    if len(set(sequence)) < len(sequence):
        return None
    return frozenset(kept.tolist()), tuple(sequence)


def _consumer_plan(consumer: Consumer, choice: Lowered, mask: Mask | None, fill: bool) -> ConsumerPlan:
    read = tuple(choice.read.tolist())
    keep = sorted(read) if mask is None or fill else np.flatnonzero(mask).tolist()
    return ConsumerPlan(consumer.channels, tuple(keep), read, consumer.segment, tuple(consumer.slots.tolist()))
