"""Without data: what a dropped channel contributes on average goes into the bias, by what batch normalisations tell.

Behind a batch normalisation with scale gamma and shift beta a channel has mean beta and standard deviation |gamma| on
the data that the network was trained on. Taken for normal, it has behind a Relu the mean

    E[max(0, x)] = gamma phi(beta / gamma) + beta Phi(beta / gamma)

(Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, appendix B). The
products of these means with the weights that are dropped are what a layer's bias lacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer, find_layers
from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.compensation.biases import bias_of
from ucpe_onnx.masks import Mask

Array = npt.NDArray[Any]

_KEEPING = frozenset({"AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "Identity"})
"""Operators behind which a channel has the mean that it had; how far it varies is then an upper bound."""


@dataclass(frozen=True)
class _Known:
    """Mean and variance of each channel of a tensor."""

    mean: Array
    variance: Array


def biases_from_norms(trace: Trace, masks: Mapping[str, Mask]) -> dict[str, Array]:
    """New biases for the layers that lose channels whose means are known.

    Args:
        trace: the analysed model.
        masks: what each consumer keeps.

    Returns:
        New values by initializer; none where a mean is unknown or a layer has no bias that can be changed.
    """
    graph, layers = trace.graph, find_layers(trace.graph)
    known = _statistics(graph)
    changed: dict[str, Array] = {}
    for name, mask in masks.items():
        layer = layers.get(name)
        if layer is None or mask.all() or layer.data not in known or layer.groups > 1:
            continue
        bias, means = bias_of(graph, layer), known[layer.data].mean
        if bias is None or means.size != layer.channels:
            continue
        value = changed.get(bias.tensor, np.asarray(graph.value(bias.tensor)))
        total = value.reshape(-1) + bias.sign * _lost(graph, layer, mask, means)
        if np.isfinite(total).all():
            changed[bias.tensor] = np.ascontiguousarray(total.reshape(value.shape), dtype=value.dtype)
    return changed


def _lost(graph: GraphView, layer: Layer, mask: Mask, means: Array) -> Array:
    """What the dropped channels make on average, for each output channel; what padding takes away is not seen."""
    weight = layer.matrices(np.asarray(graph.value(layer.weight), dtype=np.float64))[0]
    taps = weight.reshape(layer.made, layer.channels, layer.taps).sum(axis=2)
    return np.asarray(taps[:, ~mask] @ means[~mask])


def _statistics(graph: GraphView) -> dict[str, _Known]:
    """Of every tensor that batch normalisations tell about."""
    known: dict[str, _Known] = {}
    for node in graph.nodes:
        found = _behind(graph, node, known)
        if found is not None:
            known[node.outputs[0]] = found
    return known


def _behind(graph: GraphView, node: Node, known: Mapping[str, _Known]) -> _Known | None:
    inputs = [known[name] for name in node.inputs if name in known]
    if node.op_type == "BatchNormalization":
        gamma, beta = (graph.value(name) for name in node.inputs[1:3])
        if gamma is None or beta is None or node.attributes.get("training_mode", 0):
            return None
        return _Known(np.asarray(beta, np.float64), np.square(np.asarray(gamma, np.float64)))
    if node.op_type == "Relu" and inputs:
        return rectified(inputs[0].mean, inputs[0].variance)
    if node.op_type == "Add" and len(inputs) == 2 and inputs[0].mean.size == inputs[1].mean.size:
        return _Known(inputs[0].mean + inputs[1].mean, inputs[0].variance + inputs[1].variance)
    if node.op_type == "Concat" and len(inputs) == len(node.inputs) and node.attributes.get("axis") == 1:
        return _Known(*(np.concatenate([getattr(i, field) for i in inputs]) for field in ("mean", "variance")))
    return inputs[0] if node.op_type in _KEEPING and inputs else None


def rectified(mean: Array, variance: Array) -> _Known:
    """Mean and variance of max(0, x) for normal x, shape (channels,) each."""
    deviation = np.sqrt(np.maximum(variance, 1e-24))
    z = mean / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    first = deviation * density + mean * below
    second = (mean**2 + variance) * below + mean * deviation * density
    return _Known(first, np.maximum(second - first**2, 0.0))
