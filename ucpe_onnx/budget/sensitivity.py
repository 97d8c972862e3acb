"""How sensitive the network is to the loss of channels, segment by segment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from ucpe_onnx.activations.layers import find_layers
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.budget.losses import SAMPLES, alone, dropped
from ucpe_onnx.compensation.error import output_errors
from ucpe_onnx.runtime.accuracy import top1_accuracy
from ucpe_onnx.runtime.session import RunOptions, as_session
from ucpe_onnx.samples.dataset import Dataset
from ucpe_onnx.selection.data_criteria import removal_curve

RATIOS = (0.125, 0.25, 0.5, 0.75)
"""Shares of each consumer's channels that are dropped."""


@dataclass(frozen=True)
class SensitivityPoint:
    """What the outputs do if one segment's consumers drop channels.

    Attributes:
        segment: number of the segment.
        consumers: names of the consumers that drop channels.
        ratio: share of its channels that each of them drops.
        error: of the outputs, over their variance.
        accuracy_lost: top-1 accuracy that is lost, as a share; None without labels.
    """

    segment: int
    consumers: tuple[str, ...]
    ratio: float
    error: float
    accuracy_lost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        error = self.error if math.isfinite(self.error) else None
        return {**vars(self), "consumers": list(self.consumers), "error": error}


def sensitivity(
    model: onnx.ModelProto,
    trace: Trace,
    statistics: Statistics,
    dataset: Dataset,
    *,
    options: RunOptions,
    progress: Callable[[float], None],
) -> tuple[SensitivityPoint, ...]:
    """Drop ever more channels of one segment at a time, refit its consumers each by itself, and look at the outputs.

    Every consumer drops what it is least sensitive to, whatever its siblings keep.

    Args:
        model: the input model.
        trace: its analysis.
        statistics: what its consumers read.
        dataset: samples to compare outputs on, better others than those; of many the first ones are enough.
        options: how onnxruntime runs models.
        progress: told the share that is done.

    Returns:
        For each segment with prunable channels and each of ``RATIOS`` one point.
    """
    layers, some = find_layers(trace.graph), dataset.first(2 * SAMPLES)
    points: list[SensitivityPoint] = []
    whole = _accuracy(model, some, options)
    for done, segment in enumerate(trace.segments):
        progress(done / len(trace.segments))
        names = [name for name in segment.consumers if trace.consumers[name].prunable.any()]
        curves = {name: removal_curve(trace, name, statistics, layers) for name in names}
        models: dict[float, onnx.ModelProto] = {}
        for ratio in RATIOS if names else ():
            counts = {name: min(round(ratio * len(c.order)), len(c.order) - 1) for name, c in curves.items()}
            masks = {name: dropped(trace, name, curves[name], count) for name, count in counts.items() if count > 0}
            if masks:
                models[ratio] = alone(model, trace, layers, statistics, masks)
        errors = output_errors(model, {str(ratio): pruned for ratio, pruned in models.items()}, some, options)
        for ratio, pruned in models.items():
            after = _accuracy(pruned, some, options)
            lost = None if whole is None or after is None else whole - after
            points.append(SensitivityPoint(segment.id, tuple(names), ratio, errors[str(ratio)], lost))
    return tuple(points)


def _accuracy(model: onnx.ModelProto, dataset: Dataset, options: RunOptions) -> float | None:
    return None if dataset.labels is None else top1_accuracy(as_session(model, options), dataset)
