"""Refitting layer by layer: what is left alone, samples of any number and shape, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.builders import Net
from tests.compensation.fitting import OPTIONS, batches, check, compensated, errors, masks_of, residual, straight
from ucpe_onnx.activations import walk
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.compensation import sequential
from ucpe_onnx.compensation.sequential import Compensation, compensate
from ucpe_onnx.errors import DataError

# What stays


def test_with_everything_kept_nothing_changes():
    model = straight()
    for masks in ({}, {"b": np.ones(12, dtype=bool)}):
        assert compensated(model, masks, batches(model, 2)) == Compensation()


def test_a_channel_that_says_nothing_may_go_without_a_change():
    net = Net()
    weight = net.normal(6, 3, 3, 3)
    weight[2] = 0
    a = net.conv_with(net.input("x", ("n", 3, 6, 6)), net.weight(weight), name="a")
    model = net.output(net.conv(net.op("Relu", a), 4, 3, name="b")).model()
    found = compensated(model, masks_of(model, {"b": [0, 1, 3, 4, 5]}), batches(model, 2))
    assert not found.weights and [fit.ridge for fit in found.layers] == [None]


def test_layers_that_are_left_are_masked_for_those_behind():
    """A shared weight stays masked as it is, and what follows is fitted to what it makes then."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    weight = net.weight(net.normal(8, 8, 3, 3))
    b = net.op("Relu", net.conv_with(a, weight, name="b"))
    c = net.op("Relu", net.conv_with(b, weight, name="b2"))
    model = net.output(net.conv(c, 4, name="c")).model()
    found = check(model, {"b": range(5)})
    assert found.left == {"b": "its weight is shared"} and [fit.name for fit in found.layers] == ["c"]
    assert weight not in found.weights


def test_quantised_layers_are_left():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    stored = net.weight(net.random.integers(-100, 100, (6, 8, 3, 3)).astype(np.int8))
    weight = net.op("DequantizeLinear", stored, net.weight(np.float32(0.01)), net.weight(np.int8(0)))
    b = net.op("Relu", net.conv_with(a, weight, name="b"))
    model = net.output(net.conv(b, 4, name="c")).model()
    found = check(model, {"b": range(5)})
    assert found.left == {"b": "its weight is quantised"} and [fit.name for fit in found.layers] == ["c"]


def test_too_many_features_are_left(monkeypatch):
    monkeypatch.setattr(sequential, "MOST_FEATURES", 100)
    model = straight()
    found = compensated(model, masks_of(model, {"b": range(9)}), batches(model, 2))
    assert found.left == {"b": "it reads 108 features, more than 100"} and not found.weights


def test_biases_for_each_row_or_computed_are_left():
    for shape in ((4, 1), (4, 4)):
        net = Net()
        y = net.op("Relu", net.gemm(net.input("x", (4, 6)), 8, name="a"))
        y = net.op("Gemm", y, net.weight(net.normal(8, 4)), net.weight(net.normal(*shape)), name="b")
        model = net.output(y).model()
        found = compensated(model, {"b": np.arange(8) < 6}, batches(model, 4))
        assert found.left == {"b": "its bias differs between rows"}
    net = Net()
    y = net.op("Relu", net.gemm(net.input("x", (4, 6)), 8, name="a"))
    model = net.output(net.op("Gemm", y, net.weight(net.normal(8, 4)), net.input("bias", (4,)), name="b")).model()
    found = compensated(model, {"b": np.arange(8) < 6}, batches(model, 4))
    assert found.left == {"b": "its bias is computed at run time"}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 4), (4,)])
def test_biases_of_any_form_that_are_one_for_each_channel(shape):
    net = Net()
    y = net.op("Relu", net.gemm(net.input("x", (8, 6)), 12, name="a"))
    model = net.output(
        net.op("Gemm", y, net.weight(net.normal(12, 4)), net.weight(net.normal(*shape)), name="b")
    ).model()
    check(model, {"b": range(9)}, better=0.95, count=24)


def test_shapes_that_follow_from_values():
    """How many rows there are depends on what the pruned layer makes."""
    net = Net()
    a = net.op("Relu", net.gemm(net.input("x", (8, 6)), 8, name="a"))
    b = net.gemm(a, 4, name="b")
    places = net.op("Transpose", net.op("NonZero", net.op("Relu", b)), perm=[1, 0])
    rows = net.op("Cast", places, to=TensorProto.FLOAT)
    (rows,) = net.ops("Identity", rows, shapes=[("found", 2)])
    model = net.output(net.op("MatMul", rows, net.weight(net.normal(2, 3)), name="c"), b).model()
    found = compensated(model, masks_of(model, {"b": range(3)}), batches(model, 4))
    assert found.left == {"c": "in the pruned network it reads a tensor of another shape"}
    assert [fit.name for fit in found.layers] == ["b"]


def test_nothing_to_fit_to():
    net = Net()
    a = net.op("Relu", net.gemm(net.input("x", ("n", 6)), 8, name="a"))
    (none,) = net.ops("Compress", a, net.input("some", ("n",), TensorProto.BOOL), axis=0, shapes=[("m", 8)])
    model = net.output(net.gemm(none, 4, name="b")).model()
    feed = {"x": np.ones((3, 6), np.float32), "some": np.zeros(3, bool)}
    found = compensated(model, masks_of(model, {"b": range(5)}), [feed])
    assert found.left == {"b": "it makes nothing on the samples"}


# Samples


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 2), (4, 1), (1, 5)])
def test_few_samples(count, size):
    model = straight()
    compensated(model, masks_of(model, {"b": range(3)}), batches(model, count, size))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e15, 1e30])
