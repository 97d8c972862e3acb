"""Trials: a plan carried out and verified, measured against others, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx

from ucpe_onnx.analysis.counts import ModelStats, model_stats
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.compensation.stage import CompensationOutcome
from ucpe_onnx.errors import UcpeError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.model.files import check_model
from ucpe_onnx.model.offload import trim_memory
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.apply import in_input_layout
from ucpe_onnx.run.context import Run
from ucpe_onnx.runtime.latency import CandidateLatency, LatencyReport
from ucpe_onnx.runtime.verify import Verification, verify

if TYPE_CHECKING:
    from ucpe_onnx.run.candidates import Candidate

_TIE = 0.01
"""A trial that is less than so much faster is not preferred to the plan that was asked for."""

_MOST_GAIN = 2.0
"""Times that latency may fall further than the work that is left: caches and layouts of kernels explain so much."""

_RELOADS = 6
"""Loads of all sessions in a measurement: where a session's memory lies makes a percent or two while it lives."""


@dataclass(frozen=True)
class LeftAlone:
    """A segment that stays as it is in the input, since the model that was emitted with it pruned was wrong.

    Attributes:
        segment: its number.
        producers: names of its producers.
        consumers: names of its consumers.
        reason: what verification, ``onnx.checker`` or onnxruntime said.
    """

    segment: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """A plan carried out and verified.

    Attributes:
        name: the lowering that the plan was made with, or what else to call it.
        plan: the decisions.
        emitted: the model.
        verification: its comparison with the masked model.
        alone: the segments that the plan leaves alone, since it could not be verified with them.
        refused: what was said of other layouts for the same masks that could not be verified, by their names.
    """

    name: str
    plan: Plan
    emitted: onnx.ModelProto
    verification: Verification
    alone: tuple[LeftAlone, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rival:
    """Another trial of the same masks that was timed beside the fastest.

    Attributes:
        name: the lowering that it was made with.
        predicted_us: how much longer it was predicted to take than the fastest, in microseconds.
        measured_us: how much longer it took.
    """

    name: str
    predicted_us: float
    measured_us: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """The fastest trial of a candidate, and how it compares.

    Attributes:
        candidate: where the masks come from.
        trial: the fastest.
        before: the input model in numbers.
        after: the emitted model in numbers.
        latency: its measurement as ``output`` against the ``input``; None if that was skipped.
        rivals: the other trials.
        compensation: what compensation did; None if there was none.
    """

    candidate: Candidate
    trial: Trial
    before: ModelStats
    after: ModelStats
    latency: LatencyReport | None
    rivals: tuple[Rival, ...] = ()
    compensation: CompensationOutcome | None = None

    @property
    def speed(self) -> CandidateLatency | None:
        """Latency of the emitted model relative to the input."""
        return None if self.latency is None else self.latency["output"]

    @property
    def settled(self) -> bool:
        """Whether there is no need to try another candidate: this one is faster than the input, or nobody measures."""
        return self.speed is None or (self.speed.faster and self.after.lighter_than(self.before))


def carry_out(run: Run, name: str, plan: Plan) -> Trial:
    """Emit the model that a plan describes, and verify it.

    Raises:
        ModelError: the emitted model is refused by ``onnx.checker``.
        VerificationError: it does not compute what the masked model computes.
    """
    with run.stages("emit"):
        model, traced = _weighted(run, plan)
        emitted = run.offload.store(emit(model, traced, plan, run.options.watch()))
        with _discarded_if_refused(run, emitted, model):
            check_model(emitted, f"{run.source.label}: the emitted model", shapes=run.source.complete)
        if run.source.mending is not None:
            emitted = run.offload.store(run.source.mending.undone(emitted))
    with run.stages("verify"), _discarded_if_refused(run, emitted, model):
        return Trial(name, plan, emitted, _verified(run, emitted, plan))


@contextmanager
def _discarded_if_refused(run: Run, emitted: onnx.ModelProto, model: onnx.ModelProto) -> Iterator[None]:
    """Remove what an emitted model has put into files, but for what it shares with its original, if it is wrong."""
    try:
        yield
    except UcpeError:
        run.offload.discard(emitted, model)
        raise


def fastest(run: Run, candidate: Candidate, trials: Sequence[Trial]) -> Outcome:
    """Measure trials against each other and the input; without a measurement the first one counts as the fastest."""
    shapes = run.feeds.shapes()
    with run.stages("measure"):
        latency = _latency(run, trials)
        if latency is None:
            return Outcome(candidate, trials[0], run.counts, model_stats(trials[0].emitted, shapes), None)
        ratios = {trial.name: latency[trial.name].ratio for trial in trials}
        winner = min(trials, key=lambda trial: ratios[trial.name] * (1 if trial is trials[0] else 1 + _TIE))
        after = model_stats(winner.emitted, shapes)
    latency = _believed(latency, run.counts, after, winner.name)
    rivals = _rivals(latency, trials, winner)
    return Outcome(candidate, winner, run.counts, after, latency.renamed({winner.name: "output"}), rivals)


def better(one: Outcome | None, other: Outcome) -> Outcome:
    """The faster of two outcomes; the first one where nobody has measured."""
    if one is None:
        return other
    if one.speed is None or other.speed is None or not other.speed.trusted:
        return one
    return other if other.speed.ratio < one.speed.ratio else one


def back_to_input_layout(run: Run, best: Outcome) -> Outcome:
    """With ``--allow-slower``: the masks as zero weights in the input's own layout, unless that is even slower."""
    if not run.options.allow_slower or best.speed is None or not best.speed.slower:
        return best
    trial = carry_out(run, "input layout", in_input_layout(run.traced, best.trial.plan))
    trial = replace(trial, alone=best.trial.alone, refused=best.trial.refused)
    other = fastest(run, best.candidate, [trial])
    return better(best, replace(other, compensation=best.compensation))


def _weighted(run: Run, plan: Plan) -> tuple[onnx.ModelProto, Trace]:
    """The input model with the plan's weights, and its analysis."""
    if not plan.weights:
        return run.source.model, run.traced
    model = run.offload.store(plan.weighted(run.source.model))
    return model, trace(model)


def _verified(run: Run, emitted: onnx.ModelProto, plan: Plan) -> Verification:
    """Compare an emitted model with the masked model."""
    weighted = plan.weighted(run.source.model)
    reference = run.offload.store(masked_model(weighted, plan.masks()))
    trim_memory()
    options = run.options
    feeds = run.feeds.for_verification()
    try:
        found = verify(emitted, reference, feeds, options.run_options(), rtol=options.rtol, atol=options.atol)
    finally:
        run.offload.discard(reference, run.source.model)
    found.raise_if_failed(run.source.label)
    return found


def _latency(run: Run, trials: Sequence[Trial]) -> LatencyReport | None:
    """Time trials in turns with the input; None if nobody asks, or if nothing was removed."""
    if not run.options.measures or not any(trial.plan.masks() for trial in trials):
        return None
    return run.timed({trial.name: trial.emitted for trial in trials}, run.options.timing_seconds, _RELOADS)


def _believed(latency: LatencyReport, before: ModelStats, after: ModelStats, name: str) -> LatencyReport:
    """The measurement, unless it says that far more time was saved than work."""
    shares = [after.bytes / max(before.bytes, 1)]
    if before.macs and after.macs is not None:
        shares.append(after.macs / before.macs)
    least, ratio = min(*shares, 1.0), latency[name].ratio
    if latency.busy or ratio * _MOST_GAIN >= least:
        return latency
    return latency.disbelieved(
        f"x{ratio:.3f} was measured, but no less than {least:.0%} of the work is left: something else used the cores"
    )


def _rivals(latency: LatencyReport, trials: Sequence[Trial], winner: Trial) -> tuple[Rival, ...]:
    """Compare all other trials with the fastest; of predictions only differences mean anything."""
    base = latency[latency.baseline].median_ms * 1e3
    return tuple(
        Rival(
            trial.name,
            round(trial.plan.predicted_us - winner.plan.predicted_us, 1),
            round(base * (latency[trial.name].ratio - latency[winner.name].ratio), 1),
        )
        for trial in trials
        if trial is not winner
    )
