"""Graphs with unusual ends: many of them, none that is read, sequences, optionals, open sizes, values left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net
from tests.structure.checking import check
from ucpe_onnx import prune

# Inputs and outputs


def test_several_inputs_and_outputs() -> None:
    net = Net()
    left = net.conv(net.input("left", (1, 3, 4, 4)), 8, name="a")
    right = net.conv(net.input("right", (1, 2, 4, 4)), 8, name="b")
    total = net.op("Add", left, right)
    net.input("unread", (5,))
    outputs = [net.conv(total, 2, name="c"), net.conv(net.op("Relu", total), 3, name="d")]
    check(net.output(*outputs, "left").model(), pruned=["a", "b"])


def test_a_tensor_inside_of_a_segment_is_an_output() -> None:
    """Its layer keeps all channels; the layers before and after it don't depend on it."""
    net = Net()
    b = net.conv(net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")), 6, name="b")
    c = net.conv(net.op("Relu", b), 8, name="c")
    check(net.output(b, net.conv(c, 2, name="d")).model(), pruned=["a", "c"], whole=["b"])


def test_a_sum_that_is_an_output_holds_all_that_joins_it() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = net.conv(x, 8, name="a"), net.conv(x, 8, name="b")
    total = net.op("Add", a, b)
    model = net.output(total, net.conv(a, 2, name="c"), net.conv(net.conv(x, 4, name="d"), 2)).model()
    check(model, pruned=["d"], whole=["a", "b"])


def test_a_weight_is_an_output() -> None:
    net = Net()
    a = net.conv_with(net.input("x", (1, 3, 4, 4)), net.weight(net.normal(8, 3, 1, 1), "shown"), name="a")
    model = net.output(net.conv(a, 2, name="b"), "shown").model()
    check(model, pruned=["a"])


# Dead ends


def test_dead_branches_stay_and_hold_nothing_up() -> None:
    """A layer that nobody reads is a reader itself: it keeps what its mask says."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    net.conv(net.op("Relu", a), 6, name="dead")
    net.op("Sigmoid", a)
    net.weight(net.normal(3), "unread")
    check(net.output(net.conv(a, 2, name="b")).model(), pruned=["a"])


def unread_shape(reshaped: bool) -> onnx.ModelProto:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    shape = net.op("Shape", a)
    if reshaped:
        net.op("Concat", net.slice(shape, [0], [0], [1]), net.ints(-1), axis=0)
    return net.output(net.conv(a, 2, name="b")).model()


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_an_unread_shape_stays(reshaped: bool, ratio: float) -> None:
    model = unread_shape(reshaped)
    emitted = prune(model, ratio=ratio, mode="unconstrained", bench_seconds=0).model
    made = [name for node in emitted.graph.node for name in node.output]
    assert {name for node in model.graph.node for name in node.output} <= set(made)


def test_a_segment_that_ends_nowhere() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    net.op("Relu", net.conv(net.conv(x, 8, name="a"), 6, name="dead"))
    traced = check(net.output(net.conv(net.conv(x, 8, name="b"), 2)).model(), pruned=["b"])
    assert "dead" in traced.consumers


# Inputs and outputs of nodes that are left out


def test_inputs_that_are_left_out() -> None:
    net = Net()
    x = net.op("Conv", net.input("x", (1, 3, 4, 4)), net.weight(net.normal(8, 3, 1, 1)), "", name="a")
    x = net.op("Clip", x, "", net.weight(np.float32(2)))
    x = net.op("Resize", x, "", net.weight(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    x = net.op("Resize", net.op("Conv", x, net.weight(net.normal(6, 8, 1, 1)), name="b"), "", "", net.ints(1, 6, 4, 4))
    x = net.op("Pad", net.op("Dropout", x, "", ""), net.ints(0, 0, 1, 1, 0, 0, 1, 1), "")
    check(net.output(net.conv(x, 2, name="c")).model(), pruned=["a", "b"])


def test_outputs_that_are_left_out() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    pooled, dropped = net.ops("MaxPool", a, outputs=["pooled", ""], kernel_shape=[2, 2])[0], "dropped"
    net.ops("Dropout", pooled, outputs=[dropped, ""])
    model = net.output(net.conv(net.op("Relu", dropped), 2, name="b")).model()
    check(model, pruned=["a"])


# Sequences and optionals


def test_a_sequence_inside() -> None:
    """What is split into a sequence and put together again may go."""
    net = Net()
    b = net.conv(net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")), 6, name="b")
    net.ops("SplitToSequence", b, net.ints(2, 4), outputs=["parts"], shapes=[()], axis=1)
    (joined,) = net.ops("ConcatFromSequence", "parts", shapes=[(1, 6, 4, 4)], axis=1)
    check(net.output(net.conv(joined, 2, name="c")).model(), pruned=["a", "b"])


def sequence_model(kind: str) -> onnx.ModelProto:
    """A layer, and beside it a sequence or an optional that comes in and goes out."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    model = net.output(net.conv(a, 2, name="b")).model()
    graph = model.graph
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    if kind == "sequence":
        type_ = helper.make_sequence_type_proto(tensor)
        graph.node.append(helper.make_node("Identity", ["s"], ["s_out"]))
    else:
        type_ = helper.make_optional_type_proto(tensor)
        graph.node.append(helper.make_node("OptionalHasElement", ["s"], ["s_out"]))
    graph.input.append(onnx.ValueInfoProto(name="s", type=type_))
    out = type_ if kind == "sequence" else helper.make_tensor_type_proto(TensorProto.BOOL, [])
    graph.output.append(onnx.ValueInfoProto(name="s_out", type=out))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("kind", ["sequence", "optional"])
def test_a_sequence_or_an_optional_at_the_ends(kind: str) -> None:
    model = sequence_model(kind)
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    inside = np.ones(2, np.float32)
    feed = {"x": x, "s": [inside, inside] if kind == "sequence" else inside}
    check(model, pruned=["a"], feeds=[feed])


# Open sizes


OPEN = {
    "batch": ("N", 3, 8, 8),
    "all but channels": ("N", 3, "height", "width"),
    "unnamed": (None, 3, None, None),
}


@pytest.mark.parametrize("shape", OPEN.values(), ids=OPEN)
def test_open_sizes(shape: Sequence[int | str]) -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", shape), 8, 3, name="a"))
    half = net.op("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    up = net.op("Resize", half, "", net.weight(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    joined = net.op("Concat", up, net.conv(a, 6, name="b"), axis=1)
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.conv(joined, 10, name="c")))
    model = net.output(net.gemm(pooled, 4)).model()
    random = np.random.default_rng(0)
    sizes = [(1, 3, 8, 8), (4, 3, 8, 8)] if shape[2] == 8 else [(1, 3, 8, 8), (4, 3, 8, 8), (2, 3, 16, 4)]
    feeds = [{"x": random.standard_normal(size).astype(np.float32)} for size in sizes]
    check(model, pruned=["a", "b", "c"], feeds=feeds)


