"""The whole line: load, analyse, score, select, order, lower, emit, verify, measure, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx

from ucpe_onnx.analysis.criteria import FloatArray, check_weights, score_consumers
from ucpe_onnx.analysis.select import Selection, matches, select_masks
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.calibration import rates_for
from ucpe_onnx.errors import MaskError, UsageError
from ucpe_onnx.feeds import Feeds, prepare_feeds
from ucpe_onnx.io import check_model
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask, check_masks, load_masks
from ucpe_onnx.options import Options
from ucpe_onnx.parked import Parking, complete, give_back
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import make_plan, target_for
from ucpe_onnx.planning.apply import in_input_layout
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.planning.precision import precision_of
from ucpe_onnx.planning.rates import Rates
from ucpe_onnx.planning.target import Target
from ucpe_onnx.report.layouts import Rival, rivals
from ucpe_onnx.report.report import Report, kept_share, segment_reports
from ucpe_onnx.report.runtime import RuntimeComparison, compare_in_runtime
from ucpe_onnx.report.stats import model_stats
from ucpe_onnx.report.tuning import TuningStep
from ucpe_onnx.runtime.accuracy import top1_accuracy
from ucpe_onnx.runtime.latency import LatencyReport, measure
from ucpe_onnx.runtime.session import as_session
from ucpe_onnx.runtime.verify import Verification, verify
from ucpe_onnx.source import ModelSource, Source, open_source
from ucpe_onnx.tuning import Tuner

SIMPLE = ("union", "gather", "slice")
"""Lowerings of which the best has to be beaten."""

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
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report


def prune(
    model: ModelSource,
    options: Options | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    **overrides: Any,
) -> Result:
    """Prune a model and check the result in onnxruntime.

    Args:
        model: path of an ``.onnx`` file, a ModelProto, or an onnx-graphsurgeon Graph; not changed.
        options: what to do; None for the defaults.
        progress: called with the name of each stage as it begins.
        **overrides: fields of :class:`ucpe_onnx.options.Options` that replace those of ``options``.

    Returns:
        The emitted model with its plan and report. It computes what the masked model computes; whether it was faster
        than the input is ``result.report.faster``.

    Raises:
        UcpeError: one line that says what is wrong with the model, the data or an option.
    """
    chosen = replace(options or Options(), **overrides).checked()
    with Parking() as parking:
        result = _prune(model, chosen, parking, _Stages(progress or (lambda stage: None)))
        return replace(result, model=complete(result.model))


def _prune(model: ModelSource, chosen: Options, parking: Parking, stages: _Stages) -> Result:
    """Everything that :func:`prune` does; the model that it returns may be parked."""
    with stages("load"):
        source = open_source(model, parking)
        feeds = prepare_feeds(source, chosen)
        _check_expansion(source, feeds, chosen)
        accuracy = _accuracy(source.model, feeds, chosen)
    with stages("analyse"):
        traced = trace(source.model)
        check_weights(traced)
        _check_patterns(chosen, traced)
    job = _Job(source, traced, chosen, feeds, stages, parking, accuracy)
    best: Result | None = None
    for candidate in job.candidates():
        trials = [job.trial(name, plan) for name, plan in candidate.plans.items()]
        with stages("measure"):
            winner, latency = job.contest(trials)
        with stages("report"):
            report = job.report(winner, candidate, latency)
        if best is None or _is_faster(report, best.report):
            best = Result(winner.emitted, winner.plan, report)
        if best.report.faster or latency is None:
            break
    assert best is not None, "there is always a first candidate"
    if chosen.allow_slower and best.report.speed is not None and best.report.speed.slower:
        return job.in_input_layout(best)
    return best


def _check_expansion(source: Source, feeds: Feeds, options: Options) -> None:
    """With its functions expanded, a model must compute what it computes as it is."""
    if source.original is not None:
        found = verify(source.model, source.original, feeds.for_verification(), options.run_options())
        found.raise_if_failed(f"{source.label}: with its functions expanded")


def _check_patterns(options: Options, traced: Trace) -> None:
    """A pattern that matches nothing is a typing error: going on would prune what the user wants to keep."""
    for flag, patterns in (("--ignore", options.ignore), ("--ratio-for", [p for p, _ in options.ratio_for])):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in traced.consumers):
                raise UsageError(
                    f"{flag} {pattern!r} matches no consumer; `python -m ucpe_onnx.inspect MODEL` lists their names"
                )


def _accuracy(model: onnx.ModelProto, feeds: Feeds, options: Options) -> float | None:
    """Top-1 accuracy on the user's data; None without labels."""
    if feeds.dataset is None or feeds.dataset.labels is None:
        return None
    return top1_accuracy(as_session(model, options.run_options()), feeds.dataset)


def _is_faster(report: Report, other: Report) -> bool:
    return report.speed is not None and other.speed is not None and report.speed.ratio < other.speed.ratio


