"""What dropping channels costs the network's output: a layer's own error, times how sensitive the output is to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx

from ucpe_onnx.activations.layers import Layer, find_layers
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.shared_weights import tied_consumers
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.compensation.alone import compensate_alone
from ucpe_onnx.compensation.error import output_errors
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import with_weights
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.samples.dataset import Dataset
from ucpe_onnx.selection.criteria import FloatArray
from ucpe_onnx.selection.data_criteria import RemovalCurve, removal_curve

SAMPLES = 128
"""Samples that outputs are compared on, for each layer ..."""

_FEWEST, _MOST_WORK = 32, 5e11
"""... but not so many that this takes more multiply-accumulates in all, nor fewer than so many."""

PROBING = 5
"""Every 5th sample tells how sensitive the output is to errors of layers that are refitted to the others.

On the same samples a layer with more features than there are samples would seem to be sensitive to nothing.
"""

_PROBED = 0.3
"""Share of a consumer's channels that are dropped to see how sensitive the output is."""

_AT_ONCE = 8
"""Models that are compared in one go over the samples."""

_LEAST_OWN = 1e-6
"""Of a consumer's own error: less is rounding."""

_APART = 1e3
"""Weights are at most so many times the median, and at least that part of it."""


@dataclass(frozen=True)
class Losses:
    """Prices of dropping channels.

    Attributes:
        trace: the analysed model.
        statistics: what its consumers read.
        layers: its layers by name.
        weights: for each consumer what its relative output error is multiplied by; the products add up to the error of
            the network's output, as far as small errors do.
    """

    trace: Trace
    statistics: Statistics
    layers: Mapping[str, Layer]
    weights: Mapping[str, float]
    _known: dict[str, RemovalCurve] = field(default_factory=dict, repr=False)

    def curve(self, name: str, first: Mask | None = None) -> RemovalCurve:
        """What dropping more and more channels of a consumer costs, after some that are to go first.

        Consumers that read by one weight lose channels in the order of the first, so that they can keep the same.
        """
        if first is None and name in self._known:
            return self._known[name]
        leader = self._leaders.get(name, name)
        curve = removal_curve(self.trace, leader, self.statistics, self.layers, first)
        priced = RemovalCurve(curve.order, curve.losses * self.weights[name])
        if first is None:
            self._known[name] = priced
        return priced

    @cached_property
    def _leaders(self) -> dict[str, str]:
        """For consumers that read by the weight of one before them, and may lose the same channels, that one's name."""
        families = tied_consumers(self.trace, self.weights)
        return {
            other.name: first.name
            for first, *others in families
            for other in others
            if np.array_equal(first.prunable, other.prunable)
        }


def measure_losses(
    model: onnx.ModelProto,
    trace: Trace,
    statistics: Statistics,
    dataset: Dataset | None,
    *,
    options: RunOptions,
    progress: Callable[[float], None],
    macs: int | None = None,
) -> Losses:
    """Find out how sensitive the network's output is to an error of each consumer.

    Some channels of one consumer at a time are dropped, the others refitted, and the outputs compared. Without samples
    all consumers count alike.

    Args:
        model: the input model.
        trace: its analysis.
        statistics: what its consumers read.
        dataset: samples, better others than the statistics are of; None if there are none.
        options: how onnxruntime runs models.
        progress: told the share that is done.
        macs: multiply-accumulates for one sample; None if they are not known.
    """
    layers = find_layers(trace.graph)
    names = [name for name, consumer in trace.consumers.items() if consumer.prunable.any()]
    if dataset is None:
        return Losses(trace, statistics, layers, dict.fromkeys(names, 1.0))
    affordable = _MOST_WORK / max((macs or 0) * len(names), 1)
    some = dataset.first(int(min(max(affordable, _FEWEST), SAMPLES)))
    weights: dict[str, float] = {}
    for start in range(0, len(names), _AT_ONCE):
        progress(start / len(names))
        probed, own = {}, {}
        for name in names[start : start + _AT_ONCE]:
            curve = removal_curve(trace, name, statistics, layers)
            count = max(1, round(_PROBED * len(curve.order)))
            if count < len(curve.order):
                mask = dropped(trace, name, curve, count)
                probed[name] = alone(model, trace, layers, statistics, {name: mask})
                own[name] = float(curve.losses[count - 1])
        errors = output_errors(model, probed, some, options)
        weights.update({name: errors[name] / max(own[name], _LEAST_OWN) for name in probed})
    return Losses(trace, statistics, layers, _bounded(weights, names))


def alone(
    model: onnx.ModelProto,
    trace: Trace,
    layers: Mapping[str, Layer],
    statistics: Statistics,
    masks: Mapping[str, Mask],
) -> onnx.ModelProto:
    """The model with some consumers' channels dropped and these consumers refitted, each by itself."""
    weights = {}
    for name, mask in masks.items():
        if name in layers and name in statistics.consumers:
            weights.update(compensate_alone(trace.graph, layers[name], mask, statistics.consumers[name]))
    return masked_model(with_weights(model, weights), masks)


def dropped(trace: Trace, name: str, curve: RemovalCurve, count: int) -> Mask:
    """The mask of a consumer whose first ``count`` units have gone."""
    mask = np.ones(trace.consumers[name].channels, dtype=bool)
    for unit in curve.order[:count]:
        mask[unit] = False
    return mask


def _bounded(weights: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Weights not too far from the usual one, which those that are not known get.

    So that a layer does not count for nothing, or alone, since its channels are superfluous but for rounding errors.
    """
    finite = [weight for weight in weights.values() if np.isfinite(weight)]
    usual = (float(np.median(finite)) if finite else 1.0) or 1.0
    known = {name: weights.get(name, np.nan) for name in names}
    return {
        name: usual if np.isnan(weight) else float(np.clip(weight, usual / _APART, usual * _APART))
        for name, weight in known.items()
    }


def scaled(curve: RemovalCurve) -> FloatArray:
    """Losses with a 0 in front, for no removal."""
    return np.concatenate([[0.0], curve.losses])
