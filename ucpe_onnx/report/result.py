"""What a run returns: the model, the plan, and the account of how it came about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.counts import ModelStats
from ucpe_onnx.plan import Plan
from ucpe_onnx.report.report import Report, kept_share, segment_reports
from ucpe_onnx.report.sections import SECTIONS
from ucpe_onnx.run.context import Run, top1
from ucpe_onnx.run.trials import Outcome


@dataclass(frozen=True)
class Result:
    """What :func:`ucpe_onnx.prune` returns.

    Attributes:
        model: the emitted model, verified.
        plan: the decisions; ``prune(model, plan=plan)`` repeats them bit for bit.
        report: the account.
        statistics: what the consumers read on the user's samples, if ``save_stats`` asks for that.
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report
    statistics: Statistics | None = None


def described(run: Run, outcome: Outcome) -> Result:
    """Put everything together."""
    trial, outcome = outcome.trial, _with_budget_as_met(outcome)
    sections = tuple(found for kind in SECTIONS if (found := kind.of(run, outcome)) is not None)
    with run.stages("report"):
        report = Report(
            source=run.source.label,
            mode=outcome.candidate.mode,
            layout=trial.name,
            before=outcome.before,
            after=outcome.after,
            kept=kept_share(trial.plan),
            segments=segment_reports(run.traced, trial.plan),
            verification=trial.verification,
            latency=outcome.latency,
            accuracy=_accuracies(run, trial.emitted),
            seconds=run.stages.seconds,
            asked=outcome.candidate.asked,
            threads=run.options.run_options().used_threads,
            rates=run.rates.origin,
            sections=sections,
        )
    statistics = None if run.options.save_stats is None else run.statistics
    return Result(trial.emitted, trial.plan, report, statistics)


def _with_budget_as_met(outcome: Outcome) -> Outcome:
    """What is told of a budget is what the output takes: two numbers for one thing would only confuse.

    Latency was measured once more since the budget was searched for; what was left alone since then takes what it did.
    """
    budget, speed = outcome.candidate.budget, outcome.speed
    if budget is None:
        return outcome
    reached: float | None = None
    if budget.kind == "latency":
        reached = speed.ratio if speed is not None and speed.trusted else None
    elif outcome.trial.alone:
        reached = _share_left(budget.kind, outcome.before, outcome.after)
    if reached is None:
        return outcome
    return replace(outcome, candidate=replace(outcome.candidate, budget=replace(budget, reached=reached)))


def _share_left(kind: str, before: ModelStats, after: ModelStats) -> float | None:
    """Multiply-accumulates or parameters over the input's."""
    if kind == "params":
        return after.parameters / max(before.parameters, 1)
    return after.macs / before.macs if before.macs and after.macs is not None else None


def _accuracies(run: Run, emitted: onnx.ModelProto) -> dict[str, float] | None:
    after = top1(emitted, run.feeds, run.options)
    return None if run.accuracy is None or after is None else {"before": run.accuracy, "after": after}
