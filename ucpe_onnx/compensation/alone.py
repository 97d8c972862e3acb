"""Refit one layer by itself, from the second moments of what it reads in the original network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer
from ucpe_onnx.activations.statistics import ConsumerStatistics
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.compensation.biases import bias_of
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import NewWeight

Array = npt.NDArray[Any]

_RIDGE = 1e-3


def compensate_alone(graph: GraphView, layer: Layer, mask: Mask, known: ConsumerStatistics) -> dict[str, NewWeight]:
    """New weights and bias of a layer whose dropped channels are predicted from the kept ones.

    With covariance S of the features, kept K: ``W~_K = W S_:K (S_KK + ridge)^-1``, and the bias takes up
    ``(W - W~) mean``: the least squares solution where inputs are as in the original network. Of a layer without a bias
    S is E[f f'], as nothing takes up the means. Where samples are few, correlations are shrunk
    (:func:`ucpe_onnx.activations.shrinkage.shrunk`).

    Args:
        graph: the model.
        layer: the layer.
        mask: what it keeps, shape (C_in,).
        known: what it reads.

    Returns:
        By initializer; empty if the statistics hold no moments of the layer's features, so that zeros are all there is.
    """
    bias = bias_of(graph, layer)
    offset = None if bias is None else np.asarray(graph.value(bias.tensor))
    if offset is not None and offset.size != layer.made:
        offset = None
    moments = known.safe_gram if offset is None else known.safe_covariance
    if moments is None or known.feature_mean is None or moments.shape[-1] not in _widths(layer):
        return {}
    value = np.asarray(graph.value(layer.weight))
    matrices = layer.matrices(value).astype(np.float64)
    each = layer.channels // layer.groups
    taps = layer.taps if moments.shape[-1] == layer.features else 1
    fresh = np.zeros_like(matrices)
    lost = np.zeros(layer.made)
    for group in range(layer.groups):
        keep = mask[group * each : (group + 1) * each]
        matrix = matrices[group]
        if taps < layer.taps:  # only channels are told apart: every tap by itself
            matrix = matrix.reshape(-1, each, layer.taps).swapaxes(1, 2).reshape(-1, each)
        new = _predicted(matrix, moments[group], np.repeat(keep, taps))
        mean = (matrix - new) @ known.feature_mean[group]
        rows = slice(group * layer.made // layer.groups, (group + 1) * layer.made // layer.groups)
        if taps < layer.taps:
            new = new.reshape(-1, layer.taps, each).swapaxes(1, 2).reshape(-1, layer.features)
            mean = mean.reshape(-1, layer.taps).sum(axis=1)
        fresh[group], lost[rows] = new, mean
    found = {layer.weight: NewWeight.of(layer.stored(fresh, value))}
    if bias is not None and offset is not None:
        found[bias.tensor] = NewWeight.of((offset.reshape(-1) + bias.sign * lost).reshape(offset.shape))
    return found


def _widths(layer: Layer) -> tuple[int, int]:
    return layer.features, layer.channels // layer.groups


def _predicted(matrix: Array, moments: Array, keep: Array) -> Array:
    new = np.zeros_like(matrix)
    inner = moments[np.ix_(keep, keep)]
    ridge = _RIDGE * float(np.trace(moments)) / len(moments) + 1e-30
    new[:, keep] = np.linalg.solve(inner + ridge * np.eye(len(inner)), (matrix @ moments[:, keep]).T).T
    return new
