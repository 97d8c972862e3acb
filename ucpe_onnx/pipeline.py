"""The whole line: load, analyse, choose masks, lay out, emit, verify, measure, compensate, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ucpe_onnx.model.offload import Offload, complete
from ucpe_onnx.model.source import ModelSource
from ucpe_onnx.options import Options
from ucpe_onnx.report.result import Result, described
from ucpe_onnx.run.candidates import candidates
from ucpe_onnx.run.compensating import compensated
from ucpe_onnx.run.context import Run
from ucpe_onnx.run.opening import opened
from ucpe_onnx.run.stages import Stages
from ucpe_onnx.run.trials import Outcome, back_to_input_layout, better, fastest
from ucpe_onnx.run.verified import verified_trials

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
        run = opened(model, chosen, offload, Stages(progress or (lambda stage: None)))
        result = _prune(run)
        return replace(result, model=complete(result.model))


def _prune(run: Run) -> Result:
    """Everything that follows from the input and its analysis; the model that it returns may be offloaded."""
    best: Outcome | None = None
    for candidate in candidates(run):
        best = better(best, fastest(run, candidate, verified_trials(run, candidate)))
        if best.settled:
            break
    assert best is not None, "there is always a first candidate"
    return described(run, back_to_input_layout(run, compensated(run, best)))
