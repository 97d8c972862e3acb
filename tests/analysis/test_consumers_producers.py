"""How consumers, producers and elementwise operators are traced."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.operator_cases import (
    PLAIN,
    analyse,
    between,
    segment_of,
)
from tests.builders import Net, check_emission
from ucpe_onnx.analysis.trace import trace


def test_conv_reads_axis_1_of_its_weight_and_makes_axis_0() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 5, 3, name="a")
    traced = analyse(net, net.conv(x, 2, name="b"))
    a, b = traced.consumers["a"].use, traced.consumers["b"].use
    assert (a.weight_axis, a.groups, a.tensor_axis) == (1, 1, ("x", 1))
    assert traced.producers[0].weight_axis == 0 and traced.producers[0].tensor_axis == b.tensor_axis
    assert traced.consumers["a"].channels == 3 and not traced.consumers["a"].prunable.any()
    assert traced.segments[0].reasons == ("graph input x",)


def test_conv_transpose_reads_axis_0_and_makes_axis_1() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    y = net.op("ConvTranspose", x, net.weight(net.normal(6, 4, 2, 2)), name="t")
    traced = analyse(net, net.conv(y, 2, name="b"))
    use = traced.consumers["t"].use
    assert (use.weight_axis, traced.consumers["t"].channels) == (0, 6)
    assert traced.consumers["t"].prunable.all() and traced.consumers["b"].prunable.all()
    assert [p.weight_axis for p in traced.producers] == [0, 1, 0]


def test_grouped_conv_is_a_consumer_whose_groups_stay_equally_long() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    traced = analyse(net, net.conv(x, 4, groups=4, name="g"))
    assert (traced.consumers["g"].channels, traced.consumers["g"].prunable.all()) == (8, True)
    segment = segment_of(traced, "a")
    assert [partition.parts for partition in segment.partitions] == [4]
    assert segment.groups == ((0, 1), (2, 3), (4, 5), (6, 7))


@pytest.mark.parametrize("op_type, weight", [("Conv", (8, 2, 1, 1)), ("ConvTranspose", (4, 4, 1, 1))])
def test_channels_of_a_grouped_consumer_of_a_dynamic_axis(op_type: str, weight: tuple[int, ...]) -> None:
    net = Net()
    x = net.input("x", (1, "C", 4, 4))
    (y,) = net.ops(op_type, x, net.weight(net.normal(*weight)), group=2, name="g", shapes=[(1, 8, 4, 4)])
    traced = analyse(net, y)
    assert traced.consumers["g"].channels == 4
    assert "dynamic channel axis" in traced.segments[traced.consumers["g"].segment].reasons[0]


def test_depthwise_multiplier_spreads_each_channel() -> None:
    net = Net()
    x = net.depthwise(net.conv(net.input("x", (1, 3, 4, 4)), 4), multiplier=2)
    traced = analyse(net, net.conv(x, 2, name="b"))
    assert traced.consumers["b"].slots.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert traced.consumers["b"].prunable.all()
    assert len(traced.consumers) == 2  # the depthwise convolution is none


def test_computed_bias_fixes_the_outputs() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    bias = net.op("Relu", net.input("b", (5,)))
    y = net.op("Conv", x, net.weight(net.normal(5, 4, 1, 1)), bias, name="c")
    traced = analyse(net, net.conv(y, 2, name="d"))
    assert traced.consumers["c"].prunable.all()
    assert not traced.consumers["d"].prunable.any()
    assert any("bias or scale computed at run time" in r for r in segment_of(traced, "c").reasons)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1,), (1, 5), (4, 1), (4, 5), ()])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    net = Net()
    x = net.op("MatMul", net.input("x", (3, 4) if trans_a else (4, 3)), net.weight(net.normal(4 if trans_a else 3, 6)))
    if trans_a:
        x = net.op("Transpose", net.op("MatMul", net.input("z", (4, 3)), net.weight(net.normal(3, 6))), perm=[1, 0])
    weight = net.weight(net.normal(5, 6) if trans_b else net.normal(6, 5))
    inputs = [x, weight] if bias is None else [x, weight, net.weight(net.normal(*bias))]
    y = net.op("Gemm", *inputs, name="g", transA=trans_a, transB=trans_b)
    model = net.output(net.gemm(y, 2, name="h")).model()
    traced = trace(model)
    g = traced.consumers["g"]
    assert g.use.weight_axis == (1 if trans_b else 0)
    assert g.use.tensor_axis == (x, 0 if trans_a else 1)
    assert (g.channels, g.prunable.all(), traced.consumers["h"].prunable.all()) == (6, True, True)
    check_emission(model, {"g": [1, 4], "h": [2]}, target=PLAIN)
    check_emission(model, {"g": [1, 4], "h": [2]}, target=PLAIN, lowering="gather")


def test_gemm_rows_carry_channels_into_a_bias() -> None:
    """Channels on the rows of a Gemm: its bias has one row for each."""
    net = Net()
    x = net.conv(net.input("x", (1, 3, 2, 2)), 8)
    rows = net.reshape(x, 8, 4)
    y = net.op("Gemm", rows, net.weight(net.normal(4, 6)), net.weight(net.normal(8, 1)))
    model = net.output(net.conv(net.reshape(y, 1, 8, 6, 1), 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [0, 5, 6, 7]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("side, axis, weight_axis", [("right", 2, 0), ("left", 1, 1)])
def test_matmul_reads_the_contracted_axis(side: str, axis: int, weight_axis: int) -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 2, 2)), 6)
    x = net.reshape(x, 1, 6, 4)
    if side == "right":
        x = net.op("Transpose", x, perm=[0, 2, 1])
        y = net.op("MatMul", x, net.weight(net.normal(6, 5)), name="m")
        out = net.op("MatMul", y, net.weight(net.normal(5, 2)), name="n")
    else:
        y = net.op("MatMul", net.weight(net.normal(5, 6)), x, name="m")
        out = net.op("MatMul", net.weight(net.normal(2, 5)), y, name="n")
    model = net.output(out).model()
    traced = trace(model)
    for name, channels in (("m", 6), ("n", 5)):
        consumer = traced.consumers[name]
        assert (consumer.use.tensor_axis[1], consumer.use.weight_axis) == (axis, weight_axis)
        assert (consumer.channels, consumer.prunable.all()) == (channels, True)
    check_emission(model, {"m": [5, 0], "n": [1, 3]}, target=PLAIN, lowering="gather")


def test_matmul_of_activations_carries_rows_and_columns() -> None:
    net = Net()
    tokens = net.input("x", (1, 4, 3))
    q, v = (net.op("MatMul", tokens, net.weight(net.normal(3, 6))) for _ in "qv")
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", q, perm=[0, 2, 1])))
    y = net.op("MatMul", scores, v)
    traced = analyse(net, net.op("MatMul", y, net.weight(net.normal(6, 2)), name="o"))
    assert traced.consumers["o"].prunable.all()  # the values' columns
    reasons = segment_of(traced, net.nodes[0].name or "MatMul_0").reasons
    assert any("axis contracted between two activations" in reason for reason in reasons)


# Elementwise operators


def test_add_makes_slots_of_two_producers_one() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    y = net.op("Add", net.conv(x, 4, name="a"), net.conv(x, 4, name="b"))
    traced = analyse(net, net.conv(y, 2, name="c"))
    segment = traced.segments[traced.consumers["c"].segment]
    assert segment.producers == ("a", "b")
    assert len(segment.classes) == 4


def test_squeeze_and_excitation_shares_slots_by_broadcasting() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", x), 6, name="gate"))
    traced = analyse(net, net.conv(net.op("Mul", gate, x), 2, name="b"))
    assert traced.segments[traced.consumers["b"].segment].producers == ("a", "gate")
    assert traced.consumers["gate"].segment == traced.consumers["b"].segment
    assert traced.consumers["b"].prunable.all()


def test_broadcast_along_the_channels_freezes_the_short_operand_only() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    one = net.conv(x, 1, name="one")
    y = net.op("Add", net.conv(x, 4, name="a"), one)
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert traced.consumers["b"].prunable.all()
    assert segment_of(traced, "one").frozen.tolist() == [True]
    assert "broadcast operand of Add" in segment_of(traced, "one").reasons[0]


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1, 6, 4, 4), (1, 1, 4), (), (1,)])
def test_constants_follow_the_channels(shape: tuple[int, ...]) -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6)
    y = net.op("Mul", net.weight(net.normal(*shape), "scale"), x)
    model = net.output(net.conv(y, 2, name="b")).model()
    emitted = check_emission(model, {"b": [0, 2]}, target=PLAIN)
    (scale,) = [tensor for tensor in emitted.graph.initializer if tensor.name == "scale"]
    assert tuple(scale.dims) == tuple(2 if d == 6 else d for d in shape)


def test_channels_may_come_from_a_constant() -> None:
    net = Net()
    one = net.conv(net.input("x", (1, 3, 4, 4)), 1)
    y = net.op("Mul", one, net.weight(net.normal(1, 6, 1, 1), "scale"))
    model = net.output(net.conv(y, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    emitted = check_emission(model, {"b": [5]}, target=PLAIN, lowering="gather")
    assert {t.name: list(t.dims) for t in emitted.graph.initializer}["scale"] == [1, 1, 1, 1]


def test_broadcast_over_a_dynamic_axis() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    (y,) = net.ops("Add", x, net.input("z", (1, "C", 1, 1)), shapes=[(1, 6, 4, 4)])
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()
    assert any("broadcast along a dynamic axis: Add" in reason for reason in segment_of(traced, "a").reasons)


def test_broadcast_form_of_old_opsets() -> None:
    net = Net(opset=6, ir_version=4)
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    y = net.op("Add", x, net.weight(net.normal(6)), broadcast=1, axis=1)
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert any("broadcast form of opset < 7" in reason for reason in segment_of(traced, "a").reasons)


def test_softmax_before_opset_13_mixes_all_later_axes() -> None:
    for axis, prunable in ((1, False), (2, True)):
        _, traced = between(lambda net, x, axis=axis: net.op("Softmax", x, axis=axis), opset=11)
        assert traced.consumers["b"].prunable.all() == prunable
    _, traced = between(lambda net, x: net.op("Softmax", x), opset=11)  # the default axis is 1 there
    assert not traced.consumers["b"].prunable.any()


def test_upsample_keeps_channels_with_scale_1() -> None:
    for scale, prunable in ((1, True), (2, False)):
        factor = np.array([1, scale, 2, 2], dtype=np.float32)
        _, traced = between(lambda net, x, f=factor: net.op("Upsample", x, net.weight(f)), opset=9)
        assert traced.consumers.get("b").prunable.all() == prunable