def test_constant_inputs(value):
    model = straight()
    feeds = [{"x": np.full((4, 3, 6, 6), value, np.float32)}]
    compensated(model, masks_of(model, {"b": range(3)}), feeds)


def test_padding_does_not_count():
    model = straight()
    masks, (feed,) = masks_of(model, {"b": range(6)}), batches(model, 1, 8)
    padded = {"x": np.concatenate([feed["x"], np.repeat(feed["x"][-1:], 8, axis=0)])}
    wanted = compensated(model, masks, [feed])
    found = compensate(trace(model), masks, [padded], OPTIONS, real=[8])
    for name, value in wanted.weights.items():
        np.testing.assert_allclose(found.weights[name], value, rtol=1e-3, atol=1e-4)


def test_inputs_of_several_kinds():
    """The first is no batch, the second holds integers; samples of some feeds are more than of others."""
    net = Net()
    factor, ids = net.input("factor", ()), net.input("ids", ("n", 5), TensorProto.INT64)
    y = net.op("Gather", net.weight(net.normal(9, 6)), ids)
    y = net.op("Relu", net.op("MatMul", net.op("Mul", y, factor), net.weight(net.normal(6, 12)), name="a"))
    model = net.output(net.op("MatMul", y, net.weight(net.normal(12, 4)), name="b")).model()
    random = np.random.default_rng(0)
    feeds = [{"factor": np.array(2.0, np.float32), "ids": random.integers(0, 9, (n, 5))} for n in (3, 7, 5)]
    masks = masks_of(model, {"b": range(9)})
    plain, fitted = errors(model, masks, compensated(model, masks, feeds), feeds)
    assert fitted < 0.5 * plain


@pytest.mark.parametrize("perm", [[1, 0, 2], [0, 1, 2]])
def test_sequences_with_samples_on_any_axis(perm):
    net = Net()
    y = net.op("Transpose", net.input("x", ("n", 5, 6)), perm=perm)
    y = net.op("Relu", net.op("MatMul", y, net.weight(net.normal(6, 12)), name="a"))
    model = net.output(net.op("MatMul", y, net.weight(net.normal(12, 4)), name="b")).model()
    check(model, {"b": range(9)})


def test_a_vector_is_one_row():
    net = Net()
    y = net.op("Relu", net.op("MatMul", net.input("x", (6,)), net.weight(net.normal(6, 8)), name="a"))
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 4)), name="b")).model()
    masks, feeds = {"b": np.arange(8) < 6}, batches(model, 40)
    plain, fitted = errors(model, masks, compensated(model, masks, feeds), feeds)
    assert fitted < plain


def test_maps_of_several_sizes():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, "h", "w")), 12, 3, name="a"))
    model = net.output(net.conv(a, 4, 3, name="b")).model()
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((2, 3, h, 12 - h)).astype(np.float32)} for h in (3, 5, 8, 6)]
    masks = masks_of(model, {"b": range(9)})
    plain, fitted = errors(model, masks, compensated(model, masks, feeds), feeds)
    assert fitted < 0.8 * plain


def test_positions_are_drawn_where_all_would_be_too_many(monkeypatch):
    model = straight()
    masks, feeds = masks_of(model, {"b": range(9)}), batches(model, 8)
    whole = compensated(model, masks, feeds)
    monkeypatch.setattr(sequential, "_MOST_WORK", 1.0)
    monkeypatch.setattr(sequential, "_MOST_BYTES", 2**16)
    some = [compensated(model, masks, feeds) for _ in range(2)]
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(some[0].weights[name], some[1].weights[name])
        assert not np.array_equal(some[0].weights[name], value)
    plain, fitted = errors(model, masks, some[0], feeds)
    assert fitted < plain


def test_the_same_from_files(monkeypatch):
    model = residual()
    masks, feeds = masks_of(model, {"b": range(4)}), batches(model, 3)
    wanted = compensated(model, masks, feeds)
    monkeypatch.setattr(sequential, "Store", lambda: walk.Store(0))
    for name, value in compensated(model, masks, feeds).weights.items():
        np.testing.assert_array_equal(value, wanted.weights[name])


# Errors


def test_nan_in_the_data():
    model = straight()
    feeds = batches(model, 2, 3)
    feeds[1]["x"][1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="input 'x' is NaN or infinite on sample 4 of the data"):
        compensated(model, masks_of(model, {"b": range(9)}), feeds)


def test_what_the_original_makes_is_not_finite():
    net = Net()
    a = net.op("Log", net.conv(net.input("x", ("n", 3, 4, 4)), 8, name="a"))
    model = net.output(net.conv(a, 4, name="b")).model()
    feeds = batches(model, 1, 3)
    with pytest.raises(
        DataError, match=r"tensor 't\d+' is NaN or infinite on sample 0 of s\.npz .*leave that sample out"
    ):
        compensate(trace(model), masks_of(model, {"b": range(6)}), feeds, OPTIONS, source="s.npz")


def test_what_only_the_pruned_network_makes_is_not_finite():
    """A layer that reads it stays as it is."""
    net = Net()
    a = net.op("MatMul", net.input("x", ("n", 2)), net.weight(np.float32([[1, 0, 1], [0, 1, 0]])), name="a")
    shared = net.weight(np.float32([[1, 1], [1, 1], [-2, -2]]))
    b, other = (net.op("MatMul", a, shared, name=name) for name in ("b", "other"))
    model = net.output(net.op("MatMul", net.op("Exp", b), net.weight(net.normal(2, 2)), name="c"), other).model()
    feeds = [{"x": np.full((4, 2), 60.0, np.float32)}]
    found = compensated(model, masks_of(model, {"b": [0, 1]}), feeds)
    assert found.left == {"b": "its weight is shared", "c": "what it reads in the pruned network is NaN or infinite"}