def test_an_open_channel_axis_stays() -> None:
    net = Net()
    x = net.conv_with(net.input("x", (1, "C", 4, 4)), net.weight(net.normal(8, 3, 1, 1)), name="a")
    model = net.output(net.conv(x, 2, name="b")).model()
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    check(model, pruned=["a"], feeds=[feed])


# Order and sharing


def test_everything_is_a_constant_node() -> None:
    net = Net()
    weight, bias = net.constant(net.normal(8, 3, 1, 1)), net.constant(net.normal(8))
    x = net.op("Conv", net.input("x", (1, 3, 4, 4)), weight, bias, name="a")
    x = net.op("Relu", net.op("Reshape", x, net.constant(np.array([1, 8, 4, 4], dtype=np.int64))))
    x = net.op("Conv", x, net.constant(net.normal(2, 8, 1, 1)), name="b")
    check(net.output(x).model(), pruned=["a"])


def test_one_weight_for_many_layers() -> None:
    """Layers of one weight, with masks of their own."""
    net = Net()
    shared, bias = net.weight(net.normal(6, 6, 1, 1)), net.weight(net.normal(6))
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="first")
    for name in ("a", "b", "c"):
        x = net.op("Conv", net.op("Relu", x), shared, bias, name=name)
    check(net.output(net.conv(x, 2, name="last")).model(), pruned=["first", "a", "b", "c"], seeds=4)


def test_two_identical_branches_and_a_tensor_joined_with_itself() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    joined = net.op("Concat", a, net.op("Relu", a), a, axis=1)
    b = net.conv(net.op("Mul", joined, joined), 6, name="b")
    check(net.output(net.conv(net.op("Add", b, b), 2, name="c")).model(), pruned=["b"], seeds=4)


def test_the_weight_s_data_in_every_field() -> None:
    """float_data instead of raw_data, and a dense tensor in a Constant's value."""
    net = Net()
    model = net.output(net.conv(net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"), 2, name="b")).model()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel().tolist()))
        assert tensor.float_data
    check(model, pruned=["a"])
