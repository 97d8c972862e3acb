"""What all stages of a run share, and those that follow from a plan: emit, verify, measure, compensate, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx

from ucpe_onnx.activations.collector import collect
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.budget.losses import PROBING
from ucpe_onnx.budget.sensitivity import sensitivity
from ucpe_onnx.calibration import rates_for
from ucpe_onnx.compensation.stage import absorbed_plan, repaired_plan
from ucpe_onnx.errors import UsageError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.model.files import check_model
from ucpe_onnx.model.offload import Offload, trim_memory
from ucpe_onnx.model.source import Source
from ucpe_onnx.options import Options
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import target_for
from ucpe_onnx.planning.apply import in_input_layout
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.planning.precision import precision_of
from ucpe_onnx.planning.rates import Rates
from ucpe_onnx.report.budget import BudgetReport
from ucpe_onnx.report.layouts import Rival, rivals
from ucpe_onnx.report.report import Report, kept_share, segment_reports
from ucpe_onnx.report.runtime import RuntimeComparison, compare_in_runtime
from ucpe_onnx.report.sensitivity import SensitivityPoint
from ucpe_onnx.report.tuning import TuningStep
from ucpe_onnx.run.feeds import Feeds
from ucpe_onnx.runtime.accuracy import top1_accuracy
from ucpe_onnx.runtime.latency import LatencyReport, measure
from ucpe_onnx.runtime.session import as_session
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.runtime.verify import Verification, verify
from ucpe_onnx.samples.dataset import Dataset

_TIE = 0.01
"""A candidate that is less than so much faster is not preferred to the plan that was asked for."""

_RELOADS = 6
"""Loads of all sessions in a measurement: where a session's memory lies makes a percent or two while it lives."""


