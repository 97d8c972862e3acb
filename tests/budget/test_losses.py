"""How sensitive the output is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.budget.nets import OPTIONS, by_weights, gathered, residual
from tests.builders import Array, Net
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.budget.losses import _bounded, alone, dropped, measure_losses, scaled
from ucpe_onnx.compensation.error import output_errors
from ucpe_onnx.masked import masked_model
from ucpe_onnx.selection.data_criteria import removal_curve


def images(count: int = 40, side: int = 6) -> Array:
    return np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)


def forked(share: float) -> onnx.ModelProto:
    """Two layers that read the same; the output hears little of one of them."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 6, 6)), 10, 3, name="a"))
    loud, quiet = net.conv(a, 6, name="loud"), net.conv(a, 6, name="quiet")
    return net.output(net.op("Add", loud, net.op("Mul", quiet, net.weight([share])))).model()


def test_who_is_hardly_heard_counts_little() -> None:
    shares = []
    model = forked(0.01)
    traced, statistics, data = gathered(model, images())
    losses = measure_losses(model, traced, statistics, data, options=OPTIONS, progress=shares.append)
    assert 0 < losses.weights["quiet"] < losses.weights["loud"] / 100
    assert shares and all(0 <= share < 1 for share in shares)
    without = measure_losses(forked(0.0), *gathered(forked(0.0), images()), options=OPTIONS, progress=shares.append)
    assert 0 < without.weights["quiet"] < without.weights["loud"] / 100  # never quite nothing
    curve = losses.curve("quiet")
    assert np.allclose(curve.losses, removal_curve(traced, "quiet", statistics).losses * losses.weights["quiet"])
    assert losses.curve("quiet") is curve
    assert scaled(curve)[0] == 0.0 and len(scaled(curve)) == len(curve.order) + 1


def test_products_predict_the_error_of_the_output() -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 6, 6)), 12, 3, bias=False))
    b = net.op("Relu", net.conv(a, 10, 3, name="left", bias=False))
    c = net.op("Relu", net.op("Add", net.conv(b, 12, 3, name="right", bias=False), a))
    model = net.output(net.conv(c, 4, name="fc", bias=False)).model()
    traced, statistics, data = gathered(model, images())
    losses = measure_losses(model, traced, statistics, data, options=OPTIONS, progress=lambda share: None)
    assert set(losses.weights) == {"left", "right", "fc"}
    for name in losses.weights:
        curve = losses.curve(name)
        mask = dropped(traced, name, curve, 2)
        found = alone(model, traced, losses.layers, statistics, {name: mask})
        real = output_errors(model, {"": found}, data, OPTIONS)[""]
        assert curve.losses[1] / 3 < real < 3 * curve.losses[1]
        assert real < output_errors(model, {"": masked_model(model, {name: mask})}, data, OPTIONS)[""]


def test_more_features_than_samples_are_not_free() -> None:
    """On 24 samples half of 64 features follow from the others; on any other samples they don't."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 64, 1, 1)), 64, name="a"))
    pooled = net.op("Flatten", a)
    net.ops(
        "Gemm", pooled, net.weight(net.normal(10, 64)), net.weight(np.zeros(10)), transB=1, name="fc", outputs=["y"]
    )
    model = net.output("y").model()
    everything = np.random.default_rng(0).standard_normal((524, 64, 1, 1)).astype(np.float32)
    traced, statistics, _ = gathered(model, everything[:24])
    _, _, probing = gathered(model, everything[24:40])
    _, _, fresh = gathered(model, everything[40:])
    losses = measure_losses(model, traced, statistics, probing, options=OPTIONS, progress=lambda share: None)
    curve = losses.curve("fc")
    found = alone(model, traced, losses.layers, statistics, {"fc": dropped(traced, "fc", curve, 32)})
    real = output_errors(model, {"": found}, fresh, OPTIONS)[""]
    assert real > 0.02
    assert real / 4 < curve.losses[31] < 4 * real


def test_all_alike_without_samples() -> None:
    model = residual()
    traced = trace(model)
    losses = measure_losses(model, traced, Statistics({}, 0), None, options=OPTIONS, progress=lambda share: None)
    assert losses.weights == {"left": 1.0, "right": 1.0, "fc": 1.0}
    first = np.arange(12) < 3
    order = np.concatenate(by_weights(traced).curve("left", first).order)
    assert sorted(order[:3]) == [0, 1, 2]


def test_a_single_channel_gets_the_usual_weight() -> None:
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 6, 6)), 1, name="a")
    model = net.output(net.conv(net.conv(a, 5, name="b"), 4, name="c")).model()
    losses = measure_losses(model, *gathered(model, images()), options=OPTIONS, progress=lambda share: None)
    assert losses.weights["b"] == losses.weights["c"]


def test_weights_are_bounded() -> None:
    weights = {"a": 2.0, "b": 4.0, "c": 6.0, "none": 0.0, "all": 1e9, "broken": np.inf, "unknown": np.nan}
    found = _bounded(weights, [*weights, "other"])
    assert found == pytest.approx(
        {"a": 2.0, "b": 4.0, "c": 6.0, "none": 0.004, "all": 4e3, "broken": 4e3, "unknown": 4.0, "other": 4.0}
    )
    assert _bounded({}, ["a"]) == {"a": 1.0} and _bounded({"a": 0.0}, ["a"]) == {"a": 1e-3}
