"""Axes counted from the end, in every operator that takes any."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto

from tests.builders import Net
from tests.traps.trapping import check, check_halves, width

Step = Callable[[Net, str], str]


def normalised(net: Net, x: str, axis: int) -> str:
    shape = net.shapes[x][axis:]
    parameters = [net.weight(net.normal(*shape)), net.weight(net.normal(*shape))]
    return net.op("LayerNormalization", x, *parameters, axis=axis)


def quantised(net: Net, x: str) -> str:
    """Scales for each channel."""
    parameters = [net.weight(net.random.uniform(0.02, 0.05, 8)), net.weight(np.arange(8, dtype=np.int8))]
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parameters, axis=-3), *parameters, axis=-3)


STEPS: dict[str, Step] = {
    "Concat": lambda net, x: net.op("Concat", x, net.op("Relu", x), axis=-3),
    "Concat of space": lambda net, x: net.op("Concat", x, net.op("Relu", x), axis=-1),
    "CumSum": lambda net, x: net.op("CumSum", x, net.weight(np.int64(-2))),
    "Expand": lambda net, x: net.op("Expand", net.reduce("ReduceMax", x, [-1]), net.ints(1, 1, 1, 3)),
    "Flatten": lambda net, x: net.unsqueeze(net.op("Flatten", net.op("GlobalMaxPool", x), axis=-3), [-1, -2]),
    "Gather": lambda net, x: net.op("Gather", x, net.ints(7, -1, 2, 0, -6, 2), axis=-3),
    "Gather of space": lambda net, x: net.op("Gather", x, net.ints(-1, 0), axis=-2),
    "LayerNormalization": lambda net, x: normalised(net, x, -1),
    "LayerNormalization of space": lambda net, x: normalised(net, x, -2),
    "LogSoftmax": lambda net, x: net.op("LogSoftmax", x, axis=-2),
    "LpNormalization": lambda net, x: net.op("LpNormalization", x, axis=-1),
    "Pad": lambda net, x: net.op("Pad", x, net.ints(2, 1, 1, 0), "", net.ints(-3, -1)),
    "QuantizeLinear": quantised,
    "ReduceMean": lambda net, x: net.reduce("ReduceMean", x, [-1, -2]),
    "ReduceSum": lambda net, x: net.unsqueeze(net.reduce("ReduceSum", x, [-1, -2], 0), [-1, -2]),
    "Slice": lambda net, x: net.slice(x, [-3], [1], [-1]),
    "Slice with a step": lambda net, x: net.slice(x, [-3], [-1], [-9], [-2]),
    "Softmax": lambda net, x: net.op("Softmax", x, axis=-1),
    "Split": lambda net, x: net.op("Mul", *net.split(x, [4, 4], axis=-3)),
    "Split of space": lambda net, x: net.op("Mul", *net.split(x, [2, 2], axis=-1)),
    "Squeeze": lambda net, x: net.unsqueeze(net.squeeze(net.op("GlobalMaxPool", x), [-1, -2]), [-2, -1]),
    "TopK": lambda net, x: net.ops("TopK", x, net.ints(2), outputs=2, axis=-2)[0],
    "ArgMax": lambda net, x: net.op("Cast", net.op("ArgMax", x, axis=-2), to=TensorProto.FLOAT),
    "Unsqueeze": lambda net, x: net.squeeze(net.op("Relu", net.unsqueeze(x, [-4])), [-4]),
}


@pytest.mark.parametrize("name", STEPS)
def test_operator_between_two_layers(name: str) -> None:
    net = Net(opset=18)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = STEPS[name](net, a)
    net.output(net.conv(y, 4, name="b"))
    traced = check_halves(net.model())
    assert traced.consumers["b"].prunable.all()
    for emitted in check(net, {"b": [1]}).values():
        assert width(emitted, "a") < 8 and width(emitted, "b", 1) < net.shapes[y][1]


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum"])
def test_operator_over_the_channels(op_type: str) -> None:
    """Its own channels stay; those of the layers around it go."""
    net = Net(opset=18)
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    b = net.conv(a, 6, name="b")
    mixed = net.op("CumSum", b, net.weight(np.int64(-3))) if op_type == "CumSum" else net.op(op_type, b, axis=-3)
    net.output(net.conv(net.op("Relu", net.conv(mixed, 8, name="c")), 4, name="d"))
    for lowering, emitted in check(net, {"b": [0, 1, 7], "c": [2, 5], "d": [3]}).items():
        assert [width(emitted, name) for name in "abc"] == [3, 6, 1]
        assert width(emitted, "c", 1) == (2 if lowering in ("gather", "slice") else 6)


def test_tokens_counted_from_the_end() -> None:
    """A transformer's MLP: channels last, normalised along them, joined and cut there."""
    net = Net()
    x = normalised(net, net.input("x", (1, 5, 8)), -1)
    gate, value = net.split(net.op("MatMul", x, net.weight(net.normal(8, 24)), name="a"), [12, 12], axis=-1)
    y = net.op("Mul", net.op("Sigmoid", gate), value)
    both = net.op("Concat", y, net.op("MatMul", x, net.weight(net.normal(8, 6)), name="b"), axis=-1)
    out = net.op("MatMul", both, net.weight(net.normal(18, 8)), name="c")
    net.output(normalised(net, net.op("Add", x, out), -1))
    check_halves(net.model())
    for emitted in check(net, {"c": [0, 1, 5, 16]}).values():
        assert (width(emitted, "a", 1), width(emitted, "b", 1), width(emitted, "c")) == (6, 1, 4)
