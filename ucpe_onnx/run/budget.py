"""Budgets as a stage of the run: from ``--target-latency`` and its like to masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx

from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.budget.losses import PROBING, Losses, measure_losses
from ucpe_onnx.budget.problem import Problem
from ucpe_onnx.budget.search import BudgetOutcome, meet
from ucpe_onnx.compensation.stage import compensated_plan
from ucpe_onnx.errors import REFUSALS, BusyError, DataError, ModelError, UsageError
from ucpe_onnx.lowerings import UNSAID, selection
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import with_weights
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.lower import AUTO
from ucpe_onnx.run.context import Run
from ucpe_onnx.run.verified import verified_trial
from ucpe_onnx.runtime.accuracy import output_agreement, top1_accuracy
from ucpe_onnx.runtime.latency import LEAST_RELOADS, LatencyReport
from ucpe_onnx.runtime.session import as_session
from ucpe_onnx.samples.dataset import Dataset

_LOOKS = 5
"""Budgets that are tried for a largest loss of accuracy, each half as far from the answer as the one before."""

_TIGHTEST = 0.2
_HELD_OUT = 4
"""Every 4th sample judges accuracy while a budget is searched for, and nothing is fitted to it."""


@dataclass(frozen=True)
class Met:
    """What came of a budget.

    Attributes:
        masks: what the consumers keep.
        fill: whether consumers use what they read anyway.
        lowering: how they get their channels.
        outcome: the account.
    """

    masks: Mapping[str, Mask]
    fill: bool
    lowering: str
    outcome: BudgetOutcome


def meet_budget(run: Run) -> Met:
    """Choose masks for the budget that the options ask for.

    Raises:
        UsageError: nothing can be pruned, or not so much.
        DataError: samples are too few to hold some out.
        ModelError: nothing keeps to the accuracy that was asked for, or operations can't be counted.
    """
    options = run.options
    search = _Search(run, _problem(run))
    if options.max_accuracy_drop is not None:
        return search.for_accuracy(options.max_accuracy_drop)
    return search.met(*next((kind, asked) for kind, asked in options.budgets().items() if asked is not None))


def _problem(run: Run) -> Problem:
    options = run.options
    return Problem(
        label=run.source.label,
        traced=run.offered,
        losses=_losses(run),
        target=run.target,
        rates=run.rates,
        mode=options.mode,
        ignore=options.ignore,
        ratio_for=options.ratio_for,
        max_ratio=options.max_ratio,
    )


def _losses(run: Run) -> Losses:
    """What dropping channels costs the outputs, without a look at samples that judge accuracy."""
    if run.feeds.dataset is None:
        probing, statistics = None, Statistics({}, 0)
    elif run.options.max_accuracy_drop is not None:
        known, probing = _held_out(run.feeds.dataset)[0].apart(PROBING)
        statistics = run.statistics_on(known)
    else:
        known, probing = run.fitted_and_probing
        statistics = run.statistics_on(known)
    with run.stages("score"):
        return measure_losses(
            run.source.model,
            run.offered,
            statistics,
            probing,
            options=run.options.run_options(),
            progress=lambda share: run.stages.tell("score", share),
            macs=run.counts.macs,
        )


def _held_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The samples that everything is fitted to, and those that accuracy is judged on."""
    fitted, judged = dataset.split(_HELD_OUT)
    if not fitted.samples or not judged.samples:
        raise DataError(
            f"{dataset.source}: every {_HELD_OUT}th sample is held out to judge accuracy on; give at least"
            f" {_HELD_OUT} samples, as that many feeds if it is feeds, for --max-accuracy-drop"
        )
    return fitted, judged


