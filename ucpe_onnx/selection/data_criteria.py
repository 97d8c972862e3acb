"""Importance of a consumer's input channels, from its weights and from what it reads on the user's samples.

As with weights alone (:mod:`ucpe_onnx.selection.criteria`), a criterion returns one score for each *unit*, the channels
of a consumer that are one slot, and the units with the lowest scores are pruned first. Where the statistics of a
consumer lack what a criterion needs, they count as 1 for every channel, so that the norm of the weights decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer, find_layers
from ucpe_onnx.activations.statistics import ConsumerStatistics, Statistics
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.trace import Consumer, Trace
from ucpe_onnx.errors import DataError, ModelError, UsageError
from ucpe_onnx.selection.criteria import FloatArray, channel_matrix
from ucpe_onnx.selection.elimination import eliminate

RIDGE = 1e-3
"""Added to the diagonal of a covariance, relative to its mean."""

_NOISE = 1e-9
"""Added likewise, relative to the mean energy of a feature: what varies less is rounding."""

_MOST_FEATURES = 8192
"""Features that units of unequal lengths may fill up to, beyond which channels count as independent."""


@dataclass(frozen=True, eq=False)
class ConsumerReads:
    """What a criterion may look at of one consumer.

    Attributes:
        squares: squared Frobenius norm of the weights that read each channel, shape (C_in,).
        unit_of: the unit of each channel, shape (C_in,).
        prunable: whether a unit may be pruned, shape (units,).
        statistics: what is read; None if not known.
        layer: the consumer as a linear map; None if it is none.
        weight: the layer's weight as stored; None if it is no layer.
        first: units that go before all others, shape (units,); None: no unit does.
    """

    squares: FloatArray
    unit_of: IntArray
    prunable: npt.NDArray[np.bool_]
    statistics: ConsumerStatistics | None
    layer: Layer | None
    weight: FloatArray | None
    first: npt.NDArray[np.bool_] | None = None

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.prunable)

    def channels(self, unit: int) -> IntArray:
        """The channels of a unit."""
        return np.flatnonzero(self.unit_of == unit)

    def total(self, values: FloatArray) -> FloatArray:
        """Sums over the channels of each unit."""
        return np.bincount(self.unit_of, weights=values, minlength=self.units)

    def mean(self, values: FloatArray) -> FloatArray:
        """Means over the channels of each unit."""
        return np.asarray(self.total(values) / np.bincount(self.unit_of, minlength=self.units))


DataCriterion: TypeAlias = Callable[[ConsumerReads], FloatArray]


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """What it costs to drop more and more of a consumer's channels, the others refitted each time.

    Attributes:
        order: the channels of each unit that may be pruned, the first to go first.
        losses: error of the consumer's output after each removal, over the output's variance, in [0, 1] and not
            decreasing, shape (units that may be pruned,); 1 once nothing is left.
    """

    order: tuple[IntArray, ...]
    losses: FloatArray


def wanda(reads: ConsumerReads) -> FloatArray:
    """Weights times activations, s_j = |W_j|_F * sqrt(sum of x_j^2) over samples and positions.

    A unit of several channels scores the root of the mean of their squares. Weaker: |W_j|_F.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, equation (1),
    with the norm of all weights that read a channel for a single weight.
    """
    found = reads.statistics
    return np.asarray(np.sqrt(reads.mean(reads.squares * (1.0 if found is None else found.energy * found.values))))


def energy(reads: ConsumerReads) -> FloatArray:
    """Activations alone, s_j = sqrt(mean of x_j^2), the mean over a unit's channels too. Weaker: |W_j|_F.

    Source: the root mean square of the activation, as the input's factor in equation (1) of Sun et al. (see
    :func:`wanda`), but for the number of values.
    """
    found = reads.statistics
    return _norms(reads) if found is None else np.asarray(np.sqrt(reads.mean(found.energy)))


def variance(reads: ConsumerReads) -> FloatArray:
    """Variance of the output that a channel alone makes, s_j = var(x_j) * |W_j|_F^2; its mean can go into the bias.

    Taps count as independent, and a unit of several channels scores their mean. Weaker: |W_j|_F^2.

    Source: the diagonal of the covariance in the loss of Hassibi and Stork (see :func:`reconstruction`): what dropping
    the channel costs if no other can stand in for it.
    """
    return reads.mean(_variances(reads))


def hrank(reads: ConsumerReads) -> FloatArray:
    """Mean rank of the channel's feature map. Weaker, where what is read are no maps: |W_j|_F.

    Source: Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020, equations (5) and (6).
    """
    found = reads.statistics
    return _norms(reads) if found is None or found.rank is None else reads.mean(found.rank)


def reconstruction(reads: ConsumerReads) -> FloatArray:
    """Error of the output once a unit and all that go before it are dropped and the others refitted.

    Units are dropped one by one, each time the one that adds least (:func:`ucpe_onnx.selection.elimination.eliminate`).
    G is the covariance of the features, as the bias takes up their means, with a ridge, and shrunk where samples are
    few (:func:`ucpe_onnx.activations.shrinkage.shrunk`); where channels alone are told apart, it is C (x) I: taps are
    independent. The score is the sum of all losses so far over ``tr(W G W')``, so that
    it compares between consumers; units that may not be pruned score 1. Weaker: G is diagonal, of the channels'
    variances, or of ones.

    Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1993;
    Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, equations (5) and (6) for blocks.
    """
    order, losses = _removal(reads)
    scores = np.ones(reads.units)
    scores[order] = losses
    return scores


DATA_CRITERIA: Mapping[str, DataCriterion] = MappingProxyType(
    {"wanda": wanda, "energy": energy, "variance": variance, "hrank": hrank, "reconstruction": reconstruction}
)
"""Criteria that need statistics, by the name that ``--criterion`` takes."""


def score_with_data(trace: Trace, criterion: str, statistics: Statistics) -> dict[str, FloatArray]:
    """Score the input channels of every consumer that has prunable ones.

    Args:
        trace: the analysed model.
        criterion: a key of :data:`DATA_CRITERIA`.
        statistics: what its consumers read.

    Returns:
        By consumer one score per input channel, shape (C_in,); channels of one slot share their score.

    Raises:
        UsageError: unknown criterion; or ``hrank`` is asked for and the statistics hold no ranks.
        DataError: the statistics are of another model.
    """
    if criterion not in DATA_CRITERIA:
        raise UsageError(f"unknown criterion {criterion!r}: choose from {', '.join(DATA_CRITERIA)}")
    if criterion == "hrank" and all(found.rank is None for found in statistics.consumers.values()):
        raise UsageError(
            "criterion hrank: the statistics hold no ranks; collect them with ranks, or take --criterion reconstruction"
            " if the model has no feature maps"
        )
    layers = find_layers(trace.graph)
    scores = {}
    for name, consumer in trace.consumers.items():
        if consumer.prunable.any():
            reads = _reads(trace, consumer, statistics, layers)
            scores[name] = DATA_CRITERIA[criterion](reads).astype(np.float64)[reads.unit_of]
    return scores


def removal_curve(
    trace: Trace,
    name: str,
    statistics: Statistics,
    layers: Mapping[str, Layer] | None = None,
    first: npt.NDArray[np.bool_] | None = None,
) -> RemovalCurve:
    """The order and the losses of :func:`reconstruction`.

    Args:
        trace: the analysed model.
        name: of a consumer.
        statistics: what the consumers read.
        layers: those of ``find_layers``, for callers that ask for many curves.
        first: channels that go before all others, shape (C_in,); units of which one channel is among them go whole.

    Raises:
        ModelError: there is no such consumer.
        DataError: the statistics are of another model.
    """
    if name not in trace.consumers:
        raise ModelError(f"node {name!r}: is no consumer; choose from {', '.join(trace.consumers) or 'none'}")
    layers = find_layers(trace.graph) if layers is None else layers
    reads = _reads(trace, trace.consumers[name], statistics, layers)
    if first is not None:
        reads = replace(reads, first=(reads.total(first) > 0) & reads.prunable)
    order, losses = _removal(reads)
    return RemovalCurve(tuple(reads.channels(unit) for unit in order), losses)


def _reads(trace: Trace, consumer: Consumer, statistics: Statistics, layers: Mapping[str, Layer]) -> ConsumerReads:
    _, unit_of = np.unique(consumer.slots, return_inverse=True)
    unit_of = unit_of.reshape(-1)
    weights = channel_matrix(trace, consumer)
    squares = np.einsum("ij,ij->i", weights, weights, dtype=np.float64, casting="unsafe")
    prunable = np.bincount(unit_of, weights=~consumer.prunable) == 0
    found, layer = statistics.consumers.get(consumer.name), layers.get(consumer.name)
    if layer is not None and layer.channels != consumer.channels:
        layer = None
    if found is not None and found.mean.shape != (consumer.channels,):
        raise DataError(
            f"node {consumer.name!r}: reads {consumer.channels} channels, the statistics hold {found.mean.size};"
            " collect them with this model"
        )
    weight = None if layer is None else np.asarray(trace.graph.value(layer.weight))
    return ConsumerReads(squares, unit_of, prunable, found, layer, weight)


def _norms(reads: ConsumerReads) -> FloatArray:
    """Root mean square over the channels of each unit."""
    return np.asarray(np.sqrt(reads.mean(reads.squares)))


def _variances(reads: ConsumerReads) -> FloatArray:
    """Variance of the output that each channel alone makes, shape (C_in,)."""
    return np.asarray(reads.squares * (1.0 if reads.statistics is None else reads.statistics.variance))


def _removal(reads: ConsumerReads) -> tuple[list[int], FloatArray]:
    """Prunable units in order of removal, and the relative error after each."""
    found = _eliminated(reads) or _independent(reads)
    order, steps, total = found
    losses = np.cumsum(np.asarray(steps, dtype=np.float64))
    return order, np.minimum(losses / total, 1.0) if total > 0.0 else np.zeros(len(order))


def _independent(reads: ConsumerReads) -> tuple[list[int], list[float], float]:
    """Removal with a diagonal G: what each unit costs stays as it is."""
    costs = reads.total(_variances(reads))
    if not costs.any():  # all inputs are constant
        costs = reads.total(reads.squares)
    order = [int(unit) for unit in np.argsort(costs, kind="stable") if reads.prunable[unit]]
    if reads.first is not None:
        order.sort(key=lambda unit: not reads.first[unit])  # type: ignore[index]
    return order, [float(costs[unit]) for unit in order], float(costs.sum())


def _eliminated(reads: ConsumerReads) -> tuple[list[int], list[float], float] | None:
    """Removal with the covariance of the features; None without one.

    The groups of a convolution have nothing to do with each other, so that their own orders are merged.
    """
    layer, found = reads.layer, reads.statistics
    covariances = None if found is None else found.safe_covariance
    if layer is None or reads.weight is None or found is None or found.gram is None or covariances is None:
        return None
    each, width = layer.channels // layer.groups, found.gram.shape[-1]
    if width not in (each, layer.features) or len(found.gram) != layer.groups:
        raise DataError(f"node {layer.name!r}: the statistics are of other features; collect them with this model")
    matrices = layer.matrices(reads.weight).astype(np.float64)
    if width < layer.features:  # (groups, C_out, C_in * K) to (groups, C_out * K, C_in): the rows of C (x) I
        matrices = matrices.reshape(layer.groups, -1, each, layer.taps).swapaxes(2, 3)
        matrices = matrices.reshape(layer.groups, -1, each)
    sequences, total = [], 0.0
    early: list[tuple[float, int]] = []
    groups = zip(reads.unit_of.reshape(layer.groups, each), matrices, found.gram, covariances, strict=True)
    for unit_of, matrix, gram, covariance in groups:
        units, local = np.unique(unit_of, return_inverse=True)
        blocks = _blocks(local.reshape(-1), width // each)
        if np.isin(reads.unit_of, units).sum() > each or blocks.size > _MOST_FEATURES:
            return None  # a unit has channels in several groups
        damped = covariance + np.eye(width) * _ridge(gram, covariance)
        outer = matrix.T @ matrix
        total += float(np.sum(outer * damped))
        leading = np.flatnonzero(reads.first[units]).tolist() if reads.first is not None else []
        order, steps = eliminate(damped, outer, blocks, reads.prunable[units], leading)
        sequence = [(step, int(units[unit])) for unit, step in zip(order, steps, strict=True)]
        early += sequence[: len(leading)]
        sequences.append(sequence[len(leading) :])
    merged = early + _merged(sequences)
    return [unit for _, unit in merged], [step for step, _ in merged], total


def _ridge(gram: FloatArray, covariance: FloatArray) -> float:
    """What is added to the diagonal; 1 if nothing but zeros is read."""
    return RIDGE * float(np.trace(covariance)) / len(gram) + _NOISE * float(np.trace(gram)) / len(gram) or 1.0


def _blocks(unit_of: IntArray, taps: int) -> IntArray:
    """The features of each unit, shape (units, most features); -1 fills up shorter ones."""
    counts = np.bincount(unit_of)
    order = np.argsort(unit_of, kind="stable")
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    channels = np.full((len(counts), int(counts.max())), -1, dtype=np.int64)
    channels[unit_of[order], place] = order
    features = channels[:, :, None] * taps + np.arange(taps)
    return np.where(channels[:, :, None] < 0, -1, features).reshape(len(counts), -1)


def _merged(sequences: Sequence[Sequence[tuple[float, int]]]) -> list[tuple[float, int]]:
    """Always the cheapest of what comes next in each sequence."""
    waiting = [(sequence[0], number, 0) for number, sequence in enumerate(sequences) if sequence]
    heapq.heapify(waiting)
    merged = []
    while waiting:
        step, number, place = heapq.heappop(waiting)
        merged.append(step)
        if place + 1 < len(sequences[number]):
            heapq.heappush(waiting, (sequences[number][place + 1], number, place + 1))
    return merged
