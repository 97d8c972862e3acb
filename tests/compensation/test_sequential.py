"""Refitting layer by layer: what is nearer to the original network afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.builders import Net, feeds_for
from tests.compensation.fitting import batches, check, compensated, errors, masks_of, residual, straight
from tests.properties.graphs import Case, models
from tests.properties.running import runs, runs_optimised
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.compensation import sequential


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
