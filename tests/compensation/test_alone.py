"""Layers refitted each by itself, against plain least squares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.budget.nets import gathered
from tests.builders import Array, Net, run
from ucpe_onnx.activations import grams
from ucpe_onnx.activations.layers import Layer, find_layers
from ucpe_onnx.activations.statistics import ConsumerStatistics
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.compensation import alone
from ucpe_onnx.compensation.alone import compensate_alone
from ucpe_onnx.masked import masked_model
from ucpe_onnx.model.new_weights import with_weights

MASK = np.array([True, False, True, True, False, True])


@pytest.fixture(autouse=True)
def tiny_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "_RIDGE", 1e-9)


def images(count: int = 30) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, 5, 5)).astype(np.float32)


def convolution(kernel: int = 3, groups: int = 1, **more: object) -> onnx.ModelProto:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    return net.output(net.conv(a, 4, kernel, groups=groups, name="read", **more)).model()


def prepared(model: onnx.ModelProto) -> tuple[Trace, Layer, ConsumerStatistics]:
    """With statistics that claim to be of so many samples that nothing is shrunk."""
    traced, statistics, _ = gathered(model, images())
    known = replace(statistics.consumers["read"], samples=10**12, values=10**12)
    return traced, find_layers(traced.graph)["read"], known


def read_by(model: onnx.ModelProto, layer: Layer) -> Array:
    """The layer's features, shape (groups, rows, features)."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    watched.graph.output.insert(0, onnx.helper.make_empty_tensor_value_info(layer.data))
    rows = layer.rows(run(watched, {"x": images()})[0]).astype(np.float64)
    return rows.reshape(len(rows), -1, rows.shape[-1])


@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (3, 2), (1, 2)])
def test_least_squares_with_an_intercept(kernel: int, groups: int) -> None:
    model = convolution(kernel, groups)
    traced, layer, known = prepared(model)
    found = compensate_alone(traced.graph, layer, MASK, known)
    weight, bias = np.asarray(traced.graph.value(layer.weight)), np.asarray(traced.graph.value(layer.node.inputs[2]))
    new = layer.matrices(found[layer.weight].value)
    new_bias = found[layer.node.inputs[2]].value.reshape(groups, -1)
    for group, features in enumerate(read_by(model, layer)):
        each = 6 // groups
        keep = np.repeat(MASK[group * each : (group + 1) * each], kernel**2)
        targets = features @ layer.matrices(weight)[group].T + bias.reshape(groups, -1)[group]
        rows = np.column_stack([features[:, keep], np.ones(len(features))])
        wanted = np.linalg.lstsq(rows, targets, rcond=None)[0].T
        np.testing.assert_allclose(new[group][:, keep], wanted[:, :-1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(new_bias[group], wanted[:, -1], rtol=1e-3, atol=1e-4)
        assert not new[group][:, ~keep].any()


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (1, 2)])
def test_without_a_bias_there_is_no_intercept(kernel: int, groups: int) -> None:
    model = convolution(kernel, groups, bias=False)
    traced, layer, known = prepared(model)
    found = compensate_alone(traced.graph, layer, MASK, known)
    assert found.keys() == {layer.weight}
    old, new = (layer.matrices(w) for w in (np.asarray(traced.graph.value(layer.weight)), found[layer.weight].value))
    for group, features in enumerate(read_by(model, layer)):
        each = 6 // groups
        keep = np.repeat(MASK[group * each : (group + 1) * each], kernel**2)
        wanted = np.linalg.lstsq(features[:, keep], features @ old[group].T, rcond=None)[0].T
        np.testing.assert_allclose(new[group][:, keep], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_taps_by_themselves_where_channels_alone_are_told_apart(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """As least squares for each tap, of what the map holds, padding left out."""
    monkeypatch.setattr(grams, "MOST_FEATURES", 20)
    model = convolution(3, groups)
    traced, layer, known = prepared(model)
    each = 6 // groups
    assert known.covariance is not None and known.covariance.shape == (groups, each, each)
    found = compensate_alone(traced.graph, layer, MASK, known)
    weight, bias = (np.asarray(traced.graph.value(name)) for name in layer.node.inputs[1:])
    new, lost = found[layer.weight].value, np.zeros(4)
    pixels = read_by(convolution(1, groups), find_layers(prepared(convolution(1, groups))[0].graph)["read"])
    for group, features in enumerate(pixels):
        keep = MASK[group * each : (group + 1) * each]
        rows = np.column_stack([features[:, keep], np.ones(len(features))])
        for out in range(group * 4 // groups, (group + 1) * 4 // groups):
            for tap in np.ndindex(3, 3):
                at = (out, slice(None), *tap)
                wanted = np.linalg.lstsq(rows, features @ weight[at].astype(np.float64), rcond=None)[0]
                np.testing.assert_allclose(new[at][keep], wanted[:-1], rtol=1e-3, atol=1e-4)
                lost[out] += wanted[-1]
    np.testing.assert_allclose(found[layer.node.inputs[2]].value, bias + lost, rtol=1e-3, atol=1e-4)


def test_outputs_come_nearer() -> None:
    for build in (convolution, normalised, products):
        model = build()
        traced, layer, known = prepared(model)
        mask = np.resize(MASK, layer.channels)
        found = compensate_alone(traced.graph, layer, mask, known)
        outputs = [
            run(m, {"x": images()})[0] for m in (model, masked_model(model, {"read": mask}), with_weights(model, found))
        ]
        assert np.square(outputs[2] - outputs[0]).mean() < 0.8 * np.square(outputs[1] - outputs[0]).mean()
        assert np.abs(outputs[2].mean() - outputs[0].mean()) < 1e-3
        masked = masked_model(with_weights(model, found), {"read": mask})
        np.testing.assert_array_equal(run(masked, {"x": images()})[0], outputs[2])  # what is dropped has zeros


def normalised() -> onnx.ModelProto:
    """Without a bias: the mean of the normalisation takes it up, with the other sign."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    return net.output(net.batch_norm(net.conv(a, 4, pads=[0, 0, 0, 0], name="read", bias=False))).model()


def products() -> onnx.ModelProto:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", a))
    return net.output(net.gemm(pooled, 4, name="read", trans_b=False)).model()


def test_no_moments_no_weights() -> None:
    traced, layer, known = prepared(convolution())
    nothing = ConsumerStatistics(known.samples, known.values, known.mean, known.energy)
    assert compensate_alone(traced.graph, layer, MASK, nothing) == {}


def test_constant_inputs() -> None:
    """What is always the same goes into the bias."""
    net = Net()
    a = net.op("Mul", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3), net.weight([0.0]))
    a = net.op("Add", a, net.weight(np.arange(6.0).reshape(6, 1, 1)))
    model = net.output(net.conv(a, 4, 1, name="read")).model()
    traced, layer, known = prepared(model)
    found = compensate_alone(traced.graph, layer, MASK, known)
    outputs = [run(m, {"x": images()})[0] for m in (model, with_weights(model, found))]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
