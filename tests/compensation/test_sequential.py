"""Refitting layer by layer: what is nearer to the original network afterwards, and what is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tests.builders import Array, Net, feeds_for, run
from tests.properties.graphs import Case, models
from tests.properties.running import runs, runs_optimised
from ucpe_onnx.activations import walk
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.compensation import sequential
from ucpe_onnx.compensation.sequential import Compensation, compensate
from ucpe_onnx.errors import DataError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.new_weights import NewWeight, with_weights
from ucpe_onnx.runtime.session import RunOptions

OPTIONS = RunOptions(threads=1)


def masks_of(model: onnx.ModelProto, kept: Mapping[str, Sequence[int]]) -> dict[str, Mask]:
    consumers = trace(model).consumers
    return {name: np.isin(np.arange(consumers[name].channels), list(k)) for name, k in kept.items()}


def batches(model: onnx.ModelProto, count: int, size: int = 8) -> list[dict[str, Array]]:
    return [feeds_for(model, 10 + seed, dynamic=size) for seed in range(count)]


def compensated(
    model: onnx.ModelProto, masks: Mapping[str, Mask], feeds: Sequence[Mapping[str, Array]]
) -> Compensation:
    before = model.SerializeToString(deterministic=True)
    found = compensate(trace(model), masks, feeds, OPTIONS)
    assert model.SerializeToString(deterministic=True) == before
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in found.weights.items():
        assert value.dtype == np.float32 and value.shape == tuple(stored[name].dims) and np.isfinite(value).all()
    return found


def plain_and_fitted(
    model: onnx.ModelProto, masks: Mapping[str, Mask], found: Compensation
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    weights = {name: NewWeight.of(value) for name, value in found.weights.items()}
    return masked_model(model, masks), masked_model(with_weights(model, weights), masks)


def errors(
    model: onnx.ModelProto, masks: Mapping[str, Mask], found: Compensation, feeds: Sequence[Mapping[str, Array]]
) -> tuple[float, float]:
    """Squared distance from the original's first output, over its variance: as masked, and with the new weights."""
    made = []
    for other in plain_and_fitted(model, masks, found):
        pairs = [(run(other, feed)[0], run(model, feed)[0]) for feed in feeds]
        wanted = np.concatenate([b.reshape(-1) for _, b in pairs])
        made.append(sum(float(np.square(a - b).sum()) for a, b in pairs) / (wanted.size * wanted.var() + 1e-30))
    return made[0], made[1]


def check(
    model: onnx.ModelProto, kept: Mapping[str, Sequence[int]], better: float = 0.8, count: int = 8
) -> Compensation:
    """On samples that were not fitted to, the error falls to less than a share of what it was."""
    masks, feeds = masks_of(model, kept), batches(model, count)
    found = compensated(model, masks, feeds)
    plain, fitted = errors(model, masks, found, batches(model, count + 2)[count:])
    assert fitted < better * plain
    return found


# What gets better


def straight(channels: int = 12, **more: object) -> onnx.ModelProto:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), channels, 3, name="a"))
    return net.output(net.conv(a, 4, 3, name="b", **more)).model()


def test_a_convolution_with_and_without_bias():
    for bias in (True, False):
        found = check(straight(bias=bias), {"b": range(9)})
        assert [fit.name for fit in found.layers] == ["b"] and len(found.weights) == 1 + bias and not found.left
        assert found.layers[0].ridge is not None and found.layers[0].after < found.layers[0].before


def test_dropped_weights_stay_as_they_were_or_zero():
    """Only what is kept is fitted; a mask on top of the new weights changes nothing that was looked at."""
    model = straight()
    found = check(model, {"b": range(9)})
    (name,) = (name for name, value in found.weights.items() if value.ndim == 4)
    assert not found.weights[name][:, 9:].any()


def test_what_comes_behind_makes_up_for_it():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    b = net.op("Relu", net.conv(a, 8, 3, name="b"))
    aside = net.conv(a, 2, name="aside")
    model = net.output(net.conv(b, 4, name="c"), aside).model()
    found = check(model, {"b": range(6)})
    assert [fit.name for fit in found.layers] == ["b", "c"]  # and neither what is ahead nor what is beside


def test_exact_combinations_are_folded_in():
    net = Net()
    weight = net.normal(6, 3, 1, 1)
    weight[4:] = np.einsum("ij,jkhw->ikhw", net.normal(2, 4), weight[:4])
    a = net.conv_with(net.input("x", ("n", 3, 6, 6)), net.weight(weight), name="a")
    model = net.output(net.conv(a, 5, 3, name="b")).model()
    masks, feeds = masks_of(model, {"b": range(4)}), batches(model, 8)
    plain, fitted = errors(model, masks, compensated(model, masks, feeds), feeds)
    assert plain > 0.01 and fitted < 1e-5


def test_a_batch_normalisation_takes_the_bias():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    b = net.batch_norm(net.conv(a, 6, 3, bias=False, name="b"))
    model = net.output(net.conv(net.op("Relu", b), 4, name="c")).model()
    found = check(model, {"b": range(6)})
    normalisation = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    assert normalisation.input[3] in found.weights and normalisation.input[4] not in found.weights


def test_products_with_a_bias_behind():
    net = Net()
    y = net.op("MatMul", net.input("x", ("n", 5, 6)), net.weight(net.normal(6, 12)), name="a")
    y = net.op("Relu", net.op("Add", y, net.weight(net.normal(12))))
    y = net.op("MatMul", y, net.weight(net.normal(12, 4)), name="b")
    bias = net.weight(net.normal(4))
    model = net.output(net.op("Add", y, bias)).model()
    assert bias in check(model, {"b": range(8)}).weights


