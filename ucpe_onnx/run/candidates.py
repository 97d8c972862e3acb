"""The candidates of a run: masks that are given, scored or budgeted, and the plans to try for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.budget.search import BudgetOutcome
from ucpe_onnx.compensation.sequential import compensate
from ucpe_onnx.errors import REFUSALS, MaskError
from ucpe_onnx.lowerings import LOWERINGS, UNSAID, Reads
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask, check_masks, load_masks
from ucpe_onnx.model.new_weights import NewWeight, with_weights
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.run.budget import meet_budget
from ucpe_onnx.run.context import Run
from ucpe_onnx.run.tuning import Tuner, TuningStep
from ucpe_onnx.selection.criteria import FloatArray, score_consumers
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA, score_with_data
from ucpe_onnx.selection.select import Selection, select_masks
from ucpe_onnx.selection.tied import tied_scores

COPYING = tuple(name for name, lowering in LOWERINGS.items() if lowering.reads == Reads.SELECTION)
"""Lowerings for all consumers of which the better has to be beaten, and so have zero weights for all.

Zero weights are measured whatever is predicted of them: they trade arithmetic for copies, and how dear copies are
depends on what else is in the caches.
"""


@dataclass(frozen=True)
class Candidate:
    """Plans to try for the same masks.

    Attributes:
        mode: what the masks come from: ``unconstrained``, ``constrained``, ``auto`` (a budget), ``masks`` or ``plan``.
        plans: by lowering; the one that was asked for comes first.
        asked: the share of all channels that the masks were to drop; None for given masks.
        budget: how a budget was met, if there was one.
        tuning: what was timed to choose lowerings.
    """

    mode: str
    plans: Mapping[str, Plan]
    asked: float | None = None
    budget: BudgetOutcome | None = None
    tuning: tuple[TuningStep, ...] = ()


def candidates(run: Run) -> Iterator[Candidate]:
    """The plans to try, best first; later ones are made only if the earlier were not faster than the input."""
    options = run.options
    if options.plan is not None:
        yield Candidate("plan", {"plan": _given_plan(run, options.plan)})
    elif options.masks is not None:
        yield laid_out(run, "masks", _given_masks(run, options.masks), options.lowering, fill=False)
    elif options.has_budget:
        met = meet_budget(run)
        found = laid_out(run, options.mode, met.masks, met.lowering, fill=met.fill)
        yield replace(found, asked=asked_share(run, met.masks), budget=met.outcome)
    else:
        yield from _scored(run)


def _scored(run: Run) -> Iterator[Candidate]:
    """Masks from a criterion and a ratio; with ``auto`` constrained ones if unconstrained ones were not faster."""
    options, scores = run.options, _scores(run)
    assert options.ratio is not None, "checked options have one where no target decides"
    for mode in ("unconstrained", "constrained") if options.mode == "auto" else (options.mode,):
        constrained = mode == "constrained"
        selection = Selection(
            options.ratio, options.scope, constrained, options.ignore, options.ratio_for, options.max_ratio
        )
        masks = select_masks(run.offered, scores, selection) if options.steps == 1 else _in_steps(run, selection)
        fill = constrained or options.mode == "auto"
        found = laid_out(run, mode, masks, options.lowering, fill=fill, scores=scores)
        yield replace(found, asked=asked_share(run, masks))


def asked_share(run: Run, masks: Mapping[str, Mask]) -> float:
    """The share of all consumers' channels that masks drop."""
    channels = sum(consumer.channels for consumer in run.traced.consumers.values())
    return sum(int((~mask).sum()) for mask in masks.values()) / max(channels, 1)


