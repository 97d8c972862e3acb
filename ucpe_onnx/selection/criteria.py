"""Importance of a consumer's input channels, from its weights alone.

A criterion sees the weights as a matrix, one row per channel (per slot, where a Flatten has spread a channel over
several input positions, or a head of attention goes as a whole), and returns one score per row; the rows with the
lowest scores are pruned first. A row of several channels scores what one of them does in the mean: else wide slots
would never go where all consumers are ranked together.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.quantised import real_value
from ucpe_onnx.analysis.trace import Consumer, Trace
from ucpe_onnx.errors import ModelError, UsageError

FloatArray: TypeAlias = npt.NDArray[Any]
"""Floating-point values of any width: weights as the file stores them, scores in double precision."""

_STRIP = 64
"""Columns that are copied at a time."""


@dataclass(frozen=True)
class Filters:
    """What a criterion may look at.

    Attributes:
        weights: the weights that read each channel, shape (channels, C_out * kernel).
        gamma: scale of the BatchNormalization that last scaled each channel, shape (channels,), None if there is none.
        random: a generator seeded by the option ``--seed`` and the consumer's name.
        widths: how many channels each row stands for, shape (channels,); or one number for all.
    """

    weights: FloatArray
    gamma: FloatArray | None
    random: np.random.Generator
    widths: npt.NDArray[np.int64] | int = 1


Criterion: TypeAlias = Callable[[Filters], FloatArray]


def l1(filters: Filters) -> FloatArray:
    """Sum of absolute weights, s_j = sum_i |w_ji|; of several channels the mean.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1, applied to input channels.
    """
    return np.asarray(np.abs(filters.weights).sum(axis=1, dtype=np.float64) / filters.widths)


def l2(filters: Filters) -> FloatArray:
    """Frobenius norm, s_j = sqrt(sum_i w_ji^2); of several channels the root of the mean of their squares.

    Source: the magnitude criterion of Wan et al., "UPSCALE: Unconstrained Channel Pruning", ICML 2023.
    """
    weights = filters.weights
    squares = np.einsum("ij,ij->i", weights, weights, dtype=np.float64, casting="unsafe")
    return np.asarray(np.sqrt(squares / filters.widths))


def lamp(filters: Filters) -> FloatArray:
    """Layer-adaptive magnitude, s_j = m_j / sum_{k: m_k >= m_j} m_k, with m the channels' L2 norms.

    The share that a channel has in what is left once all smaller ones are gone; the largest always scores 1, so that
    one global threshold never empties a layer. A row of n channels counts as n of its mean magnitude, of which the last
    to go have the row's score.

    Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, equation (3), with
    channels for single weights and norms for squared weights as in the UPSCALE release.
    """
    return lamp_scores(l2(filters), filters.widths)


def lamp_scores(magnitudes: FloatArray, widths: npt.NDArray[np.int64] | int = 1) -> FloatArray:
    """LAMP of given magnitudes, in their own order; equal magnitudes count as remaining in order of appearance.

    Args:
        magnitudes: non-negative, shape (channels,).
        widths: how often each magnitude counts, shape (channels,); or one number for all.

    Returns:
        Scores in [0, 1], shape (channels,).
    """
    order = np.argsort(-magnitudes, kind="stable")
    counts = np.broadcast_to(np.asarray(widths), magnitudes.shape)[order]
    remaining = np.cumsum(counts * magnitudes[order]) - (counts - 1) * magnitudes[order]
    scores = np.empty(len(magnitudes), dtype=np.float64)
    scores[order] = np.divide(magnitudes[order], remaining, out=np.ones(len(magnitudes)), where=remaining > 0)
    return scores


def fpgm(filters: Filters) -> FloatArray:
    """Distance to all other channels, s_j = sum_k |w_j - w_k|_2: small where others can stand in.

    For rows of several channels over the root of their number.

    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    CVPR 2019, equation (4), applied to input channels.
    """
    weights = np.asarray(filters.weights, dtype=np.float32)
    squares = np.einsum("ij,ij->i", weights, weights)
    scores = np.empty(len(weights), dtype=np.float64)
    for start in range(0, len(weights), 1024):  # rows at a time: the full matrix of distances may not fit in memory
        rows = slice(start, start + 1024)
        distances = squares[rows, None] + squares[None, :] - 2.0 * (weights[rows] @ weights.T)
        scores[rows] = np.sqrt(np.maximum(distances, 0.0)).sum(axis=1)
    return np.asarray(scores / np.sqrt(filters.widths))


def bn_scale(filters: Filters) -> FloatArray:
    """Absolute scale of the batch normalisation that the channel has passed last, s_j = |gamma_j|.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.
    """
    if filters.gamma is None:
        return np.full(len(filters.weights), np.inf)
    return np.abs(filters.gamma)


def random(filters: Filters) -> FloatArray:
    """Uniform random scores: the floor that every criterion has to beat."""
    return filters.random.random(len(filters.weights))


CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {"l1": l1, "l2": l2, "lamp": lamp, "fpgm": fpgm, "bn": bn_scale, "random": random}
)
"""Criteria by the name that ``--criterion`` takes."""


def score_consumers(trace: Trace, criterion: str, seed: int = 0) -> dict[str, FloatArray]:
    """Score the input channels of every consumer that has prunable ones.

    Args:
        trace: the analysed model.
        criterion: a key of :data:`CRITERIA`.
        seed: for the random criterion.

    Returns:
        By consumer one score per input channel, shape (C_in,); channels of one slot share their score.

    Raises:
        UsageError: unknown criterion.
        ModelError: ``bn`` is asked for and there is no BatchNormalization.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"unknown criterion {criterion!r}: choose from {', '.join(CRITERIA)}")
    gammas = _gammas(trace) if criterion == "bn" else None
    scores = {}
    for name, consumer in trace.consumers.items():
        if not consumer.prunable.any():
            continue
        units, unit_of = np.unique(consumer.slots, return_inverse=True)
        weights = channel_matrix(trace, consumer)
        widths = np.bincount(unit_of.reshape(-1))
        if len(units) < consumer.channels:
            order = np.argsort(unit_of, kind="stable")
            in_order = bool((order[1:] > order[:-1]).all())  # as behind a Flatten; those weights are the largest of all
            weights = _merge_rows(weights if in_order else weights[order], widths)
        gamma = None if gammas is None else gammas.get((consumer.segment, name))
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        filters = Filters(weights, gamma, generator, widths)
        scored = CRITERIA[criterion](filters)
        scores[name] = np.asarray(scored, dtype=np.float64)[unit_of.reshape(-1)]
    return scores


