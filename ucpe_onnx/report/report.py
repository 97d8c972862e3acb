"""The account of one run, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ucpe_onnx.analysis.counts import ModelStats
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.budget.search import BudgetOutcome
from ucpe_onnx.budget.sensitivity import SensitivityPoint
from ucpe_onnx.compensation.stage import CompensationOutcome
from ucpe_onnx.plan import Plan
from ucpe_onnx.report.sections import (
    SECTIONS,
    Budget,
    Compensation,
    Layouts,
    Runtime,
    Section,
    Sensitivity,
    Unverified,
    Warnings,
)
from ucpe_onnx.run.trials import LeftAlone, Rival
from ucpe_onnx.run.tuning import TuningStep
from ucpe_onnx.runtime.latency import CandidateLatency, LatencyReport
from ucpe_onnx.runtime.optimised_pair import RuntimeComparison
from ucpe_onnx.runtime.verify import Verification

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class SegmentReport:
    """One segment in numbers.

    Attributes:
        id: number of the segment.
        producers: names of its producers.
        consumers: names of its consumers.
        slots: number of channels before.
        emitted: number of channels after.
        frozen: number of channels that had to stay.
        frozen_by: why they had to: each reason with how many channels it was the first to freeze; these add up.
        lowerings: number of consumers by lowering.
        objective: predicted time of the layers around the segment, in microseconds.
        bound: no layout is predicted to take less.
        status: OPTIMAL if objective and bound meet, else FEASIBLE.
    """

    id: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    slots: int
    emitted: int
    frozen: int
    frozen_by: Mapping[str, int]
    lowerings: Mapping[str, int]
    objective: float
    bound: float
    status: str

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why channels had to stay, each reason once."""
        return tuple(self.frozen_by)

    def to_dict(self) -> dict[str, Any]:
        """The segment for the account in JSON."""
        return {
            **vars(self),
            "frozen_by": dict(self.frozen_by),
            "reasons": list(self.reasons),
            "lowerings": dict(self.lowerings),
        }


@dataclass(frozen=True)
class Report:
    """The account of one run.

    Attributes:
        source: the input model's path or name.
        mode: ``unconstrained`` or ``constrained`` for chosen masks (``auto`` if a budget chose from both), ``masks`` or
            ``plan`` for given ones.
        layout: the lowering that was fastest: the one that was asked for, ``measured``, or the one it had to beat.
        before: the input model in numbers.
        after: the emitted model in numbers.
        kept: share of the consumers' input channels that are kept.
        segments: one entry per segment.
        verification: comparison with the masked model.
        latency: measurement against the input model (candidates ``input`` and ``output``), None if skipped.
        accuracy: top-1 accuracy ``before`` and ``after``, None without labels.
        seconds: time by stage.
        asked: share of the channels that the criterion was to drop; more than ``1 - kept`` where some cost nothing and
            stay, None for given masks.
        threads: threads within an operator that the models were run with; 0 if that is not known.
        rates: where the rates that layouts were predicted with come from.
        sections: what else there is to tell; see :mod:`ucpe_onnx.report.sections`.
    """

    source: str
    mode: str
    layout: str
    before: ModelStats
    after: ModelStats
    kept: float
    segments: tuple[SegmentReport, ...]
    verification: Verification
    latency: LatencyReport | None
    accuracy: Mapping[str, float] | None
    seconds: Mapping[str, float]
    asked: float | None = None
    threads: int = 0
    rates: str = ""
    sections: tuple[Section, ...] = ()

    def section(self, kind: type[S]) -> S | None:
        """The section of a kind; None if the run has none."""
        return next((found for found in self.sections if isinstance(found, kind)), None)

    @property
    def budget(self) -> BudgetOutcome | None:
        """How a budget was met, None if there was none."""
        found = self.section(Budget)
        return None if found is None else found.outcome

    @property
    def compensation(self) -> CompensationOutcome | None:
        """What compensation did, None if there was none."""
        found = self.section(Compensation)
        return None if found is None else found.outcome

    @property
    def left_alone(self) -> tuple[LeftAlone, ...]:
        """Segments that stay as they were, since the emitted model could not be verified with them."""
        found = self.section(Unverified)
        return () if found is None else found.alone

    @property
    def runtime(self) -> RuntimeComparison | None:
        """What onnxruntime made of the input and of the emitted model, None if that was not looked at."""
        found = self.section(Runtime)
        return None if found is None else found.comparison

    @property
    def sensitivity(self) -> tuple[SensitivityPoint, ...]:
        """How sensitive the outputs are to the loss of channels, if that was asked for."""
        found = self.section(Sensitivity)
        return () if found is None else found.points

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before deploying the model."""
        found = self.section(Warnings)
        return () if found is None else found.texts

    @property
    def rivals(self) -> tuple[Rival, ...]:
        """Other layouts for the same masks that were timed."""
        found = self.section(Layouts)
        return () if found is None else found.rivals

    @property
    def tuning(self) -> tuple[TuningStep, ...]:
        """What was timed to choose lowerings."""
        found = self.section(Layouts)
        return () if found is None else found.tuning

    @property
    def speed(self) -> CandidateLatency | None:
        """Latency of the emitted model relative to the input."""
        return None if self.latency is None else self.latency["output"]

    @property
    def faster(self) -> bool:
        """Whether the emitted model has less to do and was measured to be faster than the input, beyond doubt.

        A model from which nothing was removed can only seem faster: of intervals at 95 %, some lie below 1 by chance.
        """
        return self.speed is not None and self.speed.faster and self.after.lighter_than(self.before)

    def copies_added(self) -> dict[str, int]:
        """Operators that only select or move channels, by type: how many more than before."""
        added = {op: self.after.copies[op] - count for op, count in self.before.copies.items()}
        return {op: count for op, count in added.items() if count}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "source": self.source,
            "mode": self.mode,
            "layout": self.layout,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "copies_added": self.copies_added(),
            "kept": self.kept,
            "asked": self.asked,
            "accuracy": None if self.accuracy is None else dict(self.accuracy),
            "verification": self.verification.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "faster": self.faster,
            "threads": self.threads,
            "rates": self.rates,
            **{key: value for kind in SECTIONS for key, value in self._entries(kind).items()},
            "segments": [s.to_dict() for s in self.segments],
            "seconds": dict(self.seconds),
        }

    def _entries(self, kind: type[Section]) -> Mapping[str, Any]:
        found = self.section(kind)
        return kind.absent if found is None else found.entries()


def segment_reports(trace: Trace, plan: Plan) -> tuple[SegmentReport, ...]:
    """Put a trace and a plan side by side, segment by segment."""
    return tuple(
        SegmentReport(
            id=segment.id,
            producers=segment.producers,
            consumers=segment.consumers,
            slots=len(segment.classes),
            emitted=len(decided.order),
            frozen=int(segment.frozen.sum()),
            frozen_by=segment.frozen_by,
            lowerings=Counter(decided.lowerings.values()),
            objective=decided.objective,
            bound=decided.bound,
            status=decided.status,
        )
        for segment, decided in zip(trace.segments, plan.segments, strict=True)
    )


def kept_share(plan: Plan) -> float:
    """Share of the consumers' input channels that are kept."""
    total = sum(c.channels for c in plan.consumers.values())
    return float(np.divide(sum(len(c.keep) for c in plan.consumers.values()), total)) if total else 1.0
