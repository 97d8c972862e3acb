"""New weights for a plan, or a reason why there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.compensation.error import output_errors
from ucpe_onnx.compensation.sequential import Compensation, LayerFit, compensate
from ucpe_onnx.compensation.without_samples import biases_from_norms
from ucpe_onnx.errors import ModelError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import NewWeight, with_weights
from ucpe_onnx.plan import Plan
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.samples.dataset import Dataset

_BATCH = 32
_FEWEST = 5
"""Samples below which none can be held out."""


@dataclass(frozen=True)
class CompensationOutcome:
    """What compensation did to a model.

    Attributes:
        samples: calibration samples it was fitted to; 0 without data.
        plain: error of the outputs of the masked model on them, see :func:`output_errors`; None without data, or if
            nothing was refitted or can be compared.
        compensated: error of the compensated model, likewise.
        taken: whether the new weights are used.
        layers: what was done to each layer.
        left: layers that could not be refitted, and why.
        note: what the user should know; empty if there is nothing.
    """

    samples: int
    plain: float | None
    compensated: float | None
    taken: bool
    layers: tuple[LayerFit, ...] = ()
    left: Mapping[str, str] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an infinite error, which JSON can't hold, is None."""
        layers = [{name: _plain(value) for name, value in vars(layer).items()} for layer in self.layers]
        return {
            "samples": self.samples,
            "plain": _plain(self.plain),
            "repaired": _plain(self.compensated),
            "taken": self.taken,
            "layers": layers,
            "left": dict(self.left or {}),
            "note": self.note,
        }


def compensated_plan(
    model: onnx.ModelProto,
    traced: Trace,
    plan: Plan,
    dataset: Dataset,
    options: RunOptions,
    *,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[Plan, CompensationOutcome]:
    """Refit a plan's network on calibration samples.

    Args:
        model: the input model.
        traced: its analysis.
        plan: the decisions; what it keeps does not change.
        dataset: the calibration samples.
        options: how onnxruntime runs the network.
        seed: of what is sampled.
        progress: told the share that is done.

    Returns:
        The plan with new weights, or as it was if they don't bring the outputs nearer to the original's.

    Raises:
        DataError: an input is NaN, or what the original network makes of a sample is not finite.
        ModelError: a model can't be run on the samples.
    """
    masks, samples = plan.masks(), dataset.samples
    batches = list(dataset.counted_batches(_BATCH))
    feeds, real = [feed for feed, _ in batches], [count for _, count in batches]
    try:
        found = compensate(
            traced, masks, feeds, options, real=real, source=dataset.source, seed=seed, progress=progress
        )
    except ModelError as error:
        return plan, CompensationOutcome(samples, None, None, False, note=f"not compensated: {error}")
    if not found.weights:
        return plan, CompensationOutcome(samples, None, None, False, found.layers, found.left, _why_nothing(found))
    weights = {name: NewWeight.of(value) for name, value in found.weights.items()}
    errors = output_errors(model, _both(model, masks, weights), dataset, options)
    plain, fitted = (None if math.isnan(errors[name]) else errors[name] for name in ("plain", "fitted"))
    # Outputs that are no numbers tell nothing: then what the layers make is what there is to go by.
    taken = plain is None or fitted is None or fitted < plain
    note = "" if taken else "not compensated: the new weights would not bring the outputs nearer to the original's"
    if taken and samples < _FEWEST:
        note = f"compensated on {_samples(samples)}, too few to hold any out: give a few hundred"
    new = replace(plan, weights=weights) if taken else plan
    return new, CompensationOutcome(samples, plain, fitted, taken, found.layers, found.left, note)


def _why_nothing(found: Compensation) -> str:
    if found.layers:
        return "not compensated: no weights are better than those that there are"
    name, reason = next(iter(found.left.items()), ("", "no layer loses a channel"))
    return f"not compensated: {f'{name}: ' if name else ''}{reason}"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plan_without_samples(traced: Trace, plan: Plan) -> tuple[Plan, CompensationOutcome]:
    """The plan with the means of what goes in biases, as far as batch normalisations tell them."""
    biases = biases_from_norms(traced, plan.masks())
    if not biases:
        note = "not compensated: without --data it takes batch normalisations (they may be folded) and biases"
        return plan, CompensationOutcome(0, None, None, False, note=note)
    note = f"compensated: the means of dropped channels went into {len(biases)} biases (give --data to refit weights)"
    return replace(plan, weights={name: NewWeight.of(value) for name, value in biases.items()}), CompensationOutcome(
        0, None, None, True, note=note
    )


def _both(
    model: onnx.ModelProto, masks: Mapping[str, Mask], weights: Mapping[str, NewWeight]
) -> dict[str, onnx.ModelProto]:
    return {"plain": masked_model(model, masks), "fitted": masked_model(with_weights(model, weights), masks)}