class _Stages:
    """Announces stages and keeps their times."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._announce(name)
        start = time.perf_counter()
        yield
        give_back()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)


@dataclass(frozen=True)
class _Candidate:
    """Plans to try for the same masks, by lowering; what the masks come from, and the share that they were to drop."""

    mode: str
    plans: Mapping[str, Plan]
    asked: float | None = None


@dataclass(frozen=True)
class _Trial:
    """A plan carried out and verified."""

    name: str
    plan: Plan
    emitted: onnx.ModelProto
    verification: Verification
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True)
class _Job:
    """What all stages of one run share; ``accuracy`` is the input's, None without labels."""

    source: Source
    traced: Trace
    options: Options
    feeds: Feeds
    stages: _Stages
    parking: Parking
    accuracy: float | None
    steps: list[TuningStep] = field(default_factory=list)

    def candidates(self) -> Iterator[_Candidate]:
        """The plans to try, best first; later ones are made only if the earlier were not faster than the input."""
        options = self.options
        if options.plan is not None:
            yield _Candidate("plan", {"plan": self._given_plan(options.plan)})
            return
        if options.masks is not None:
            yield _Candidate("masks", self._plans(self._given_masks(options.masks), fill=False))
            return
        with self.stages("score"):
            scores = score_consumers(self.traced, options.criterion, options.seed)
        modes = ("unconstrained", "constrained") if options.mode == "auto" else (options.mode,)
        for mode in modes:
            constrained = mode == "constrained"
            selection = Selection(options.ratio, options.scope, constrained, options.ignore, options.ratio_for)
            masks = select_masks(self.traced, scores, selection)
            plans = self._plans(masks, fill=constrained or options.mode == "auto", scores=scores)
            channels = sum(consumer.channels for consumer in self.traced.consumers.values())
            asked = sum(int((~mask).sum()) for mask in masks.values()) / max(channels, 1)
            yield _Candidate(mode, plans, asked)

    def _plans(
        self, masks: Mapping[str, Mask], *, fill: bool, scores: Mapping[str, FloatArray] | None = None
    ) -> dict[str, Plan]:
        """The plan that was asked for, and what it has to beat: the best of those with one lowering for all."""
        with self.stages("plan"):
            settings = self._settings(fill=fill)
            plans = {self.options.lowering: make_plan(self.traced, masks, settings, scores)}
        if self.options.lowering != "auto" or not self.options.bench_seconds:
            return plans
        if self.options.measure:
            with self.stages("tune"):
                tuner = Tuner(self.source.model, self.traced, self.feeds.single, self.options, self.parking)
                tuned, steps = tuner.tuned(plans["auto"], masks, settings, scores)
                plans = {"measured": tuned, **plans} if any(step.taken for step in steps) else plans
                self.steps[:] = steps
        with self.stages("plan"):
            simple = {name: make_plan(self.traced, masks, replace(settings, lowering=name), scores) for name in SIMPLE}
        name = min(simple, key=lambda name: simple[name].predicted_us)
        if all(simple[name].layout != plan.layout for plan in plans.values()):
            plans[name] = simple[name]
        return plans

    def _given_plan(self, plan: str | os.PathLike[str] | Plan) -> Plan:
        loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
        try:
            return check_plan(loaded, self.traced, self.source.sha256)
        except MaskError as error:
            raise MaskError(f"{'the plan' if loaded is plan else plan}: {error}") from error

    def _given_masks(self, masks: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Mask]:
        channels = {name: consumer.channels for name, consumer in self.traced.consumers.items()}
        return check_masks(masks, channels) if isinstance(masks, Mapping) else load_masks(masks, channels)

    @cached_property
    def _target(self) -> tuple[Target, Rates]:
        """What the model is laid out for."""
        precision = precision_of(self.traced)
        target = target_for(self.options.providers, self.options.opt_level, precision)
        return target, rates_for(self.options.run_options(), precision, calibrate=self.options.calibrate)

    def _settings(self, *, fill: bool) -> Settings:
        target, rates = self._target
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

    def trial(self, name: str, plan: Plan) -> _Trial:
        """Carry a plan out, and check the result."""
        with self.stages("emit"):
            emitted = self.parking.park(emit(self.source.model, self.traced, plan, self.options.watch()))
            check_model(emitted, f"{self.source.label}: the emitted model")
        with self.stages("verify"):
            return _Trial(name, plan, emitted, self.verify(emitted, plan))

    def contest(self, trials: Sequence[_Trial]) -> tuple[_Trial, LatencyReport | None]:
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
        reference = self.parking.park(masked_model(self.source.model, plan.masks()))
        give_back()
        options = self.options
        found = verify(
            emitted,
            reference,
            self.feeds.for_verification(),
            options.run_options(),
            rtol=options.rtol,
            atol=options.atol,
        )
        self.parking.discard(reference, self.source.model)
        found.raise_if_failed(self.source.label)
        return found

    def report(self, trial: _Trial, candidate: _Candidate, latency: LatencyReport | None) -> Report:
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
            tuning=tuple(self.steps),
            rivals=trial.rivals,
            rates=self._target[1].origin,
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
            report = self.report(trial, _Candidate(best.report.mode, {}, best.report.asked), latency)
        return Result(trial.emitted, trial.plan, report) if _is_faster(report, best.report) else best

    def _in_runtime(self, emitted: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> RuntimeComparison | None:
        """What onnxruntime makes of both models; a job that does not measure does not ask."""
        if not self.options.bench_seconds:
            return None
        return compare_in_runtime(self.source.model, emitted, self.options.run_options(), shapes, self.traced)

    def _accuracies(self, emitted: onnx.ModelProto) -> dict[str, float] | None:
        after = _accuracy(emitted, self.feeds, self.options)
        return None if self.accuracy is None or after is None else {"before": self.accuracy, "after": after}
