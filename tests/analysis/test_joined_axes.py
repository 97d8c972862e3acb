"""How channels are joined, cut, padded and regrouped."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.analysis.operator_cases import (
    PLAIN,
    analyse,
    segment_of,
)
from tests.builders import Net, check_emission
from ucpe_onnx.analysis.trace import trace

# Joining and cutting


def test_concat_puts_slots_one_after_the_other_in_groups_of_their_own() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = net.conv(x, 4, name="a"), net.conv(x, 2, name="b")
    traced = analyse(net, net.conv(net.op("Concat", b, a, axis=1), 2, name="c"))
    segment = traced.segments[traced.consumers["c"].segment]
    assert segment.producers == ("a", "b")
    assert segment.groups == ((0, 1, 2, 3), (4, 5))
    assert traced.consumers["c"].slots.tolist() == [4, 5, 0, 1, 2, 3]


def test_concat_of_a_tensor_with_itself() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 3, name="a")
    traced = analyse(net, net.conv(net.op("Concat", a, a, axis=1), 2, name="c"))
    assert traced.consumers["c"].slots.tolist() == [0, 1, 2, 0, 1, 2]
    assert traced.consumers["c"].prunable.all()
    assert segment_of(traced, "a").groups == ((0, 1, 2),)


def test_concat_with_the_graph_input_freezes_that_part() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    traced = analyse(net, net.conv(net.op("Concat", x, net.conv(x, 4), axis=1), 2, name="c"))
    assert traced.consumers["c"].prunable.tolist() == [False] * 3 + [True] * 4


def test_nested_concats() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = net.conv(x, 2, name="a"), net.conv(x, 3, name="b")
    inner = net.op("Concat", a, b, axis=1)
    model = net.output(net.conv(net.op("Concat", b, inner, a, axis=1), 2, name="c")).model()
    traced = trace(model)
    assert traced.consumers["c"].slots.tolist() == [2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert set(segment_of(traced, "a").groups) == {(0, 1), (2, 3, 4)}
    check_emission(model, {"c": [0, 3, 9]}, target=PLAIN, lowering="gather")


def test_padding_channels_go_with_their_readers() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    model = net.output(net.conv(net.pad(a, [0, 1, 0, 0, 0, 2, 0, 0]), 2, name="b")).model()
    traced = trace(model)
    assert traced.consumers["b"].prunable.all()
    assert segment_of(traced, "a").groups == ((0, 1, 2, 3), (4,), (5, 6))
    emitted = check_emission(model, {"b": [2, 3, 6]}, target=PLAIN)
    (node,) = [node for node in emitted.graph.node if node.op_type == "Pad"]
    pads = {t.name: onnx.numpy_helper.to_array(t) for t in emitted.graph.initializer}[node.input[1]]
    assert pads.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]  # one at least of each part stays


@pytest.mark.parametrize("opset", [9, 17])
def test_slice_follows_its_channels(opset: int) -> None:
    net = Net(opset=opset)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    b = net.conv(net.slice(a, [1], [2], [6]), 2, name="b")
    model = net.output(b, net.conv(a, 2, name="c")).model()
    traced = trace(model)
    assert traced.consumers["b"].slots.tolist() == [2, 3, 4, 5]
    assert segment_of(traced, "a").groups == ((0, 1), (2, 3, 4, 5), (6, 7))
    emitted = check_emission(model, {"b": [1, 3], "c": [1, 3, 5, 7]}, target=PLAIN, lowering="gather")
    (cut,) = [node for node in emitted.graph.node if node.op_type == "Slice" and node.input[0] == a]
    if opset == 9:
        assert [list(a.ints) for a in cut.attribute if a.name in ("starts", "ends")] == [[1], [3]]


def test_slice_starts_earlier_when_channels_before_it_go() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 16, name="a")
    tail = net.slice(a, [1], [12], [2**31 - 1])
    out = net.op("CumSum", tail, net.weight(np.int64(1)))  # fixes what it reads
    model = net.output(out, net.conv(a, 2, name="b")).model()
    traced = trace(model)
    assert traced.consumers["b"].prunable.tolist() == [True] * 12 + [False] * 4
    emitted = check_emission(model, {"b": [3, *range(12, 16)]}, target=PLAIN)
    values = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in emitted.graph.initializer}
    (cut,) = [node for node in emitted.graph.node if node.op_type == "Slice"]
    assert (values[cut.input[1]], values[cut.input[2]]) == ([1], [5])


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split_lengths_follow(opset: int) -> None:
    net = Net(opset=opset)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 16, name="a")
    if opset >= 18:
        parts = net.ops("Split", a, outputs=2, axis=1, num_outputs=2)
    elif opset == 13:
        parts = net.ops("Split", a, outputs=2, axis=1)
    else:
        parts = net.split(a, [8, 8])
    model = net.output(*[net.conv(part, 2, name=f"b{i}") for i, part in enumerate(parts)]).model()
    emitted = check_emission(model, {"b0": [0], "b1": [1, 2, 3, 5, 7]}, target=PLAIN)
    shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(emitted).graph.value_info}
    assert [shapes[part].type.tensor_type.shape.dim[1].dim_value for part in parts] == [1, 5]


def test_split_along_space_is_left_alone() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    parts = net.ops("Split", a, outputs=2, axis=2)
    model = net.output(*[net.conv(part, 2, name=f"b{i}") for i, part in enumerate(parts)]).model()
    emitted = check_emission(model, {"b0": [0], "b1": [0]}, target=PLAIN)
    (node,) = [node for node in emitted.graph.node if node.op_type == "Split"]
    assert list(node.input) == [a]


def test_swapped_halves_tied_by_an_add_go_in_pairs() -> None:
    """Add(x, concat(second half, first half)): channel i is the same slot as channel i + n/2."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    first, second = net.split(a, [2, 2])
    y = net.op("Add", a, net.op("Concat", second, first, axis=1))
    model = net.output(net.conv(y, 2, name="b")).model()
    assert trace(model).consumers["b"].slots.tolist() == [0, 1, 0, 1]
    emitted = check_emission(model, {"b": [1, 3]}, target=PLAIN)
    assert {t.name: t for t in emitted.graph.initializer}[emitted.graph.node[0].input[1]].dims[0] == 2