@dataclass(frozen=True)
class Result:
    """What :func:`prune` returns.

    Attributes:
        model: the emitted model, verified.
        plan: the decisions; ``prune(model, plan=plan)`` repeats them bit for bit.
        report: the account.
        statistics: what the consumers read on the user's samples, if that was needed.
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report
    statistics: Statistics | None = None


class Stages:
    """Announces stages and keeps their times.

    Args:
        announce: called with the name of each stage as it begins, and with the share that is done of a long one.

    Attributes:
        seconds: time by stage.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self.seconds: dict[str, float] = {}

    def tell(self, name: str, share: float) -> None:
        """Announce how much of a stage is done."""
        self._announce(f"{name} {share:.0%}")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A stage, as a ``with`` block."""
        self._announce(name)
        start = time.perf_counter()
        yield
        trim_memory()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)


@dataclass(frozen=True)
class Candidate:
    """Plans to try for the same masks.

    Attributes:
        mode: what the masks come from.
        plans: by lowering.
        asked: the share of all channels that the masks were to drop.
        budget: how a budget was met, if there was one.
    """

    mode: str
    plans: Mapping[str, Plan]
    asked: float | None = None
    budget: BudgetReport | None = None


@dataclass(frozen=True)
class Trial:
    """A plan carried out and verified."""

    name: str
    plan: Plan
    emitted: onnx.ModelProto
    verification: Verification
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True)
class Job:
    """What all stages of one run share.

    Attributes:
        source: the input model.
        traced: its analysis.
        options: what to do.
        feeds: what models are run on.
        stages: announces and times.
        offload: keeps large weights.
        accuracy: the input's, None without labels.
        steps: what was timed to choose lowerings.
    """

    source: Source
    traced: Trace
    options: Options
    feeds: Feeds
    stages: Stages
    offload: Offload
    accuracy: float | None
    steps: list[TuningStep] = field(default_factory=list)

    @cached_property
    def target(self) -> tuple[Target, Rates]:
        """What the model is laid out for."""
        precision = precision_of(self.traced)
        target = target_for(self.options.providers, self.options.opt_level, precision)
        return target, rates_for(self.options.run_options(), precision, calibrate=self.options.calibrate)

    def settings(self, *, fill: bool) -> Settings:
        """How plans are made; ``fill``: consumers use all that they read."""
        target, rates = self.target
        return Settings(
            target=target,
            rates=rates,
            lowering=self.options.lowering,
            fill=fill,
            seconds=self.options.solver_seconds,
            seed=self.options.seed,
            options=self.options.recorded(),
            source_sha256=self.source.sha256,
        )

    @property
    def compensates(self) -> bool:
        """Whether weights are to be refitted: if that is asked for or there is data, and no plan brings its own."""
        if self.options.plan is not None:
            return False
        return self.feeds.dataset is not None if self.options.compensate is None else self.options.compensate

    @cached_property
    def statistics(self) -> Statistics:
        """What the consumers read on the user's samples.

        Raises:
            UsageError: there are none.
        """
        return self.statistics_of(self.feeds.dataset)

    def statistics_of(
        self, dataset: Dataset | None, model: onnx.ModelProto | None = None, traced: Trace | None = None
    ) -> Statistics:
        """What the consumers of the input model, or of another one with the same inputs, read on samples."""
        if dataset is None:
            raise UsageError(f"--criterion {self.options.criterion} needs samples: give them with --data")
        with self.stages("collect"):
            return collect(
                self.source.model if model is None else model,
                self.traced if traced is None else traced,
                dataset,
                self.options.run_options(),
                ranks=self.options.criterion == "hrank",
                seed=self.options.seed,
                progress=lambda share: self.stages.tell("collect", share),
            )

    def sensitivity(self) -> tuple[SensitivityPoint, ...]:
        """How much the outputs mind the loss of channels, segment by segment."""
        assert self.feeds.dataset is not None, "the options were checked"
        known, probing = self.feeds.dataset.apart(PROBING)
        statistics = self.statistics_of(known)
        with self.stages("sensitivity"):
            return sensitivity(
                self.source.model,
                self.traced,
                statistics,
                probing,
                options=self.options.run_options(),
                progress=lambda share: self.stages.tell("sensitivity", share),
            )

    def compensated(self, best: Result) -> Result:
        """The result with weights refitted, if that is asked for and brings its outputs nearer to the original's.

        Shapes stay, and with them the latency that was measured.
        """
        if not self.compensates or not best.plan.masks():
            return best
        with self.stages("compensate"):
            if self.feeds.dataset is None:
                plan, repair = absorbed_plan(self.traced, best.plan)
            else:
                plan, repair = repaired_plan(
                    self.source.model,
                    self.traced,
                    best.plan,
                    self.feeds.dataset,
                    self.options.run_options(),
                    seed=self.options.seed,
                    progress=lambda share: self.stages.tell("compensate", share),
                )
        if not plan.weights:
            return replace(best, report=replace(best.report, repair=repair))
        trial = self.trial(best.report.layout, plan)
        with self.stages("report"):
            shapes = self.feeds.shapes()
            report = replace(
                best.report,
                verification=trial.verification,
                after=model_stats(trial.emitted, shapes),
                runtime=self._in_runtime(trial.emitted, shapes),
                accuracy=self._accuracies(trial.emitted),
                repair=repair,
            )
        return replace(best, model=trial.emitted, plan=plan, report=report)

    def trial(self, name: str, plan: Plan) -> Trial:
        """Carry a plan out, and check the result."""
        with self.stages("emit"):
            model, traced = self._weighted(plan)
            emitted = self.offload.store(emit(model, traced, plan, self.options.watch()))
            check_model(emitted, f"{self.source.label}: the emitted model")
        with self.stages("verify"):
            return Trial(name, plan, emitted, self.verify(emitted, plan))

    def _weighted(self, plan: Plan) -> tuple[onnx.ModelProto, Trace]:
        """The input model with the plan's weights, and its analysis."""
        if not plan.weights:
            return self.source.model, self.traced
        model = self.offload.store(plan.weighted(self.source.model))
        return model, trace(model)

    def contest(self, trials: Sequence[Trial]) -> tuple[Trial, LatencyReport | None]:
        """The fastest of several, which the report of the measurement calls ``output``."""
        if not self.options.bench_seconds:
            return trials[0], None
        models = {"input": self.source.model, **{trial.name: trial.emitted for trial in trials}}
        latency = measure(
            models,
            self.feeds.single,
            self.options.run_options(),
            baseline="input",
            seconds=self.options.bench_seconds,
            reloads=_RELOADS,
            seed=self.options.seed,
        )
        predicted = {trial.name: trial.plan.predicted_us for trial in trials}
        winner = min(trials, key=lambda trial: latency[trial.name].ratio * (1 if trial is trials[0] else 1 + _TIE))
        others = rivals(latency, predicted, winner.name)
        return replace(winner, rivals=others), latency.renamed({winner.name: "output"})

    def verify(self, emitted: onnx.ModelProto, plan: Plan) -> Verification:
        """Compare the emitted model with the masked model."""
        weighted = plan.weighted(self.source.model)
        reference = self.offload.store(masked_model(weighted, plan.masks()))
        trim_memory()
        options = self.options
        found = verify(
            emitted,
            reference,
            self.feeds.for_verification(),
            options.run_options(),
            rtol=options.rtol,
            atol=options.atol,
        )
        self.offload.discard(reference, self.source.model)
        found.raise_if_failed(self.source.label)
        return found

    def report(self, trial: Trial, candidate: Candidate, latency: LatencyReport | None) -> Report:
        """Put everything together."""
        shapes = self.feeds.shapes()
        return Report(
            source=self.source.label,
            mode=candidate.mode,
            layout=trial.name,
            before=replace(model_stats(self.source.model, shapes), bytes=self.source.size),
            after=model_stats(trial.emitted, shapes),
            kept=kept_share(trial.plan),
            asked=candidate.asked,
            budget=candidate.budget,
            tuning=tuple(self.steps),
            rivals=trial.rivals,
            rates=self.target[1].origin,
            segments=segment_reports(self.traced, trial.plan),
            verification=trial.verification,
            latency=latency,
            accuracy=self._accuracies(trial.emitted),
            seconds=self.stages.seconds,
            runtime=self._in_runtime(trial.emitted, shapes),
        )

    def in_input_layout(self, best: Result) -> Result:
        """The masks as zero weights and nothing removed, unless that is even slower."""
        trial = self.trial("input layout", in_input_layout(self.traced, best.plan))
        with self.stages("measure"):
            trial, latency = self.contest([trial])
        with self.stages("report"):
            report = self.report(trial, Candidate(best.report.mode, {}, best.report.asked), latency)
            report = replace(report, repair=best.report.repair, budget=best.report.budget)
        return (
            replace(best, model=trial.emitted, plan=trial.plan, report=report)
            if is_faster(report, best.report)
            else best
        )

    def _in_runtime(self, emitted: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> RuntimeComparison | None:
        """What onnxruntime makes of both models; a job that does not measure does not ask."""
        if not self.options.bench_seconds:
            return None
        return compare_in_runtime(self.source.model, emitted, self.options.run_options(), shapes, self.traced)

    def _accuracies(self, emitted: onnx.ModelProto) -> dict[str, float] | None:
        after = top1(emitted, self.feeds, self.options)
        return None if self.accuracy is None or after is None else {"before": self.accuracy, "after": after}


def top1(model: onnx.ModelProto, feeds: Feeds, options: Options) -> float | None:
    """Top-1 accuracy on the user's data; None without labels."""
    if feeds.test is None or feeds.test.labels is None:
        return None
    return top1_accuracy(as_session(model, options.run_options()), feeds.test)


def is_faster(report: Report, other: Report) -> bool:
    """Whether one result was measured to be faster than another."""
    return report.speed is not None and other.speed is not None and report.speed.ratio < other.speed.ratio
