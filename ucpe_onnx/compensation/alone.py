"""Refit one layer by itself, from the second moments of what it reads in the original network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer
from ucpe_onnx.activations.statistics import ConsumerStatistics
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.compensation.biases import bias_of
from ucpe_onnx.compensation.weights import NewWeight
from ucpe_onnx.masks import Mask

Array = npt.NDArray[Any]

_RIDGE = 1e-3


def refit_alone(graph: GraphView, layer: Layer, mask: Mask, known: ConsumerStatistics) -> dict[str, NewWeight]:
    """New weights and bias of a layer whose dropped channels are predicted from the kept ones.

    With covariance S of the features, kept K: ``W~_K = W S_:K (S_KK + ridge)^-1``, and the bias takes up
    ``(W - W~) mean``: the least squares solution where inputs are as in the original network.

    Args:
        graph: the model.
        layer: the layer.
        mask: what it keeps, shape (C_in,).
        known: what it reads.

    Returns:
        By initializer; empty if the statistics hold no moments of the layer's features, so that zeros are all there is.
    """
    covariances = known.covariance
    if covariances is None or known.feature_mean is None or covariances.shape[-1] not in _widths(layer):
        return {}
    value = np.asarray(graph.value(layer.weight))
    matrices = layer.matrices(value).astype(np.float64)
    each = layer.channels // layer.groups
    taps = layer.taps if covariances.shape[-1] == layer.features else 1
    fresh = np.zeros_like(matrices)
    lost = np.zeros(layer.made)
    for group in range(layer.groups):
        keep = mask[group * each : (group + 1) * each]
        matrix = matrices[group]
        if taps < layer.taps:  # only channels are told apart: every tap by itself
            matrix = matrix.reshape(-1, each, layer.taps).swapaxes(1, 2).reshape(-1, each)
        new = _predicted(matrix, covariances[group], np.repeat(keep, taps))
        mean = (matrix - new) @ known.feature_mean[group]
        rows = slice(group * layer.made // layer.groups, (group + 1) * layer.made // layer.groups)
        if taps < layer.taps:
            new = new.reshape(-1, layer.taps, each).swapaxes(1, 2).reshape(-1, layer.features)
            mean = mean.reshape(-1, layer.taps).sum(axis=1)
        fresh[group], lost[rows] = new, mean
    found = {layer.weight: NewWeight.of(layer.stored(fresh, value))}
    bias = bias_of(graph, layer)
    if bias is not None:
        offset = np.asarray(graph.value(bias.tensor))
        if offset.size == layer.made:
            found[bias.tensor] = NewWeight.of((offset.reshape(-1) + bias.sign * lost).reshape(offset.shape))
    return found


def _widths(layer: Layer) -> tuple[int, int]:
    return layer.features, layer.channels // layer.groups


def _predicted(matrix: Array, covariance: Array, keep: Array) -> Array:
    new = np.zeros_like(matrix)
    inner = covariance[np.ix_(keep, keep)]
    ridge = _RIDGE * float(np.trace(covariance)) / len(covariance) + 1e-30
    new[:, keep] = np.linalg.solve(inner + ridge * np.eye(len(inner)), (matrix @ covariance[:, keep]).T).T
    return new