def test_orders_that_contradict_each_other_freeze_the_segment() -> None:
    """A channels-last flatten, cut in the middle of a pixel: in the cut some channels occur more often than others."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 2, 2)), 4, name="a")
    flat = net.op("Flatten", net.op("Transpose", a, perm=[0, 2, 3, 1]))
    model = net.output(net.gemm(net.slice(flat, [1], [0], [6]), 2, name="g")).model()
    traced = trace(model)
    assert not traced.consumers["g"].prunable.any()
    (reason,) = [r for r in segment_of(traced, "a").reasons if "no order" in r]
    assert "no order of the channels suits every operator" in reason
    check_emission(model, {"g": [0, 5]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("last", [False, True])
def test_flattened_space(last: bool) -> None:
    """Every channel is read at several positions: side by side, or a whole image row apart if channels come last."""
    net = Net()
    a = net.conv(net.input("x", (2, 3, 2, 3)), 5, name="a")
    flat = net.op("Flatten", net.op("Transpose", a, perm=[0, 2, 3, 1]) if last else a)
    model = net.output(net.gemm(flat, 2, name="g"), net.conv(a, 2, name="b")).model()
    consumer = trace(model).consumers["g"]
    assert consumer.prunable.all()
    assert consumer.slots.tolist() == (list(range(5)) * 6 if last else [slot for slot in range(5) for _ in range(6)])
    kept = [i for i, slot in enumerate(consumer.slots) if slot in (1, 4)]
    for lowering in ("union", "gather", "slice"):
        emitted = check_emission(model, {"g": kept, "b": [0, 4]}, target=PLAIN, lowering=lowering)
        check_emission(model, {"g": kept[1::2], "b": [3]}, target=PLAIN, lowering=lowering)
        assert {t.name: t.dims[0] for t in emitted.graph.initializer}[net.nodes[0].input[1]] == 3


def test_squeeze_without_axes_does_not_take_a_last_channel_with_it() -> None:
    for opset in (11, 13):
        net = Net(opset=opset)
        a = net.op("GlobalAveragePool", net.conv(net.input("x", (2, 3, 2, 2)), 3, name="a"))
        model = net.output(net.gemm(net.squeeze(a), 2, name="g")).model()
        assert trace(model).consumers["g"].prunable.all()
        check_emission(model, {"g": [1]}, target=PLAIN)


def test_reshape_target_computed_from_another_tensor() -> None:
    """A length that only ends in a Reshape's target does not freeze it, and the target becomes a constant."""
    net = Net()
    x = net.input("x", (1, 8, 4, 4))
    a = net.conv(x, 8, name="a")
    count = net.op("Gather", net.op("Shape", a), net.ints(1), axis=0)
    target = net.op("Concat", net.ints(1), count, net.ints(-1), axis=0)
    (y,) = net.ops("Reshape", x, target, shapes=[(1, 8, 16)])
    model = net.output(y, net.conv(a, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [1, 2]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("target", [(1, 8, 16), (0, 0, -1), (1, -1, 16), (-1, 8, 16)])
def test_reshape_targets_that_name_the_channels(target: tuple[int, ...]) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("Transpose", net.reshape(a, *target), perm=[0, 2, 1])
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="m")).model()
    assert trace(model).consumers["m"].prunable.all()
    check_emission(model, {"m": [7]}, target=PLAIN, lowering="gather")


def test_zero_in_a_target_means_the_input_axis_not_the_slot() -> None:
    """(1, 4, 4) regrouped to (4, 4): target axis 1 copies input axis 1, whose slots went to target axis 0."""
    net = Net()
    a = net.reshape(net.conv(net.input("x", (1, 3, 2, 2)), 4, name="a"), 1, 4, 4)
    y = net.op("MatMul", net.weight(net.normal(3, 4)), net.reshape(a, 4, 0), name="m")
    model = net.output(y).model()
    assert trace(model).consumers["m"].prunable.all()
    check_emission(model, {"m": [2]}, target=PLAIN, lowering="gather")