@pytest.mark.parametrize("trans_b", [True, False])
def test_a_flattened_map(trans_b):
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 2, 2)), 6, 3, name="a"))
    model = net.output(net.gemm(net.op("Flatten", a), 4, name="b", trans_b=trans_b)).model()
    channels = [c for c in range(24) if c not in (3, 8, 9, 10, 11, 21)]
    found = check(model, {"b": channels}, count=16)
    weight = next(value for value in found.weights.values() if value.ndim == 2)
    dropped = (weight if trans_b else weight.T)[:, [3, 8, 9, 10, 11, 21]]
    assert not dropped.any()


def test_groups():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    b = net.op("Relu", net.conv(a, 6, 3, groups=2, name="b"))
    model = net.output(net.conv(b, 4, name="c")).model()
    found = check(model, {"b": [0, 1, 3, 5, 6, 7]})
    weight = found.weights[model.graph.node[2].input[1]]
    assert not weight[:3, 2].any() and not weight[3:, 0].any() and weight[:3, 0].any() and weight[3:, 2].any()


def test_depthwise_layers_behind():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    b = net.depthwise(net.op("Relu", net.conv(a, 6, 3, name="b")), name="d")
    model = net.output(net.conv(net.op("Relu", b), 4, name="c")).model()
    found = check(model, {"b": range(6)})
    assert [fit.name for fit in found.layers] == ["b", "d", "c"]


def residual(product: bool = False) -> onnx.ModelProto:
    """A block behind a layer that loses channels: its shortcut lacks something that its layers can make up for."""
    net = Net()
    if product:
        a = net.op("Relu", net.op("MatMul", net.input("x", ("n", 5, 6)), net.weight(net.normal(6, 12)), name="a"))
        b = net.op("MatMul", a, net.weight(net.normal(12, 8)), name="b")
        c = net.op("MatMul", net.op("Relu", b), net.weight(net.normal(8, 8)), name="c")
        return net.output(net.op("Add", net.op("Add", c, net.weight(net.normal(8))), b)).model()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 12, 3, name="a"))
    b = net.conv(a, 8, 3, name="b")
    c = net.batch_norm(net.conv(net.op("Relu", b), 8, 3, bias=False, name="c"))
    return net.output(net.op("Add", b, c)).model()


@pytest.mark.parametrize("product", [False, True])
def test_shortcuts_are_made_up_for(monkeypatch, product):
    model = residual(product)
    masks, feeds = masks_of(model, {"b": range(4)}), batches(model, 8)
    _, fitted = errors(model, masks, compensated(model, masks, feeds), feeds)
    monkeypatch.setattr(sequential, "shortcut_of", lambda *_: None)
    _, without = errors(model, masks, compensated(model, masks, feeds), feeds)
    assert fitted < 0.95 * without


def test_a_layer_beside_a_shortcut_that_lacks_something():
    """Its own data is what it was; only what it is added to is not."""
    net = Net()
    x = net.input("x", ("n", 3, 6, 6))
    a = net.op("Relu", net.conv(x, 8, 3, name="a"))
    b = net.conv(a, 4, 3, name="b")
    model = net.output(net.op("Add", b, net.conv(x, 4, 3, name="beside"))).model()
    found = compensated(model, masks_of(model, {"b": range(4)}), batches(model, 8))
    assert [fit.name for fit in found.layers] == ["b", "beside"]


def test_masks_of_several_consumers_of_a_tensor():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 12, 3, name="a"))
    b, c = net.conv(a, 4, 3, name="b"), net.conv(a, 4, name="c")
    model = net.output(net.conv(net.op("Relu", net.op("Add", b, c)), 3, name="d")).model()
    check(model, {"b": range(8), "c": range(4, 12)})


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


# Any network


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=models(8), seed=st.integers(0, 99))
def test_any_graph_at_any_masks(case: Case, seed: int) -> None:
    """Weights of the right shapes, whatever the operators; never an error."""
    model, shapes = case
    feeds = [feeds_for(model, n, shapes=shapes) for n in range(5)]
    assume(runs_optimised(model) and all(runs(model, feed, optimise=True) for feed in feeds))
    random = np.random.default_rng(seed)
    masks = {}
    for name, consumer in trace(model).consumers.items():
        mask = ~consumer.prunable | (random.random(consumer.channels) < 0.6)
        mask[random.integers(consumer.channels)] = True
        masks[name] = mask
    found = compensated(model, masks, feeds)
    assert not set(found.left) & {fit.name for fit in found.layers}
    for fit in found.layers:
        assert (fit.after < fit.before) if fit.ridge is not None else fit.after == fit.before


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    widths=st.lists(st.sampled_from([6, 8, 12]), min_size=2, max_size=4),
    normalised=st.booleans(),
    shortcut=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_nets_get_nearer_to_the_original(widths, normalised, shortcut, seed):
    net = Net(seed=seed)
    y = net.op("Relu", net.conv(net.input("x", ("n", 3, 5, 5)), widths[0], 3, name="first"))
    for index, width in enumerate(widths):
        made = net.conv(y, width, 3, bias=not normalised, name=f"layer{index}")
        made = net.batch_norm(made) if normalised else made
        made = net.op("Add", made, y) if shortcut and net.shapes[made] == net.shapes[y] else made
        y = net.op("Relu", made)
    model = net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", y)), 4, name="head")).model()
    random = np.random.default_rng(seed)
    masks = {}
    for name, consumer in trace(model).consumers.items():
        mask = np.ones(consumer.channels, dtype=bool)
        if consumer.prunable.all():
            mask[random.permutation(consumer.channels)[: consumer.channels // 3]] = False
        masks[name] = mask
    feeds = batches(model, 8)
    plain, fitted = errors(model, masks, compensated(model, masks, feeds), feeds)
    assert fitted < plain
