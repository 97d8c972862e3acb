"""One constant, several readers that keep different channels: each needs its own part of it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.builders import Net
from tests.traps.trapping import check, width


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_two_layers_share_their_bias(value: float) -> None:
    """Exporters and optimisers merge equal initializers, such as the zero biases of folded normalisations."""
    net = Net()
    bias = net.weight(np.full(8, value))
    a = net.op("Conv", net.input("x", (1, 3, 4, 4)), net.weight(net.normal(8, 3, 1, 1)), bias, name="a")
    c = net.op("Conv", net.op("Relu", a), net.weight(net.normal(8, 8, 1, 1)), bias, name="c")
    net.output(net.conv(c, 4, name="d"))
    for emitted in check(net, {"c": [0, 1], "d": [5, 6, 7]}).values():
        assert (width(emitted, "a"), width(emitted, "c")) == (2, 3)


def test_layers_in_a_row_share_their_weight() -> None:
    net = Net()
    shared = net.weight(net.normal(8, 8, 3, 3))
    y = net.conv(net.input("x", (1, 3, 5, 5)), 8, name="a")
    for name in ("b", "c", "d"):
        y = net.op("Relu", net.conv_with(y, shared, bias=True, name=name))
    net.output(net.conv(y, 4, name="e"))
    for emitted in check(net, {"b": [0, 1, 2], "c": [2, 3, 4, 5], "d": [7], "e": [1, 6]}).values():
        assert [width(emitted, name) for name in "abcd"] == [3, 4, 1, 2]


def test_twins_share_all_parameters() -> None:
    """A Siamese network: the same layers on two inputs, whose readers keep different channels."""
    net = Net()
    weights = [net.weight(net.normal(8, 3, 1, 1)), net.weight(net.normal(8))]
    left, right = (net.op("Relu", net.op("Conv", net.input(name, (1, 3, 4, 4)), *weights, name=name)) for name in "xy")
    net.output(net.op("Add", net.conv(left, 4, name="l"), net.conv(right, 4, name="r")))
    for emitted in check(net, {"l": [0, 1, 2], "r": [2, 7]}).values():
        assert (width(emitted, "x"), width(emitted, "y")) == (3, 2)


def test_twins_compared_with_each_other() -> None:
    """What both make is subtracted, so that both must lose the same channels."""
    net = Net()
    weight = net.weight(net.normal(8, 3, 1, 1))
    left, right = (net.conv_with(net.input(name, (1, 3, 4, 4)), weight, name=name) for name in "xy")
    net.output(net.conv(net.op("Sub", left, right), 4, name="b"), net.conv(right, 4, name="c"))
    for emitted in check(net, {"b": [6, 7], "c": [1]}).values():
        assert width(emitted, "x") == width(emitted, "y") == 3


def test_normalisations_share_their_parameters() -> None:
    """A fresh network's scales are all one, its biases and means zero: four initializers, or one, for all layers."""
    net = Net()
    ones, zeros = net.weight(np.ones(8)), net.weight(np.zeros(8))
    y = net.input("x", (1, 3, 4, 4))
    for name in "abc":
        y = net.op("Relu", net.op("BatchNormalization", net.conv(y, 8, name=name), ones, zeros, zeros, ones))
    net.output(net.conv(y, 4, name="d"))
    for emitted in check(net, {"b": [0, 5, 6], "c": [7], "d": [1, 2]}).values():
        assert [width(emitted, name) for name in "abc"] == [3, 1, 2]


def test_factor_and_slope_shared_by_two_segments() -> None:
    net = Net()
    factor, slope = net.weight(net.normal(1, 8, 1, 1)), net.weight(net.normal(8, 1, 1))
    y = net.input("x", (1, 3, 4, 4))
    for name in "ab":
        y = net.op("PRelu", net.op("Mul", net.conv(y, 8, name=name), factor), slope)
    net.output(net.conv(y, 4, name="c"))
    for emitted in check(net, {"b": [3, 4], "c": [0, 1, 7]}).values():
        assert (width(emitted, "a"), width(emitted, "b")) == (2, 3)


def test_weight_read_along_both_of_its_axes() -> None:
    """A square matrix, once transposed and once not."""
    net = Net()
    shared = net.weight(net.normal(8, 8))
    y = net.gemm(net.input("x", (2, 3)), 8, name="a")
    y = net.op("Tanh", net.op("Gemm", y, shared, transB=1, name="b"))
    y = net.op("Tanh", net.op("MatMul", y, shared, name="c"))
    net.output(net.gemm(y, 4, name="d"))
    for emitted in check(net, {"b": [0, 1, 2], "c": [2, 3, 4, 5], "d": [7]}).values():
        assert (width(emitted, "b", 1), width(emitted, "b"), width(emitted, "c", 1)) == (3, 4, 1)


def test_table_of_embeddings_is_the_last_layer_too() -> None:
    """Tied embeddings: the table makes the channels of the tokens, and transposed it reads those of the end."""
    net = Net()
    table = net.weight(net.normal(11, 8), "table")
    x = net.op("Gather", table, net.input("ids", (2, 5), TensorProto.INT64))
    y = net.op("Tanh", net.op("MatMul", net.op("Tanh", x), net.weight(net.normal(8, 8)), name="b"))
    net.output(net.op("MatMul", y, net.op("Transpose", table), name="end"))
    for emitted in check(net, {"b": [1, 5], "end": [0, 2, 3, 7]}).values():
        assert (width(emitted, "b"), width(emitted, "b", 1), width(emitted, "end")) == (2, 4, 4)


def test_weight_that_is_an_output_too() -> None:
    """Callers see the whole of it, whatever the layer needs."""
    net = Net()
    weight = net.weight(net.normal(8, 3, 1, 1))
    a = net.conv_with(net.input("x", (1, 3, 4, 4)), weight, name="a")
    net.output(net.conv(a, 4, name="b"), net.op("Identity", weight))
    for emitted in check(net, {"b": [3, 4]}).values():
        assert width(emitted, "a") == 2


def test_weight_that_is_standardised_in_the_graph() -> None:
    """A batch normalisation of the weight, whose statistics nobody reads: none of that is left behind."""
    net = Net()
    y = net.input("x", (1, 3, 4, 4))
    for name, shape in (("a", (8, 3, 1, 1)), ("b", (8, 8, 1, 1)), ("c", (4, 8, 1, 1))):
        parameters = [net.weight(value) for value in (np.ones(shape[0]), *np.zeros((2, shape[0])), np.ones(shape[0]))]
        rows = net.reshape(net.weight(net.normal(*shape)), 1, shape[0], -1)
        standardised = net.ops("BatchNormalization", rows, *parameters, outputs=3, training_mode=1)[0]
        y = net.op("Relu", net.conv_with(y, net.reshape(standardised, *shape), name=name))
    net.output(y)
    for emitted in check(net, {"b": [0, 5], "c": [1, 2, 6]}).values():
        assert [width(emitted, name) for name in "ab"] == [2, 3]
        assert {node.op_type for node in emitted.graph.node} <= {"Conv", "Relu", "Gather", "Slice"}
