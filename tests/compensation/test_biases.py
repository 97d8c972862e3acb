"""Where a layer's bias is, and what stands behind it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders import Net
from ucpe_onnx.activations.layers import Layer, find_layers
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.compensation.biases import Bias, bias_of, following, shortcut_of


def layer_of(net: Net, *outputs: str, name: str = "a") -> tuple[GraphView, Layer]:
    graph = GraphView(net.output(*outputs).model())
    return graph, find_layers(graph)[name]


def test_an_input_of_the_layer():
    net = Net()
    out = net.conv(net.input(), 4, name="a")
    graph, layer = layer_of(net, out)
    assert bias_of(graph, layer) == Bias(layer.node.inputs[2], 1.0, inside=True)
    assert following(graph, layer).out == out and shortcut_of(graph, layer) is None


def test_the_mean_of_a_batch_normalisation():
    net = Net()
    out = net.batch_norm(net.conv(net.input(), 4, bias=False, name="a"))
    graph, layer = layer_of(net, out)
    scale, _, mean, variance = (np.asarray(graph.value(name)) for name in graph.nodes[1].inputs[1:])
    assert bias_of(graph, layer) == Bias(graph.nodes[1].inputs[3], -1.0, inside=False) and mean.shape == (4,)
    behind = following(graph, layer)
    assert behind.out == out
    np.testing.assert_allclose(behind.slope, scale / np.sqrt(variance + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_an_add_behind_a_product(shape):
    net = Net()
    y = net.op("MatMul", net.input("x", (2, 3, 8)), net.weight(net.normal(8, 4)), name="a")
    bias = net.weight(net.normal(*shape))
    graph, layer = layer_of(net, net.op("Add", bias, y))
    assert bias_of(graph, layer) == Bias(bias, 1.0, inside=False)


@pytest.mark.parametrize("shape", [(4, 1), (4, 4), (1,), ()])
def test_not_one_for_each_row(shape):
    """As many rows as columns: the size alone tells nothing."""
    net = Net()
    y = net.op("MatMul", net.input("x", (4, 8)), net.weight(net.normal(8, 4)), name="a")
    assert bias_of(*layer_of(net, net.op("Add", y, net.weight(net.normal(*shape))))) is None
    net = Net()
    x, weight = net.input("x", (4, 8)), net.weight(net.normal(8, 4))
    assert bias_of(*layer_of(net, net.op("Gemm", x, weight, net.weight(net.normal(*shape)), name="a"))) is None


def test_none_that_can_be_changed():
    net = Net()
    y = net.conv(net.input(), 4, bias=False, name="a")
    assert bias_of(*layer_of(net, net.op("Relu", y))) is None
    net = Net()
    y = net.conv(net.input(), 4, bias=False, name="a")
    assert bias_of(*layer_of(net, net.batch_norm(y), y)) is None  # an output of the model is no place to add to
    net = Net()
    shared = net.weight(net.normal(4))
    x, weights = net.input(), [net.weight(net.normal(4, 8, 1, 1)) for _ in range(2)]
    convs = [net.op("Conv", x, weight, shared, name=name) for weight, name in zip(weights, "ab", strict=True)]
    assert bias_of(*layer_of(net, *convs)) is None


def test_a_normalisation_of_the_batch_at_hand_is_none():
    net = Net()
    y = net.conv(net.input(), 4, bias=False, name="a")
    inputs = [net.weight(np.ones(4)) for _ in range(4)]
    out = net.ops("BatchNormalization", y, *inputs, outputs=3, training_mode=1)[0]
    graph, layer = layer_of(net, out)
    assert bias_of(graph, layer) is None and following(graph, layer).out == y


def test_shortcuts():
    net = Net()
    x = net.input("x", (1, 4, 4, 4))
    y = net.batch_norm(net.conv(x, 4, 3, name="a"))
    assert shortcut_of(*layer_of(net, net.op("Relu", net.op("Add", x, y)))) == x
    net = Net()
    x = net.input("x", (2, 3, 8))
    y = net.op("MatMul", x, net.weight(net.normal(8, 8)), name="a")
    y = net.op("Add", y, net.weight(net.normal(8)))
    assert shortcut_of(*layer_of(net, net.op("Add", y, x))) == x


def test_what_is_no_shortcut():
    net = Net()
    x = net.input("x", (1, 4, 4, 4))
    first, second = net.conv(x, 4, name="a"), net.conv(x, 4, name="b")
    graph, layer = layer_of(net, net.op("Add", first, second))
    assert shortcut_of(graph, layer) is None  # is made later
    assert shortcut_of(graph, find_layers(graph)["b"]) == first
    net = Net()
    x = net.input("x", (1, 4, 4, 4))
    pooled = net.op("GlobalAveragePool", x)
    assert shortcut_of(*layer_of(net, net.op("Add", net.conv(x, 4, name="a"), pooled))) is None  # is spread
    net = Net()
    x = net.input("x", (1, 4, 4, 4))
    assert shortcut_of(*layer_of(net, net.op("Add", net.conv(x, 4, name="a"), net.weight(net.normal(4, 4, 4))))) is None
    net = Net()
    y = net.conv(net.input("x", (1, 4, 4, 4)), 4, name="a")
    assert shortcut_of(*layer_of(net, net.op("Add", y, y))) is None
