"""Choose lowerings by timing: whole models that differ in one segment, against each other in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.offload import Offload
from ucpe_onnx.options import Options
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan, SegmentPlan
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.runtime.latency import LEAST_RELOADS, PATIENCE, measure
from ucpe_onnx.selection.criteria import FloatArray

SHARE = 10.0
"""Seconds to time candidates for, for each second of the final measurement."""

_MOST = 3
"""Alternatives for one segment at most, those with the best predictions."""
_HOPELESS = 1.5
"""An alternative that is predicted to take so many times as long as the best is not timed."""
_ROUNDS = 12
"""Rounds at least, for each comparison."""


@dataclass(frozen=True)
class TuningStep:
    """One alternative for one segment.

    Attributes:
        segment: number of the segment.
        lowering: what the alternative was made by.
        predicted_us: how much longer the model was predicted to take with it, in microseconds.
        measured_us: how much longer it took.
        low: lower end of that difference's 95 % interval.
        high: upper end.
        taken: whether it was chosen.
    """

    segment: int
    lowering: str
    predicted_us: float
    measured_us: float
    low: float
    high: float
    taken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tuner:
    """Times alternatives to a plan.

    Attributes:
        model: the input model.
        traced: its analysis.
        feed: an array per input.
        options: how to run models, and for how long.
        offload: keeps emitted models.
    """

    model: onnx.ModelProto
    traced: Trace
    feed: Mapping[str, Any]
    options: Options
    offload: Offload

    def tuned(
        self, plan: Plan, masks: Mapping[str, Mask], settings: Settings, scores: Mapping[str, FloatArray] | None
    ) -> tuple[Plan, tuple[TuningStep, ...]]:
        """Improve a plan segment by segment, those first that take longest.

        Args:
            plan: the plan to start from; its segments that take longest come first, as many as there is time for.
            masks: what it was made from.
            settings: likewise; the lowering does not matter.
            scores: likewise.

        Returns:
            The plan with the alternatives that were measurably faster, and everything that was tried.
        """
        others = {
            name: make_plan(self.traced, masks, replace(settings, lowering=name), scores)
            for name in LOWERING_RULES
            if name != settings.lowering
        }
        tries = {decided.id: _alternatives(plan, others, decided) for decided in plan.segments}
        waiting = sorted((s for s in plan.segments if tries[s.id]), key=lambda s: -s.objective)
        steps: list[TuningStep] = []
        seconds = SHARE * self.options.timing_seconds / max(len(waiting), 1)
        deadline = time.monotonic() + SHARE * self.options.timing_seconds
        for decided in waiting:
            if time.monotonic() > deadline:
                break
            names = tries[decided.id]
            found = self._timed(plan, {name: others[name] for name in names}, decided.id, seconds)
            if not found:  # other programs had the cores: the choice stays
                continue
            best = min(found, key=lambda step: step.measured_us)
            if best.high < 0:
                plan = _with_segment(plan, others[best.lowering], decided.id)
                found = [replace(step, taken=step is best) for step in found]
            steps += found
        return plan, tuple(steps)

    def _timed(self, plan: Plan, others: Mapping[str, Plan], segment: int, seconds: float) -> list[TuningStep]:
        """Time the model of a plan against models that differ in one segment; nothing if the machine is busy."""
        plans = {"": plan, **{name: _with_segment(plan, other, segment) for name, other in others.items()}}
        models = {name: self.offload.store(emit(self.model, self.traced, each)) for name, each in plans.items()}
        latency = measure(
            models,
            self.feed,
            self.options.run_options(),
            baseline="",
            seconds=seconds,
            limit=PATIENCE * seconds,
            min_rounds=_ROUNDS,
            reloads=LEAST_RELOADS,
            seed=self.options.seed,
        )
        if latency.busy:
            return []
        base = latency[""].median_ms * 1e3
        return [
            TuningStep(
                segment=segment,
                lowering=name,
                predicted_us=round(each.predicted_us - plan.predicted_us, 1),
                measured_us=round(base * (latency[name].ratio - 1), 1),
                low=round(base * (latency[name].low - 1), 1),
                high=round(base * (latency[name].high - 1), 1),
            )
            for name, each in plans.items()
            if name
        ]


def _alternatives(plan: Plan, others: Mapping[str, Plan], decided: SegmentPlan) -> list[str]:
    """Names of the plans that lay a segment out in another way, best predictions first, each way once."""
    known = [_emitted(plan, decided.id)]
    names: list[str] = []
    for name in sorted(others, key=lambda name: others[name].segments[decided.id].objective):
        emitted = _emitted(others[name], decided.id)
        hopeless = others[name].segments[decided.id].objective > _HOPELESS * decided.objective
        if emitted not in known and not hopeless and len(names) < _MOST:
            known.append(emitted)
            names.append(name)
    return names


def _emitted(plan: Plan, segment: int) -> tuple[Any, ...]:
    decided = plan.segments[segment]
    reads = {name: c.read for name, c in plan.consumers.items() if c.segment == segment}
    return decided.order, decided.split, decided.blocks if decided.split else (), dict(decided.lowerings), reads


def _with_segment(plan: Plan, other: Plan, segment: int) -> Plan:
    """A plan with one segment as in another."""
    segments = tuple(other.segments[s.id] if s.id == segment else s for s in plan.segments)
    consumers = {name: other.consumers[name] if c.segment == segment else c for name, c in plan.consumers.items()}
    return replace(plan, segments=segments, consumers=consumers)