def laid_out(
    run: Run,
    mode: str,
    masks: Mapping[str, Mask],
    lowering: str,
    *,
    fill: bool,
    scores: Mapping[str, FloatArray] | None = None,
) -> Candidate:
    """The plan that was asked for, and what it has to beat: zero weights, and the better way to copy, for all.

    Args:
        run: what stages share.
        mode: what the masks come from.
        masks: what the consumers keep.
        lowering: how they get their channels.
        fill: whether they use all that they read.
        scores: importance of channels, which decides what else is kept where widths are rounded up.
    """
    options = run.options
    with run.stages("plan"):
        settings = run.settings(lowering, fill=fill)
        plans = {lowering: make_plan(run.traced, masks, settings, scores)}
    if lowering != "auto" or not options.measures:
        return Candidate(mode, plans)
    steps: tuple[TuningStep, ...] = ()
    if options.measure:
        with run.stages("tune"):
            tuner = Tuner(run.source.model, run.traced, run.feeds.single, options, run.offload)
            with suppress(*REFUSALS):  # what is wrong with a layout that does not load is found out when it is tried
                tuned, steps = tuner.tuned(plans["auto"], masks, settings, scores)
                plans = {"measured": tuned, **plans} if any(step.taken for step in steps) else plans
    with run.stages("plan"):
        simple = {
            name: make_plan(run.traced, masks, replace(settings, lowering=name), scores)
            for name in (UNSAID.name, *COPYING)
        }
    for name in (UNSAID.name, min(COPYING, key=lambda name: simple[name].predicted_us)):
        if all(not simple[name].emits_the_same_as(plan) for plan in plans.values()):
            plans[name] = simple[name]
    return Candidate(mode, plans, tuning=steps)


def _in_steps(run: Run, selection: Selection) -> dict[str, Mask]:
    """Masks by an iterative schedule: what has gone stays gone, what is left is judged in the network as it is then.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section
    3.4, with a least squares refit between the rounds for training.
    """
    options, model, traced = run.options, run.source.model, run.offered
    masks: dict[str, Mask] = {}
    for step in range(1, options.steps + 1):
        share = step / options.steps
        scores = score_with_data(traced, options.criterion, _read_by(run, model, traced))
        for name, mask in masks.items():
            scores[name] = np.where(mask, scores[name], -np.inf)
        grown = replace(
            selection,
            ratio=selection.ratio * share,
            ratio_for=tuple((pattern, ratio * share) for pattern, ratio in selection.ratio_for),
        )
        masks = select_masks(run.offered, scores, grown)
        if step < options.steps:
            model = _compensated_model(run, masks)
            traced = trace(model).offering(
                [name for name, consumer in run.offered.consumers.items() if consumer.prunable.all()]
            )
    return masks


def _compensated_model(run: Run, masks: Mapping[str, Mask]) -> onnx.ModelProto:
    """The masked model, compensated unless that was refused."""
    weights = {}
    if run.compensates:
        with run.stages("compensate"):
            batches = list(run.dataset.counted_batches())
            found = compensate(
                run.traced,
                masks,
                [feed for feed, _ in batches],
                run.options.run_options(),
                real=[count for _, count in batches],
                source=run.dataset.source,
                seed=run.options.seed,
            )
            weights = {name: NewWeight.of(value) for name, value in found.weights.items()}
    return masked_model(with_weights(run.source.model, weights), masks)


def _read_by(run: Run, model: onnx.ModelProto, traced: Trace) -> Statistics:
    """What the consumers of the network of a round read; that of the first round is the input."""
    return run.statistics if model is run.source.model else run.collected(model, traced, run.dataset)


def _scores(run: Run) -> dict[str, FloatArray]:
    """Importance of channels, equal for all consumers of a weight."""
    options = run.options
    if options.criterion in DATA_CRITERIA:
        statistics = run.statistics
        with run.stages("score"):
            return tied_scores(run.offered, score_with_data(run.offered, options.criterion, statistics))
    with run.stages("score"):
        return tied_scores(run.offered, score_consumers(run.offered, options.criterion, options.seed))


def _given_plan(run: Run, plan: str | os.PathLike[str] | Plan) -> Plan:
    loaded = plan if isinstance(plan, Plan) else Plan.load(plan)
    try:
        loaded.weighted(run.source.model)
        return check_plan(loaded, run.traced, run.source.sha256)
    except MaskError as error:
        raise MaskError(f"{'the plan' if loaded is plan else plan}: {error}") from error


def _given_masks(run: Run, masks: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Mask]:
    channels = {name: consumer.channels for name, consumer in run.traced.consumers.items()}
    return check_masks(masks, channels) if isinstance(masks, Mapping) else load_masks(masks, channels)
