"""Means of dropped channels, from batch normalisations."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from tests.builders import Array, Net
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.compensation.without_samples import biases_from_norms, rectified


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 1.0), (0.3, 0.0), (-0.3, 0.0)])
def test_moments_behind_a_relu(mean, deviation):
    drawn = np.maximum(np.random.default_rng(0).normal(mean, deviation, 400_000), 0)
    found = rectified(np.array([mean]), np.array([deviation**2]))
    np.testing.assert_allclose(found.mean, [drawn.mean()], atol=5e-3)
    np.testing.assert_allclose(found.variance, [drawn.var()], atol=1e-2)


def stored(net: Net, name: str) -> Array:
    return np.asarray(numpy_helper.to_array(net.initializers[name]))


def case(relu: bool, **more: object) -> tuple[Net, str, Array]:
    """A normalisation, maybe a Relu, and a layer of 6 channels; with the mean of each channel."""
    net = Net()
    y = net.batch_norm(net.conv(net.input("x", (1, 3, 4, 4)), 6, bias=False))
    gamma, beta = (stored(net, name).astype(np.float64) for name in net.nodes[-1].input[1:3])
    means = rectified(beta, gamma**2).mean if relu else beta
    y = net.op("Relu", y) if relu else y
    return net, net.conv(y, 4, 3, name="b", **more), means


MASK = {"b": np.array([True, False, True, True, False, True])}


@pytest.mark.parametrize("relu", [False, True])
def test_into_the_layers_own_bias(relu):
    net, out, means = case(relu)
    weight, bias = (stored(net, name) for name in net.nodes[-1].input[1:])
    changed = biases_from_norms(trace(net.output(out).model()), MASK)
    wanted = bias + weight[:, [1, 4]].sum(axis=(2, 3)) @ means[[1, 4]]
    ((name, value),) = changed.items()
    assert name == net.nodes[-1].input[2] and value.dtype == np.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_into_the_mean_of_the_next_normalisation():
    net, out, means = case(True, bias=False)
    weight = stored(net, net.nodes[-1].input[1])
    model = net.output(net.batch_norm(out)).model()
    mean = net.nodes[-1].input[3]
    changed = biases_from_norms(trace(model), MASK)
    wanted = stored(net, mean) - weight[:, [1, 4]].sum(axis=(2, 3)) @ means[[1, 4]]
    assert list(changed) == [mean]
    np.testing.assert_allclose(changed[mean], wanted, rtol=1e-5)


def test_through_sums_joins_and_pools():
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = (net.batch_norm(net.conv(x, 3, bias=False)) for _ in range(2))
    betas = [stored(net, node.input[2]) for node in net.nodes if node.op_type == "BatchNormalization"]
    joined = net.op("Concat", net.op("Add", a, b), a, axis=1)
    out = net.gemm(net.op("Flatten", net.op("GlobalAveragePool", joined)), 4, name="b")
    weight, bias = (stored(net, name) for name in net.nodes[-1].input[1:])
    means = np.concatenate([betas[0] + betas[1], betas[0]])
    (value,) = biases_from_norms(trace(net.output(out).model()), MASK).values()
    np.testing.assert_allclose(value, bias + weight[:, [1, 4]] @ means[[1, 4]], rtol=1e-5)


def test_nothing_where_nothing_is_known_or_can_be_changed():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 6))
    assert biases_from_norms(trace(net.output(net.conv(a, 4, name="b")).model()), MASK) == {}
    net, out, _ = case(True, bias=False)
    assert biases_from_norms(trace(net.output(out).model()), MASK) == {}
    net, out, _ = case(True)
    traced = trace(net.output(out).model())
    assert biases_from_norms(traced, {}) == {} and biases_from_norms(traced, {"b": np.ones(6, dtype=bool)}) == {}


def test_damaged_normalisations_spoil_nothing():
    net = Net()
    y = net.batch_norm(net.conv(net.input("x", (1, 3, 4, 4)), 6, bias=False), np.full(6, np.inf))
    with np.errstate(invalid="ignore"):
        assert biases_from_norms(trace(net.output(net.conv(net.op("Relu", y), 4, name="b")).model()), MASK) == {}
