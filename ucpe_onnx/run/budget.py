"""Budgets as a stage of the job: from ``--target-latency`` and its like to the plans to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.budget.choices import ChoiceLimits, choices_for
from ucpe_onnx.budget.knapsack import Chosen, Knapsack
from ucpe_onnx.budget.losses import PROBING, Losses, measure_losses
from ucpe_onnx.budget.prices import Prices, Time, Work
from ucpe_onnx.budget.search import Try, meet
from ucpe_onnx.compensation.stage import repaired_plan
from ucpe_onnx.errors import DataError, ModelError, UsageError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import with_weights
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.widths import width_multiple
from ucpe_onnx.report.budget import BudgetReport
from ucpe_onnx.runtime.accuracy import output_agreement, top1_accuracy
from ucpe_onnx.runtime.latency import LEAST_RELOADS, measure
from ucpe_onnx.runtime.session import as_session
from ucpe_onnx.samples.dataset import Dataset
from ucpe_onnx.selection.select import matches

if TYPE_CHECKING:
    from ucpe_onnx.analysis.structure import Consumer, Segment
    from ucpe_onnx.run.job import Job

_STEPS = 16
"""Of a segment's width, without a runtime that likes some widths better: a sixteenth of it each."""

_LEAST_LEFT = 0.05
"""A budget leaves a consumer at least this share of its channels."""

_LOOKS = 5
"""Targets that are tried for a largest loss of accuracy, each half as far from the answer as the one before."""

_TIGHTEST = 0.2
_HELD_OUT = 4
"""Every so-manieth sample judges accuracy while a target is searched for, and nothing is fitted to it."""


@dataclass(frozen=True)
class Met:
    """What came of a budget.

    Attributes:
        masks: what the consumers keep.
        fill: whether consumers use what they read anyway.
        lowering: how they get their channels.
        report: the account.
    """

    masks: Mapping[str, Mask]
    fill: bool
    lowering: str
    report: BudgetReport


def meet_budget(job: Job) -> Met:
    """Choose masks for the budget that the options ask for.

    Raises:
        UsageError: nothing can be pruned, or not so much.
        DataError: samples are too few to hold some out.
        ModelError: nothing keeps to the accuracy that was asked for, or operations can't be counted.
    """
    options = job.options
    if options.max_accuracy_drop is not None:
        return _Search(job).for_accuracy(options.max_accuracy_drop)
    kind, target = next((kind, target) for kind, target in options.targets().items() if target is not None)
    return _Search(job).met(kind, target)