@dataclass(frozen=True)
class _Search:
    """Everything that several budgets for one model share."""

    run: Run
    problem: Problem

    def met(self, kind: str, asked: float) -> Met:
        """The best choice that meets one budget."""
        run = self.run
        with run.stages("choose"):
            knapsack = self.problem.knapsack(kind)
            best, tries = meet(
                knapsack, asked, self._cost_of(kind), seconds=run.options.solver_seconds, seed=run.options.seed
            )
        if best is None:
            raise UsageError(
                f"--target-{kind} {asked}: {run.source.label} can't be pruned that far; what may go is listed by"
                " `python -m ucpe_onnx.inspect MODEL`, or choose a larger target"
            )
        return Met(best.chosen.masks, self._fills(), self._lowering(kind), BudgetOutcome.of(kind, asked, best, tries))

    def for_accuracy(self, drop: float) -> Met:
        """The tightest budget that loses no more than so many points, judged on samples that are held out."""
        run, kind = self.run, "latency" if self.run.options.measures else "macs"
        self.problem.knapsack(kind)  # raises if there is nothing to choose from, which no larger budget changes
        low, high = _TIGHTEST, 1.0
        found: Met | None = None
        for look in range(_LOOKS):
            run.stages.tell("accuracy", look / _LOOKS)
            asked = (low + high) / 2
            try:
                met = self.met(kind, asked)
            except UsageError:
                low = asked
                continue
            lost = self._points_lost(met)
            if lost <= drop:
                judges = _held_out(run.dataset)[1].samples
                high, found = asked, replace(met, outcome=replace(met.outcome, points_lost=lost, held_out=judges))
            else:
                low = asked
        if found is None:
            raise ModelError(
                f"{run.source.label}: nothing was found that loses at most {drop} points; allow more with"
                " --max-accuracy-drop, or give more --data"
            )
        return found

    def _points_lost(self, met: Met) -> float:
        """Points of top-1 accuracy, or of agreement with the original, on held-out samples after compensation."""
        run = self.run
        fitted, judged = _held_out(run.dataset)
        options = run.options.run_options()
        with run.stages("accuracy"):
            plan = self._plan(met.masks, met.lowering, fill=met.fill)
            if run.compensates:
                plan, _ = compensated_plan(run.source.model, run.traced, plan, fitted, options, seed=run.options.seed)
            pruned = as_session(masked_model(with_weights(run.source.model, plan.weights), plan.masks()), options)
            original = as_session(run.source.model, options)
            if judged.labels is None:
                return 100 * (1 - output_agreement(pruned, original, judged))
            return 100 * (top1_accuracy(original, judged) - top1_accuracy(pruned, judged))

    def _cost_of(self, kind: str) -> Callable[[Mapping[str, Mask]], float]:
        """The real cost of masks, over the input's."""
        return self._latency if kind == "latency" else lambda masks: self._count(masks, kind)

    def _count(self, masks: Mapping[str, Mask], kind: str) -> float:
        run, before = self.run, self.run.counts
        lowering = self._lowering(kind)
        plan = self._plan(masks, lowering, fill=self._fills())
        try:
            with run.stages("emit"):
                emitted = emit(run.source.model, run.traced, plan)
        except REFUSALS:
            emitted = self._verified(lowering, plan)
        after = model_stats(emitted, run.feeds.shapes())
        if kind == "params":
            return after.parameters / max(before.parameters, 1)
        if after.macs is None or not before.macs:
            raise ModelError(
                f"{run.source.label}: its multiply-accumulates can't be counted, since a shape is computed at run"
                " time; give --input-shapes, or take --target-params or --target-latency"
            )
        return after.macs / before.macs

    def _latency(self, masks: Mapping[str, Mask]) -> float:
        run, options = self.run, self.run.options
        lowerings = dict.fromkeys((options.lowering, UNSAID.name if options.lowering == AUTO else options.lowering))
        plans = {lowering: self._plan(masks, lowering, fill=self._fills()) for lowering in lowerings}
        try:
            found = self._timed({name: emit(run.source.model, run.traced, plan) for name, plan in plans.items()})
        except REFUSALS:
            found = self._timed({name: self._verified(name, plan) for name, plan in plans.items()})
        if found.busy:
            raise BusyError(
                f"{run.source.label}: latency can't be measured: {found.busy}; wait until the machine is idle, give"
                " --bench-seconds a larger number, or take --target-macs"
            )
        return min(found[name].ratio for name in plans)

    def _timed(self, models: Mapping[str, onnx.ModelProto]) -> LatencyReport:
        run = self.run
        with run.stages("measure"):
            stored = {name: run.offload.store(model) for name, model in models.items()}
            return run.timed(stored, run.options.timing_seconds, LEAST_RELOADS)

    def _verified(self, lowering: str, plan: Plan) -> onnx.ModelProto:
        """The model of a plan that can't be emitted or loaded as it is: its culprits will be left alone later too."""
        return verified_trial(self.run, lowering, plan, masked=False).emitted

    def _plan(self, masks: Mapping[str, Mask], lowering: str, *, fill: bool) -> Plan:
        with self.run.stages("plan"):
            return make_plan(self.run.traced, masks, self.run.settings(lowering, fill=fill))

    def _fills(self) -> bool:
        """Whether channels are kept that are read anyway, since widths are rounded up."""
        return self.run.options.mode != "unconstrained"

    def _lowering(self, kind: str) -> str:
        """Work is saved only by layers that read no more than they keep."""
        asked = self.run.options.lowering
        return selection(contiguous=False).name if kind != "latency" and asked == AUTO else asked
