"""Layers as linear maps, against what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.builders import Array, Net, feeds_for, run
from ucpe_onnx.activations.layers import Layer, find_layers, why_no_layer
from ucpe_onnx.analysis.graph import GraphView


def only_layer(model: onnx.ModelProto) -> tuple[GraphView, Layer]:
    graph = GraphView(model)
    (layer,) = find_layers(graph).values()
    return graph, layer


def predicted(graph: GraphView, layer: Layer, value: Array, positions: Array | None = None) -> Array:
    """W f + b at output positions, shape (groups, N, positions, C_out of a group)."""
    weight = layer.matrices(np.asarray(graph.value(layer.weight)))
    rows = layer.rows(value, positions)
    biases = layer.node.inputs[2:]
    offsets = np.asarray(graph.value(biases[0])) if biases and biases[0] else np.zeros(layer.made, np.float32)
    assert rows.shape[-1] == layer.features == weight.shape[-1]
    return np.einsum("gnpf,gof->gnpo", rows, weight) + offsets.reshape(layer.groups, 1, 1, -1)


def check(model: onnx.ModelProto) -> None:
    """All positions, some positions, and there and back for weights."""
    graph, layer = only_layer(model)
    feed = feeds_for(model, seed=3)
    (value,), (out,) = feed.values(), run(model, feed)
    wanted = layer.outputs(out)
    np.testing.assert_allclose(predicted(graph, layer, value), wanted, rtol=1e-4, atol=1e-5)
    assert wanted.shape[2] == layer.positions(value.shape) and wanted.size == out.size
    some = np.random.default_rng(0).permutation(wanted.shape[2])[: max(1, wanted.shape[2] // 2)]
    np.testing.assert_allclose(predicted(graph, layer, value, some), wanted[:, :, some], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.outputs(out, some), wanted[:, :, some])
    weight = np.asarray(graph.value(layer.weight))
    np.testing.assert_array_equal(layer.stored(layer.matrices(weight), weight), weight)
    if layer.groups == 1:
        keep = np.arange(layer.channels)[::2]
        columns = (keep[:, None] * layer.taps + np.arange(layer.taps)).reshape(-1)
        np.testing.assert_array_equal(layer.rows(value, some, keep), layer.rows(value, some)[..., columns])


def conv(shape: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    net = Net()
    inputs = [net.input("x", shape), net.weight(net.normal(*weight)), net.weight(net.normal(weight[0]))]
    return net.output(net.op("Conv", *inputs, name="layer", **attributes)).model()


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((2, 3, 7, 6), (4, 3, 1, 1), {}),
        ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ((2, 3, 9, 8), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [0, 2, 1, 3], "strides": [1, 2]}),
        ((3, 2, 11), (5, 2, 4), {"pads": [1, 3], "strides": [3]}),
        ((1, 2, 4, 5, 3), (3, 2, 2, 3, 1), {"pads": [0, 1, 0, 1, 2, 0], "dilations": [2, 1, 1]}),
        ((2, 6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
        ((2, 4, 5, 5), (4, 1, 3, 3), {"group": 4}),
        ((2, 4, 5, 5), (8, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
        ((2, 3, 7, 6), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((2, 3, 7, 6), (4, 3, 2, 4), {"auto_pad": "SAME_LOWER", "strides": [1, 3]}),
        ((2, 3, 7, 6), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    ],
)
def test_convolutions(shape, weight, attributes):
    check(conv(shape, weight, **attributes))


@pytest.mark.parametrize("trans_b", [True, False])
def test_gemm(trans_b):
    net = Net()
    check(net.output(net.gemm(net.input("x", (5, 6)), 4, trans_b=trans_b)).model())


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (2, 3, 4, 6)])
def test_matrix_products(shape):
    net = Net()
    check(net.output(net.op("MatMul", net.input("x", shape), net.weight(net.normal(6, 4)))).model())


def test_layers_come_in_graph_order_and_nothing_else_does():
    net = Net()
    x = net.input("x", (1, 4, 4, 4))
    a = net.op("Relu", net.conv(x, 8, 3, name="b"))
    net.output(net.gemm(net.op("Flatten", net.conv(a, 4, name="a")), 3, name="c"))
    assert list(find_layers(GraphView(net.model()))) == ["b", "a", "c"]


# What is left alone


def reason(net: Net, out: str) -> str:
    graph = GraphView(net.output(out).model())
    (node,) = (node for node in graph.nodes if node.name == "odd")
    assert "odd" not in find_layers(graph)
    return why_no_layer(graph, node)


def test_shared_weights():
    net = Net()
    x, weight = net.input(), net.weight(net.normal(8, 8, 1, 1))
    assert reason(net, net.conv_with(net.conv_with(x, weight), weight, name="odd")) == "its weight is shared"


def test_weights_that_callers_may_override():
    net = Net()
    x, weight = net.input(), net.weight(net.normal(8, 8, 1, 1))
    net.declare(weight)
    assert "callers may override" in reason(net, net.conv_with(x, weight, name="odd"))


def test_quantised_weights():
    net = Net()
    x, scale = net.input(), net.weight(np.float32(0.1))
    weight = net.op("DequantizeLinear", net.weight(np.ones((4, 8, 1, 1), np.int8)), scale)
    assert reason(net, net.conv_with(x, weight, name="odd")) == "its weight is quantised"


def test_weights_that_are_computed():
    net = Net()
    x = net.input("x", (2, 6))
    assert "computed from constants" in reason(
        net, net.op("MatMul", x, net.op("Transpose", net.weight(net.normal(4, 6))), name="odd")
    )
    net = Net()
    x = net.input("x", (2, 6))
    assert "computed at run time" in reason(net, net.op("MatMul", x, net.op("Transpose", x), name="odd"))


def test_products_with_other_forms():
    net = Net()
    x = net.input("x", (2, 6))
    weight = net.weight(net.normal(6, 4))
    assert "scales" in reason(net, net.op("Gemm", x, weight, net.weight(net.normal(4)), alpha=0.5, name="odd"))
    net = Net()
    assert "on the left" in reason(
        net, net.op("MatMul", net.weight(net.normal(3, 2)), net.input("x", (2, 6)), name="odd")
    )
    net = Net()
    assert "3 axes" in reason(
        net, net.op("MatMul", net.input("x", (2, 5, 6)), net.weight(net.normal(2, 6, 4)), name="odd")
    )


def test_other_operators_and_types():
    net = Net()
    x = net.input()
    weight = net.weight(net.normal(8, 4, 2, 2))
    assert reason(net, net.op("ConvTranspose", x, weight, name="odd")).startswith("ConvTranspose is not refitted")
    net = Net()
    x = net.input("x", (2, 6), onnx.TensorProto.DOUBLE)
    assert "float64" in reason(
        net, net.op("MatMul", x, net.weight(net.normal(6, 4).astype("f8"), double=True), name="odd")
    )


def test_padding_that_depends_on_open_sizes():
    net = Net()
    x = net.input("x", (1, 3, "h", "w"))
    weight = net.weight(net.normal(4, 3, 3, 3))
    out = net.op("Conv", x, weight, auto_pad="SAME_UPPER", name="odd")
    assert "sizes that are not fixed" in reason(net, out)