def check_weights(trace: Trace) -> None:
    """Refuse weights that can't be compared.

    Raises:
        ModelError: a weight of a consumer holds NaN or infinite values.
    """
    for name, consumer in trace.consumers.items():
        value = trace.graph.value(consumer.use.weight)
        if value is None or value.dtype.kind != "f":
            continue
        with np.errstate(invalid="ignore"):  # the sum of both infinities
            finite = np.isfinite(value.sum(dtype=np.float64))
        if not finite:
            raise ModelError(
                f"node {name!r}: weight {consumer.use.weight!r} holds NaN or infinite values; train or export it again"
            )


def channel_matrix(trace: Trace, consumer: Consumer) -> FloatArray:
    """A consumer's weights with one row per input channel, shape (C_in, C_out/groups * kernel)."""
    use = consumer.use
    value = real_value(trace.graph, use.constant)
    if value.dtype not in (np.float32, np.float64):
        value = value.astype(np.float32)
    if use.groups > 1 and use.weight_axis == 1:
        value = value.reshape(use.groups, -1, *value.shape[1:])  # (groups, C_out/groups, C_in/groups, k...)
        return np.moveaxis(value, 2, 1).reshape(consumer.channels, -1)
    return np.moveaxis(value, use.weight_axis, 0).reshape(consumer.channels, -1)


def _merge_rows(weights: FloatArray, counts: npt.NDArray[np.int64]) -> FloatArray:
    """Put rows of the same slot side by side; shorter slots are padded with zeros, which change no criterion."""
    if (counts == counts[0]).all():
        return _contiguous(weights).reshape(len(counts), -1)
    width = weights.shape[1]
    merged = np.zeros((len(counts), int(counts.max()) * width), dtype=weights.dtype)
    starts = np.concatenate([[0], np.cumsum(counts)])
    for row, count in enumerate(counts):
        merged[row, : count * width] = weights[starts[row] : starts[row + 1]].reshape(-1)
    return merged


def _contiguous(weights: FloatArray) -> FloatArray:
    """The rows one after the other: of a large transposed matrix a copy in strips, which fit the cache, is faster."""
    if weights.flags.c_contiguous:
        return weights
    rows = np.empty(weights.shape, dtype=weights.dtype)
    for start in range(0, weights.shape[1], _STRIP):
        rows[:, start : start + _STRIP] = weights[:, start : start + _STRIP]
    return rows


def _gammas(trace: Trace) -> dict[tuple[int, str], FloatArray]:
    """For each consumer the scale of each of its slots: of the nearest normalisation above, else of any on the slot.

    It is without a sign, and the mean of a slot's channels.
    """
    graph = trace.graph
    by_class = np.full(trace.slots.count, np.nan)
    scale_of: dict[str, FloatArray] = {}
    for node in graph.nodes:
        axis = ((node.index, 1), 0)
        if node.op_type == "BatchNormalization" and axis in trace.slots.axes:
            gamma = np.asarray(graph.value(node.inputs[1]), dtype=np.float64)
            by_class[trace.slots.axes[axis]] = np.fmax(by_class[trace.slots.axes[axis]], np.abs(gamma))
            scale_of[node.outputs[0]] = gamma
        elif len(node.inputs) == 1 and node.inputs[0] in scale_of:  # activations keep the channels and their scale
            scale_of[node.outputs[0]] = scale_of[node.inputs[0]]
    if not scale_of:
        raise ModelError("criterion bn: the model has no BatchNormalization (folded at export?); use --criterion l2")
    result = {}
    for name, consumer in trace.consumers.items():
        classes = trace.slots.axes[consumer.use.tensor_axis]
        nearest = scale_of.get(str(consumer.use.tensor_axis[0]))
        gamma = nearest if nearest is not None and len(nearest) == consumer.channels else by_class[classes]
        _, unit_of = np.unique(consumer.slots, return_inverse=True)
        total = np.bincount(unit_of.reshape(-1), weights=np.abs(gamma))
        per_unit = total / np.bincount(unit_of.reshape(-1))
        if not np.isnan(per_unit).any():
            result[(consumer.segment, name)] = per_unit
    return result
