"""The plans that a job tries: from a plan or masks that are given, or from scores and a selection."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ucpe_onnx.analysis.criteria import FloatArray, score_consumers
from ucpe_onnx.analysis.data_criteria import DATA_CRITERIA, score_with_data
from ucpe_onnx.analysis.select import Selection, select_masks
from ucpe_onnx.budget.stage import meet_budget
from ucpe_onnx.compensation.weights import with_weights
from ucpe_onnx.errors import MaskError
from ucpe_onnx.job import Candidate, Job
from ucpe_onnx.masks import Mask, check_masks, load_masks
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.tuning import Tuner

SIMPLE = ("union", "gather", "slice")
"""Lowerings of which the best has to be beaten."""


def candidates(job: Job) -> Iterator[Candidate]:
    """The plans to try, best first; later ones are made only if the earlier were not faster than the input."""
    options = job.options
    if options.plan is not None:
        yield Candidate("plan", {"plan": _given_plan(job, options.plan)})
        return
    if options.masks is not None:
        yield Candidate("masks", plans_for(job, _given_masks(job, options.masks), fill=False))
        return
    if options.has_target:
        met = meet_budget(job)
        targeted = replace(job, options=replace(options, lowering=met.lowering))
        plans = plans_for(targeted, met.masks, fill=met.fill)
        yield Candidate(options.mode, plans, asked_share(job, met.masks), met.report)
        return
    scores = _scores(job)
    modes = ("unconstrained", "constrained") if options.mode == "auto" else (options.mode,)
    for mode in modes:
        constrained = mode == "constrained"
        selection = Selection(
            options.ratio, options.scope, constrained, options.ignore, options.ratio_for, options.max_ratio
        )
        masks = select_masks(job.traced, scores, selection)
        plans = plans_for(job, masks, fill=constrained or options.mode == "auto", scores=scores)
        yield Candidate(mode, plans, asked_share(job, masks))


def asked_share(job: Job, masks: Mapping[str, Mask]) -> float:
    """The share of all consumers' channels that masks drop."""
    channels = sum(consumer.channels for consumer in job.traced.consumers.values())
    return sum(int((~mask).sum()) for mask in masks.values()) / max(channels, 1)


def plans_for(
    job: Job, masks: Mapping[str, Mask], *, fill: bool, scores: Mapping[str, FloatArray] | None = None
) -> dict[str, Plan]:
    """The plan that was asked for, and what it has to beat: the best of those with one lowering for all."""
    options = job.options
    with job.stages("plan"):
        settings = job.settings(fill=fill)
        plans = {options.lowering: make_plan(job.traced, masks, settings, scores)}
    if options.lowering != "auto" or not options.bench_seconds:
        return plans
    if options.measure:
        with job.stages("tune"):
            tuner = Tuner(job.source.model, job.traced, job.feeds.single, options, job.parking)
            tuned, steps = tuner.tuned(plans["auto"], masks, settings, scores)
            plans = {"measured": tuned, **plans} if any(step.taken for step in steps) else plans
            job.steps[:] = steps
    with job.stages("plan"):
        simple = {name: make_plan(job.traced, masks, replace(settings, lowering=name), scores) for name in SIMPLE}
    name = min(simple, key=lambda name: simple[name].predicted_us)
    if all(simple[name].layout != plan.layout for plan in plans.values()):
        plans[name] = simple[name]
    return plans


def _scores(job: Job) -> dict[str, FloatArray]:
    options = job.options
    if options.criterion in DATA_CRITERIA:
        statistics = job.statistics
        with job.stages("score"):
            return score_with_data(job.traced, options.criterion, statistics)
    with job.stages("score"):
        return score_consumers(job.traced, options.criterion, options.seed)


def _given_plan(job: Job, plan: str | os.PathLike[str] | Plan) -> Plan:
    loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    try:
        with_weights(job.source.model, loaded.weights)
        return check_plan(loaded, job.traced, job.source.sha256)
    except MaskError as error:
        raise MaskError(f"{'the plan' if loaded is plan else plan}: {error}") from error


def _given_masks(job: Job, masks: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Mask]:
    channels = {name: consumer.channels for name, consumer in job.traced.consumers.items()}
    return check_masks(masks, channels) if isinstance(masks, Mapping) else load_masks(masks, channels)
