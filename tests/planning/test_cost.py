"""What nodes are predicted to cost, by what onnxruntime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.builders import Net
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.rates import default_rates
from ucpe_onnx.runtime.target import TARGETS

WIDTHS = np.array([16, 32, 64])


def costs_of(model: onnx.ModelProto, target: str = "avx512") -> Costs:
    traced = trace(model)
    chosen = TARGETS[target]
    kept = {name: consumer.channels for name, consumer in traced.consumers.items()}
    return Costs(traced, chosen, default_rates(chosen, 1), lambda axis: int(traced.slots.axes[axis].size), kept)


def carried(model: onnx.ModelProto, op_type: str) -> float:
    """What the model's only operator of a type costs for 64 channels."""
    costs = costs_of(model)
    node = next(node for node in costs.trace.graph.nodes if node.op_type == op_type)
    return float(costs.carries_us(node, (node.outputs[0], 1), WIDTHS)[-1])


def behind_a_conv(op_type: str, *more: float, **attributes: Any) -> onnx.ModelProto:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 28, 28)), 64, name="a")
    acted = net.op(op_type, a, *(net.constant(np.float32(value)) for value in more), **attributes)
    return net.output(net.conv(acted, 8, name="b")).model()


def test_activations_that_a_convolution_does_cost_a_pass_but_for_relu() -> None:
    alone = costs_of(behind_a_conv("Relu")).rates.pointwise_us(64 * 28 * 28 * 4)
    assert carried(behind_a_conv("Relu"), "Relu") == 0
    for op_type, limits in (("Clip", (0.0, 6.0)), ("LeakyRelu", ()), ("HardSwish", ())):
        assert 0 < carried(behind_a_conv(op_type, *limits), op_type) <= alone
    assert carried(behind_a_conv("Elu"), "Elu") >= alone


def test_a_swish_is_one_kernel() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 28, 28)), 64, name="a")
    model = net.output(net.conv(net.op("Mul", a, net.op("Sigmoid", a)), 8, name="b")).model()
    assert carried(model, "Sigmoid") > 0 and carried(model, "Mul") == 0


def test_a_normalisation_of_a_join_is_a_convolution_that_does_the_relu_behind_it() -> None:
    net = Net()
    x = net.input("x", (1, 3, 28, 28))
    joined = net.op("Concat", net.conv(x, 32, name="a"), net.conv(x, 32, name="b"), axis=1)
    model = net.output(net.conv(net.op("Relu", net.batch_norm(joined)), 8, name="c")).model()
    assert carried(model, "BatchNormalization") > 0 and carried(model, "Relu") == 0


def test_few_channels_are_read_from_the_plain_layout() -> None:
    """A convolution that reads fewer channels than a block pays for bringing them there, if a convolution made them."""
    net = Net()
    x = net.input("x", (1, 8, 28, 28))
    model = net.output(net.conv(net.conv(x, 8, 1, name="a"), 64, 1, name="b")).model()
    costs = costs_of(model)
    read = {name: float(costs.reads_us(costs.trace.consumers[name], np.array([8]))[0]) for name in ("a", "b")}
    made = costs.rates.conv_us(8, 64, (1, 1), 784) - costs.rates.conv_us(8, 8, (1, 1), 784)
    assert read["b"] - read["a"] - made == pytest.approx(costs.rates.reorder_us(8 * 784 * 4))


def test_a_transposed_convolution_leaves_the_layout() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 14, 14)), 64, 1, name="a")
    weight = net.weight(net.normal(64, 32, 2, 2))
    model = net.output(net.op("ConvTranspose", a, weight, strides=[2, 2], kernel_shape=[2, 2], name="b")).model()
    blocked, plain = costs_of(model), costs_of(model, "cpu")
    times = [float(c.reads_us(c.trace.consumers["b"], np.array([64]))[0]) for c in (blocked, plain)]
    reorders = blocked.rates.reorder_us(64 * 196 * 4) + blocked.rates.reorder_us(32 * 784 * 4)
    assert times[0] == pytest.approx(times[1] + reorders)


@pytest.mark.parametrize("shortcut, passes", [(False, False), (True, True)])
def test_a_sum_in_front_of_a_residual_add_costs_a_pass(shortcut: bool, passes: bool) -> None:
    """A convolution adds one tensor: what comes after the terms of its sum is left to a kernel of its own."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", (1, 3, 28, 28)), 64, name="a"))
    made = net.conv(net.op("Relu", net.conv(x, 64, name="b")), 64, name="c")
    joined = net.op("Add", made, x) if shortcut else net.op("Relu", made)
    costs = costs_of(net.output(net.conv(joined, 8, name="d")).model())
    us, whole = costs.part_us(costs.trace.consumers["c"], 64), costs.rates.add_us(64 * 784 * 4)
    assert (us > whole) == passes


@pytest.mark.parametrize("op_type, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrence_is_a_product_for_each_step(op_type: str, gates: int) -> None:
    net = Net()
    weights = [net.weight(net.normal(2, gates * 16, size)) for size in (24, 16)]
    given = {"hidden_size": 16, "direction": "bidirectional", "name": "r"}
    y, last = net.ops(op_type, net.input("x", (20, 3, 24)), *weights, outputs=2, **given)
    reads = [net.op("MatMul", x, net.weight(net.normal(16, 2))) for x in (y, last)]
    costs = costs_of(net.output(*reads).model())
    consumers, rates = costs.trace.consumers, costs.rates
    (own,) = costs.reads_us(consumers["r/recurrence"], np.array([12]))
    (features,) = costs.reads_us(consumers["r"], np.array([12]))
    assert own == pytest.approx(2 * 20 * rates.gemm_us(3, 12, gates * 16))
    assert features == pytest.approx(2 * rates.gemm_us(60, 12, gates * 16))
    (made,) = costs.makes_us(consumers["r"].use, np.array([10]))
    assert made == pytest.approx(2 * rates.gemm_us(60, 24, gates * 10))


def test_recurrences_of_unknown_length() -> None:
    net = Net()
    weights = [net.weight(net.normal(1, 16, size)) for size in (8, 16)]
    y = net.op("RNN", net.input("x", ("T", "N", 8)), *weights, hidden_size=16, name="r")
    costs = costs_of(net.output(net.op("MatMul", y, net.weight(net.normal(16, 2)))).model())
    (own,) = costs.reads_us(costs.trace.consumers["r/recurrence"], np.array([16]))
    assert own == pytest.approx(28 * costs.rates.gemm_us(1, 16, 16))
