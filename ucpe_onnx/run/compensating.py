"""Compensation as a stage of the run: the fastest trial with new weights, emitted and verified again."""

from __future__ import annotations

from dataclasses import replace

from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.compensation.stage import CompensationOutcome, compensated_plan, plan_without_samples
from ucpe_onnx.plan import Plan
from ucpe_onnx.run.context import Run
from ucpe_onnx.run.trials import Outcome
from ucpe_onnx.run.verified import verified_trial


def compensated(run: Run, best: Outcome) -> Outcome:
    """The outcome with weights refitted, if that is asked for and brings its outputs nearer to the original's.

    Shapes stay, and with them the latency that was measured.
    """
    if not run.compensates or not best.trial.plan.masks():
        return best
    with run.stages("compensate"):
        plan, told = _new_weights(run, best.trial.plan)
    if not plan.weights:
        return replace(best, compensation=told)
    trial = verified_trial(run, best.trial.name, plan, masked=True, known=best.trial.alone)
    trial = replace(trial, refused=best.trial.refused)
    after = model_stats(trial.emitted, run.feeds.shapes())
    return replace(best, trial=trial, after=after, compensation=told)


def _new_weights(run: Run, plan: Plan) -> tuple[Plan, CompensationOutcome]:
    if run.feeds.dataset is None:
        return plan_without_samples(run.traced, plan)
    return compensated_plan(
        run.source.model,
        run.traced,
        plan,
        run.feeds.dataset,
        run.options.run_options(),
        seed=run.options.seed,
        progress=lambda share: run.stages.tell("compensate", share),
    )
