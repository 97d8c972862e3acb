"""The account of one run, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ucpe_onnx.analysis.counts import ModelStats
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.compensation.stage import Repair
from ucpe_onnx.plan import Plan
from ucpe_onnx.report.budget import BudgetReport
from ucpe_onnx.report.layouts import Rival
from ucpe_onnx.report.runtime import RuntimeComparison
from ucpe_onnx.report.sensitivity import SensitivityPoint
from ucpe_onnx.report.tuning import TuningStep
from ucpe_onnx.runtime.latency import CandidateLatency, LatencyReport
from ucpe_onnx.runtime.verify import Verification


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
        reasons: why they had to.
        lowerings: number of consumers by lowering.
        objective: copy-weighted number of consumers whose channels are contiguous.
        bound: the most that any order could reach.
        status: of the solver.
    """

    id: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    slots: int
    emitted: int
    frozen: int
    reasons: tuple[str, ...]
    lowerings: Mapping[str, int]
    objective: float
    bound: float
    status: str


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
        rates: where the rates that layouts were predicted with come from.
        rivals: other layouts for the same masks that were timed.
        tuning: what was timed to choose lowerings, see :mod:`ucpe_onnx.run.tuning`.
        asked: share of the channels that the criterion was to drop; more than ``1 - kept`` where some cost nothing and
            stay, None for given masks.
        runtime: what onnxruntime made of the input and of the emitted model, None if that was not looked at.
        repair: what compensation did, None if there was none.
        budget: how a budget was met, None if there was none.
        sensitivity: how much the outputs mind the loss of channels, if that was asked for.
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
    tuning: tuple[TuningStep, ...] = ()
    rivals: tuple[Rival, ...] = ()
    rates: str = ""
    runtime: RuntimeComparison | None = None
    repair: Repair | None = None
    budget: BudgetReport | None = None
    sensitivity: tuple[SensitivityPoint, ...] = ()

    @property
    def speed(self) -> CandidateLatency | None:
        """Latency of the emitted model relative to the input."""
        return None if self.latency is None else self.latency["output"]

    @property
    def faster(self) -> bool:
        """Whether the emitted model has less to do and was measured to be faster than the input, beyond doubt.

        A model from which nothing was removed can only seem faster: of intervals at 95 %, some lie below 1 by chance.
        """
        return self.speed is not None and self.speed.faster and self._lighter

    @property
    def _lighter(self) -> bool:
        before, after = self.before, self.after
        fewer_macs = before.macs is not None and after.macs is not None and after.macs < before.macs
        return after.parameters < before.parameters or fewer_macs

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
            "rates": self.rates,
            "rivals": [rival.to_dict() for rival in self.rivals],
            "tuning": [step.to_dict() for step in self.tuning],
            "runtime": None if self.runtime is None else self.runtime.to_dict(),
            "compensation": None if self.repair is None else self.repair.to_dict(),
            "budget": None if self.budget is None else self.budget.to_dict(),
            "sensitivity": [point.to_dict() for point in self.sensitivity],
            "segments": [{**vars(s), "lowerings": dict(s.lowerings)} for s in self.segments],
            "seconds": dict(self.seconds),
        }


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
            reasons=segment.reasons,
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
