"""Make a plan: for each segment the slots that stay, their order and blocks, and how every consumer reads them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.plan import ConsumerPlan, Plan, SegmentPlan
from ucpe_onnx.planning.apply import Groups, Solved, applied
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.lower import AUTO, LOWERING_RULES
from ucpe_onnx.planning.lowered import Lowered
from ucpe_onnx.planning.order import in_original_order, ordered
from ucpe_onnx.planning.rates import Rates, default_rates
from ucpe_onnx.planning.rounding import Rounding, pooled_axes
from ucpe_onnx.planning.routes import Routes
from ucpe_onnx.planning.segment_problem import ProblemMaker, Question
from ucpe_onnx.planning.widths import emitted_slots, needed_slots
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.selection.criteria import FloatArray
from ucpe_onnx.selection.tied import tied_segments
from ucpe_onnx.solve.blocks import solve_blocks
from ucpe_onnx.version import __version__

_SHARE = 0.1
"""Of the time that is left, for a segment among many: most need next to none of it, and leave it to the others."""
_EFFORT = 0.05
"""Of the solver, for a segment: more takes seconds and hardly ever changes what is emitted. For two readers at most of
one group none: the search that comes before it has not been seen to miss the best."""
_TOLERANCE = 0.01
"""A layout that is proven to be this close to the best one is good enough: predictions are not as good as that."""


@dataclass(frozen=True)
class Settings:
    """How to lay out and lower.

    Attributes:
        target: the runtime that widths and lowerings are chosen for.
        lowering: a key of ``LOWERING_RULES``.
        fill: let consumers use every channel that they read anyway (``--mode auto``); else masks are honoured exactly.
        seconds: time limit for all searching, for the whole model. What is left when it is over is not searched for:
            one block in the original order, and the best way for every consumer to read that.
        seed: for the solver.
        options: what the plan records of the caller's options.
        source_sha256: what the plan records of the input.
        rates: of the runtime's kernels; None: the defaults for the target.
    """

    target: Target = field(default_factory=Target)
    lowering: str = AUTO
    fill: bool = False
    seconds: float = 10.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    source_sha256: str = ""
    rates: Rates | None = None


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


class _Planner:
    """Plans one segment after the other within a common deadline."""

    def __init__(
        self,
        trace: Trace,
        masks: Mapping[str, Mask],
        settings: Settings,
        scores: Mapping[str, FloatArray],
        deadline: float,
    ) -> None:
        self.trace = trace
        self.masks = masks
        self.settings = settings
        self.deadline = deadline
        self.routes = Routes(trace)
        self.score: dict[int, FloatArray | None] = {}
        self.tied: set[int] = set()
        for tied in tied_segments(trace):
            numbers = [segment.id for segment in tied.segments]
            self.score.update(tied.score_by_segment(scores))
            self.tied.update(numbers if len(numbers) > 1 else ())
        fills = settings.fill and not LOWERING_RULES[settings.lowering].selects
        self.emitted = [self._emitted(s, settings.target, fill=fills) for s in trace.segments]
        self.waiting = sum(self._is_open(segment) for segment in trace.segments)
        kept = {name: int(masks[name].sum()) if name in masks else c.channels for name, c in trace.consumers.items()}
        rates = settings.rates or default_rates(settings.target)
        self.costs = Costs(trace, settings.target, rates, self._made, kept)

    def plan(self, segment: Segment) -> tuple[SegmentPlan, dict[str, Lowered]]:
        """Slots, order and lowerings of a segment. One that no mask touches stays as it is."""
        if not self._is_open(segment):
            order = tuple(range(len(segment.classes)))
            readers = [self.trace.consumers[name] for name in segment.consumers]
            whole = {c.name: Lowered.untouched(c.channels) for c in readers}
            kinds = {name: choice.kind for name, choice in whole.items()}
            return SegmentPlan(segment.id, order, (order,), kinds), whole
        start = time.monotonic()
        ends = start + max(0.0, self.deadline - start) * max(_SHARE, 1 / max(self.waiting, 1))
        self.waiting -= 1
        settings = self.settings
        rule = LOWERING_RULES[settings.lowering]
        by_order = rule.ordered and (settings.lowering != AUTO or settings.target.contiguity_pays)
        emitted = self._narrowed(segment)
        groups, contiguous = in_original_order(segment, emitted), frozenset[str]()
        if by_order and time.monotonic() < ends:
            seconds = (ends - time.monotonic()) / 2
            groups, contiguous = ordered(self.costs, segment, self.masks, groups, seconds=seconds, seed=settings.seed)
        question = self._question(segment, emitted, contiguous)
        plain = self._plain(segment, contiguous) if time.monotonic() < ends else None
        now = time.monotonic()
        solved = self._solved(question, groups, now + (ends - now) / (1 if plain is None else 2))
        if plain is not None and time.monotonic() < ends:
            other = self._solved(plain, in_original_order(segment, plain.emitted), ends)
            if other.found.objective < (1 - _TOLERANCE) * solved.found.objective:
                question, solved = plain, other
        plan, lowered = applied(self.routes, question, solved, settings.target, fill=settings.fill)
        return replace(plan, seconds=round(time.monotonic() - start, 6)), lowered

    def _solved(self, question: Question, groups: Groups, ends: float) -> Solved:
        """The best layout that is found until a moment on the monotonic clock."""
        posed = ProblemMaker(self.costs, self.routes, question).make()
        seconds = max(0.0, ends - time.monotonic())
        pair = len(posed.problem.readers) <= 2 and len(posed.problem.groups) == 1
        effort = 0.0 if pair else _EFFORT
        found = solve_blocks(
            posed.problem, seconds=seconds, effort=effort, tolerance=_TOLERANCE, seed=self.settings.seed
        )
        return Solved(posed, found, groups)

    def _plain(self, segment: Segment, contiguous: frozenset[str]) -> Question | None:
        """The segment with exact widths, so that what its Concats join is in no blocked layout; None if that can't pay.

        Where every consumer selects from what is joined, as in a DenseNet, each of them would first take all of it out
        of that layout. What pools read is rounded all the same: in the plain layout they are slow.
        """
        target = self.settings.target
        rule = LOWERING_RULES[self.settings.lowering]
        if (
            not (self.settings.lowering == AUTO and target.blocked and target.selections_leave)
            or len(segment.groups) == 1
            or segment.id in self.tied
        ):
            return None
        exact = replace(target, minimum=1, read_multiple=1, joined_multiple=1)
        emitted = self._emitted(segment, exact, fill=False)
        for axis in pooled_axes(self.trace, segment):
            pooled = np.isin(segment.group_of, segment.group_of[segment.local(self.trace.slots.axes[axis])])
            emitted[pooled] = self.emitted[segment.id][pooled]
        widths = [int(emitted[list(group)].sum()) for group in segment.groups]
        question = self._question(segment, emitted, contiguous)
        uneven = frozenset(number for number, width in enumerate(widths) if width % question.rounding.joined)
        if not uneven:
            return None
        return replace(question, rounding=question.rounding.exact, rule=rule.undivided, uneven=uneven)

    def _question(
        self, segment: Segment, emitted: npt.NDArray[np.bool_], contiguous: frozenset[str] = frozenset()
    ) -> Question:
        return Question(
            segment,
            self.masks,
            emitted,
            needed_slots(self.trace, segment, self.masks),
            self.score[segment.id],
            Rounding.of(self.trace, segment, self.settings.target),
            contiguous,
            LOWERING_RULES[self.settings.lowering],
        )

    def _narrowed(self, segment: Segment) -> npt.NDArray[np.bool_]:
        """The emitted slots, or fewer of them where that is predicted to be worth leaving the blocked layout.

        A convolution that reads less than a block does so in the plain layout: what it reads has to be brought there,
        but of a channel that is not there nothing has to be computed either.
        """
        emitted, target = self.emitted[segment.id], self.settings.target
        if not target.blocked or len(segment.groups) > 1 or emitted.sum() > target.minimum:
            return emitted
        if segment.id in self.tied:  # a weight that several read is one only if all of them read the same
            return emitted
        lean = self._emitted(segment, replace(target, minimum=1), fill=False)
        if lean.sum() == emitted.sum():
            return emitted
        posed = ProblemMaker(self.costs, self.routes, self._question(segment, emitted)).make()
        us = [posed.undivided_us(int(slots.sum())) for slots in (emitted, lean)]
        back = sum(tensor.reorder_us for tensor in posed.problem.tensors)  # of all that is emitted: more than enough
        return lean if us[1] + back < us[0] else emitted

    def _is_open(self, segment: Segment) -> bool:
        return any(name in self.masks for name in segment.consumers)

    def _emitted(self, segment: Segment, target: Target, *, fill: bool) -> npt.NDArray[np.bool_]:
        if not self._is_open(segment):
            return np.ones(len(segment.classes), dtype=bool)
        return emitted_slots(self.trace, segment, self.masks, target, score=self.score[segment.id], fill=fill)

    def _made(self, axis: AxisKey) -> int:
        """The number of channels that an axis is expected to have."""
        number = self.routes.restrictions.segment_of.get(axis)
        classes = self.trace.slots.axes[axis]
        if number is None:
            return int(classes.size)
        return int(self.emitted[number][self.trace.segments[number].local(classes)].sum())


def _consumer_plan(consumer: Consumer, choice: Lowered, mask: Mask | None, fill: bool) -> ConsumerPlan:
    read = tuple(choice.read.tolist())
    keep = sorted(read) if mask is None or fill else np.flatnonzero(mask).tolist()
    return ConsumerPlan(consumer.channels, tuple(keep), read, consumer.segment, tuple(consumer.slots.tolist()))
