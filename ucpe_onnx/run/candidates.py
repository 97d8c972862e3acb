"""The plans that a job tries: from a plan or masks that are given, or from scores and a selection."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.compensation.sequential import compensate
from ucpe_onnx.errors import MaskError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask, check_masks, load_masks
from ucpe_onnx.model.new_weights import NewWeight, with_weights
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.run.budget import meet_budget
from ucpe_onnx.run.job import Candidate, Job
from ucpe_onnx.run.tuning import Tuner
from ucpe_onnx.selection.criteria import FloatArray, score_consumers
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA, score_with_data
from ucpe_onnx.selection.select import Selection, select_masks

COPYING = ("gather", "slice")
"""Lowerings for all consumers of which the better has to be beaten, and so has ``union``.

Zero weights are measured whatever is predicted of them: they trade arithmetic for copies, and how dear copies are
depends on what else is in the caches.
"""


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
        masks = select_masks(job.traced, scores, selection) if options.steps == 1 else _in_steps(job, selection)
        plans = plans_for(job, masks, fill=constrained or options.mode == "auto", scores=scores)
        yield Candidate(mode, plans, asked_share(job, masks))


def asked_share(job: Job, masks: Mapping[str, Mask]) -> float:
    """The share of all consumers' channels that masks drop."""
    channels = sum(consumer.channels for consumer in job.traced.consumers.values())
    return sum(int((~mask).sum()) for mask in masks.values()) / max(channels, 1)


def plans_for(
    job: Job, masks: Mapping[str, Mask], *, fill: bool, scores: Mapping[str, FloatArray] | None = None
) -> dict[str, Plan]:
    """The plan that was asked for, and what it has to beat: zero weights, and the better way to copy, for all."""
    options = job.options
    with job.stages("plan"):
        settings = job.settings(fill=fill)
        plans = {options.lowering: make_plan(job.traced, masks, settings, scores)}
    if options.lowering != "auto" or not options.bench_seconds:
        return plans
    if options.measure:
        with job.stages("tune"):
            tuner = Tuner(job.source.model, job.traced, job.feeds.single, options, job.offload)
            tuned, steps = tuner.tuned(plans["auto"], masks, settings, scores)
            plans = {"measured": tuned, **plans} if any(step.taken for step in steps) else plans
            job.steps[:] = steps
    with job.stages("plan"):
        simple = {
            name: make_plan(job.traced, masks, replace(settings, lowering=name), scores) for name in ("union", *COPYING)
        }
    for name in ("union", min(COPYING, key=lambda name: simple[name].predicted_us)):
        if all(simple[name].layout != plan.layout for plan in plans.values()):
            plans[name] = simple[name]
    return plans


def _in_steps(job: Job, selection: Selection) -> dict[str, Mask]:
    """Masks by an iterative schedule: what has gone stays gone, what is left is judged in the network as it is then.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section
    3.4, with a least squares refit between the rounds for training.
    """
    options, model, traced = job.options, job.source.model, job.traced
    masks: dict[str, Mask] = {}
    for step in range(1, options.steps + 1):
        share = step / options.steps
        scores = score_with_data(traced, options.criterion, job.statistics_of(job.feeds.dataset, model, traced))
        for name, mask in masks.items():
            scores[name] = np.where(mask, scores[name], -np.inf)
        grown = replace(
            selection,
            ratio=selection.ratio * share,
            ratio_for=tuple((pattern, ratio * share) for pattern, ratio in selection.ratio_for),
        )
        masks = select_masks(job.traced, scores, grown)
        if step < options.steps:
            model = _refitted(job, masks)
            traced = trace(model)
    return masks


def _refitted(job: Job, masks: Mapping[str, Mask]) -> onnx.ModelProto:
    """The masked model, refitted unless that was refused."""
    assert job.feeds.dataset is not None, "the options were checked"
    weights = {}
    if job.compensates:
        with job.stages("compensate"):
            batches = list(job.feeds.dataset.counted_batches())
            found = compensate(
                job.traced,
                masks,
                [feed for feed, _ in batches],
                job.options.run_options(),
                real=[count for _, count in batches],
                source=job.feeds.dataset.source,
                seed=job.options.seed,
            )
            weights = {name: NewWeight.of(value) for name, value in found.weights.items()}
    return masked_model(with_weights(job.source.model, weights), masks)


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
        loaded.weighted(job.source.model)
        return check_plan(loaded, job.traced, job.source.sha256)
    except MaskError as error:
        raise MaskError(f"{'the plan' if loaded is plan else plan}: {error}") from error


def _given_masks(job: Job, masks: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Mask]:
    channels = {name: consumer.channels for name, consumer in job.traced.consumers.items()}
    return check_masks(masks, channels) if isinstance(masks, Mapping) else load_masks(masks, channels)