class _Search:
    """Everything that several targets for one model share."""

    def __init__(self, job: Job) -> None:
        self._job = job
        dataset, probing = job.feeds.dataset, job.feeds.dataset
        if dataset is None:
            statistics = Statistics({}, 0)
        else:
            if job.options.max_accuracy_drop is not None:
                dataset, _ = self._split(dataset)
            known, probing = dataset.apart(PROBING)
            statistics = job.statistics_of(known)
        with job.stages("score"):
            self._losses: Losses = measure_losses(
                job.source.model,
                job.traced,
                statistics,
                probing,
                options=job.options.run_options(),
                progress=lambda share: job.stages.tell("score", share),
                macs=model_stats(job.source.model, job.feeds.shapes()).macs,
            )
        self._knapsacks: dict[str, Knapsack] = {}

    def met(self, kind: str, target: float) -> Met:
        """The best choice that meets one target."""
        job = self._job
        knapsack = self._knapsack(kind)
        with job.stages("choose"):
            best, tries = meet(
                knapsack,
                target,
                self._cost_of(kind),
                seconds=job.options.solver_seconds,
                seed=job.options.seed,
            )
        if best is None:
            raise UsageError(
                f"--target-{kind} {target}: {job.source.label} can't be pruned that far; what may go is listed by"
                " `python -m ucpe_onnx.inspect MODEL`, or choose a larger target"
            )
        return Met(best.chosen.masks, self._fills(), self._lowering(kind), _report(kind, target, best, tries))

    def for_accuracy(self, drop: float) -> Met:
        """The tightest target that loses no more than so many points, judged on samples that are held out."""
        job, kind = self._job, "latency" if self._job.options.bench_seconds else "macs"
        self._knapsack(kind)  # raises if there is nothing to choose from, which no larger target changes
        low, high = _TIGHTEST, 1.0
        found: Met | None = None
        for look in range(_LOOKS):
            job.stages.tell("accuracy", look / _LOOKS)
            target = (low + high) / 2
            try:
                met = self.met(kind, target)
            except UsageError:
                low = target
                continue
            lost = self._points_lost(met)
            if lost <= drop:
                high, found = target, replace(met, report=replace(met.report, points_lost=lost))
            else:
                low = target
        if found is None:
            raise ModelError(
                f"{job.source.label}: nothing was found that loses at most {drop} points; allow more with"
                " --max-accuracy-drop, or give more --data"
            )
        return found

    @staticmethod
    def _split(dataset: Dataset) -> tuple[Dataset, Dataset]:
        """The samples that everything is fitted to, and those that accuracy is judged on."""
        fitted, judged = dataset.split(_HELD_OUT)
        if not fitted.samples or not judged.samples:
            raise DataError(
                f"{dataset.source}: every {_HELD_OUT}th sample is held out to judge accuracy on; give at least"
                f" {_HELD_OUT} samples, as that many feeds if it is feeds, for --max-accuracy-drop"
            )
        return fitted, judged

    def _points_lost(self, met: Met) -> float:
        """Points of top-1 accuracy, or of agreement with the original, on held-out samples after compensation."""
        job = self._job
        assert job.feeds.dataset is not None, "the options were checked"
        fitted, judged = self._split(job.feeds.dataset)
        options = job.options.run_options()
        with job.stages("accuracy"):
            plan = self._plan(met.masks, met.lowering, fill=met.fill)
            if job.compensates:
                plan, _ = repaired_plan(job.source.model, job.traced, plan, fitted, options, seed=job.options.seed)
            pruned = as_session(masked_model(with_weights(job.source.model, plan.weights), plan.masks()), options)
            original = as_session(job.source.model, options)
            if judged.labels is None:
                return 100 * (1 - output_agreement(pruned, original, judged))
            return 100 * (top1_accuracy(original, judged) - top1_accuracy(pruned, judged))

    def _knapsack(self, kind: str) -> Knapsack:
        if kind not in self._knapsacks:
            job = self._job
            timed = kind == "latency"
            multiple = self._multiple if timed else self._step
            limits = ChoiceLimits(job.options.mode, self._most, multiple, self._reading)
            with job.stages("choose"):
                choices = choices_for(job.traced, self._losses, limits)
            if not any(len(choice.bases) > 1 or _selects(choice.readings) for choice in choices):
                raise UsageError(
                    f"{job.source.label}: there is nothing to choose from, since no layer may lose enough channels;"
                    " `python -m ucpe_onnx.inspect MODEL` tells which are frozen, and why"
                )
            self._knapsacks[kind] = Knapsack(job.traced, choices, self._prices(kind))
        return self._knapsacks[kind]

    def _prices(self, kind: str) -> Prices:
        traced = self._job.traced
        if kind != "latency":
            return Work(traced, parameters=kind == "params")
        target, rates = self._job.target
        return Time(Costs(traced, target, rates, lambda axis: int(traced.slots.axes[axis].size), {}))

    def _most(self, name: str) -> float:
        """The largest share of a consumer's channels that may go."""
        options = self._job.options
        if any(matches(name, pattern) for pattern in options.ignore):
            return 0.0
        most = 1 - _LEAST_LEFT if options.max_ratio is None else options.max_ratio
        return next((ratio for pattern, ratio in reversed(options.ratio_for) if matches(name, pattern)), most)

    def _multiple(self, segment: Segment) -> int:
        """Widths that a whole number of blocks of channels has cost as much as any up to them."""
        target, _ = self._job.target
        if not (target.blocked or target.aligned):
            return _sixteenth(segment)
        multiple = max(width_multiple(self._job.traced, segment, target), target.block if target.blocked else 1)
        return multiple if len(segment.classes) >= 2 * multiple else 1

    def _step(self, segment: Segment) -> int:
        """A sixteenth of the width, as a multiple that nothing has to be rounded up to."""
        target, _ = self._job.target
        rounded = target.read_multiple if target.blocked or target.aligned else 1
        return int(np.ceil(_sixteenth(segment) / rounded)) * rounded if len(segment.classes) >= 2 * rounded else 1

    def _reading(self, consumer: Consumer) -> int:
        target, _ = self._job.target
        rounded = consumer.use.node.op_type == "Conv" and (target.blocked or target.aligned)
        return target.read_multiple if rounded else 1

    def _cost_of(self, kind: str) -> Callable[[Mapping[str, Mask]], float]:
        """The real cost of masks, over the input's."""
        return self._latency if kind == "latency" else lambda masks: self._count(masks, kind)

    def _count(self, masks: Mapping[str, Mask], kind: str) -> float:
        job, shapes = self._job, self._job.feeds.shapes()
        plan = self._plan(masks, self._lowering(kind), fill=self._fills())
        with job.stages("emit"):
            after, before = (
                model_stats(model, shapes) for model in (emit(job.source.model, job.traced, plan), job.source.model)
            )
        if kind == "params":
            return after.parameters / max(before.parameters, 1)
        if after.macs is None or not before.macs:
            raise ModelError(
                f"{job.source.label}: its multiply-accumulates can't be counted, since a shape is computed at run"
                " time; give --input-shapes, or take --target-params or --target-latency"
            )
        return after.macs / before.macs

    def _latency(self, masks: Mapping[str, Mask]) -> float:
        job, options = self._job, self._job.options
        models = {"input": job.source.model}
        for lowering in dict.fromkeys((options.lowering, "union" if options.lowering == "auto" else options.lowering)):
            plan = self._plan(masks, lowering, fill=self._fills())
            with job.stages("emit"):
                models[lowering] = job.offload.store(emit(job.source.model, job.traced, plan))
        with job.stages("measure"):
            found = measure(
                models,
                job.feeds.single,
                options.run_options(),
                baseline="input",
                seconds=max(options.bench_seconds, 1.0),
                reloads=LEAST_RELOADS,
                seed=options.seed,
            )
        return min(found[name].ratio for name in models if name != "input")

    def _plan(self, masks: Mapping[str, Mask], lowering: str, *, fill: bool) -> Plan:
        with self._job.stages("plan"):
            settings = replace(self._job.settings(fill=fill), lowering=lowering)
            return make_plan(self._job.traced, masks, settings)

    def _fills(self) -> bool:
        """Whether channels are kept that are read anyway, since widths are rounded up."""
        return self._job.options.mode != "unconstrained"

    def _lowering(self, kind: str) -> str:
        """Work is saved only by layers that read no more than they keep."""
        asked = self._job.options.lowering
        return "gather" if kind != "latency" and asked == "auto" else asked


def _selects(readings: Mapping[str, tuple[object, ...]]) -> bool:
    return any(len(ways) > 1 for ways in readings.values())


def _sixteenth(segment: Segment) -> int:
    return int(max(1, np.ceil(len(segment.classes) / _STEPS)))


def _report(kind: str, target: float, best: Try, tries: tuple[Try, ...]) -> BudgetReport:
    chosen: Chosen = best.chosen
    looks = tuple((t.budget, t.reached) for t in tries)
    return BudgetReport(kind, target, best.reached, chosen.cost, chosen.loss, chosen.status, chosen.gap, looks)
