"""The whole line: load, analyse, score, select, order, lower, emit, verify, measure, compensate, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.errors import UsageError
from ucpe_onnx.model.offload import Offload, complete
from ucpe_onnx.model.source import ModelSource, Source, open_source
from ucpe_onnx.options import Options
from ucpe_onnx.run.candidates import candidates
from ucpe_onnx.run.feeds import Feeds, prepare_feeds
from ucpe_onnx.run.job import Job, Result, Stages, is_faster, top1
from ucpe_onnx.runtime.verify import verify
from ucpe_onnx.selection.criteria import check_weights
from ucpe_onnx.selection.select import matches

__all__ = ["Result", "prune"]


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
    with Offload() as offload:
        result = _prune(model, chosen, offload, Stages(progress or (lambda stage: None)))
        return replace(result, model=complete(result.model))


def _prune(model: ModelSource, chosen: Options, offload: Offload, stages: Stages) -> Result:
    """Everything that :func:`prune` does; the model that it returns may be offloaded."""
    with stages("load"):
        source = open_source(model, offload)
        feeds = prepare_feeds(source, chosen)
        _check_expansion(source, feeds, chosen)
        accuracy = top1(source.model, feeds, chosen)
    with stages("analyse"):
        traced = trace(source.model)
        check_weights(traced)
        _check_patterns(chosen, traced)
    job = Job(source, traced, chosen, feeds, stages, offload, accuracy)
    best: Result | None = None
    for candidate in candidates(job):
        trials = [job.trial(name, plan) for name, plan in candidate.plans.items()]
        with stages("measure"):
            winner, latency = job.contest(trials)
        with stages("report"):
            report = job.report(winner, candidate, latency)
        if best is None or is_faster(report, best.report):
            best = Result(winner.emitted, winner.plan, report)
        if best.report.faster or latency is None:
            break
    assert best is not None, "there is always a first candidate"
    best = job.compensated(best)
    if chosen.sensitivity:
        best = replace(best, report=replace(best.report, sensitivity=job.sensitivity()))
    if chosen.save_stats is not None:
        best = replace(best, statistics=job.statistics)
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
