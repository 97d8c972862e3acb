"""How consumers get their channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.builders import Net, check_emission
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.planning.apply import selected
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.runtime.target import Target

PLAIN = Target(blocked=False)


def selections(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Gather", "Slice")]


def readers_of(model: onnx.ModelProto, tensor: str) -> list[str]:
    return [node.name for node in model.graph.node if tensor in node.input]


def selection(layout: list[int], kept: list[int], target: Target = PLAIN) -> tuple[str, list[int]]:
    """How a convolution of all channels up to the largest one reads the kept ones of a layout."""
    channels = max(layout) + 1
    net = Net()
    traced = trace(net.output(net.conv(net.input("x", (1, channels, 2, 2)), 2, name="a")).model())
    lowered = selected(traced.consumers["a"], np.array(layout), np.isin(np.arange(channels), kept), target)
    return lowered.kind, lowered.read.tolist()


def three_readers(head: str = "Relu") -> onnx.ModelProto:
    """x -> a (8 channels) -> head -> b, c, d."""
    net = Net()
    y = net.op(head, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"), name="head")
    return net.output(*[net.conv(y, 4, name=name) for name in "bcd"]).model()


# What a selection reads


def test_a_selection_reads_what_is_kept_in_emitted_order() -> None:
    assert selection([4, 2, 0, 1, 3], [0, 3, 4]) == ("gather", [4, 0, 3])


def test_neighbours_are_sliced() -> None:
    assert selection([4, 2, 0, 1, 3], [0, 2]) == ("slice", [2, 0])
    assert selection([4, 2, 0, 1, 3], [0, 4]) == ("gather", [4, 0])


def test_widths_are_filled_up_with_neighbours() -> None:
    layout = list(range(40))
    assert selection(layout, [38, 39], Target()) == ("slice", list(range(24, 40)))
    kind, read = selection(layout, [5, 38, 39], Target())
    assert kind == "gather" and len(read) == 16 and {5, 38, 39} <= set(read) and read == sorted(read)
    assert len(selection(layout, [*range(0, 38, 2)], Target())[1]) == 20


def test_a_width_that_takes_everything_needs_no_copy() -> None:
    assert selection(list(range(16)), [3], Target()) == ("union", list(range(16)))
    assert selection([0, 1], [0, 1]) == ("direct", [0, 1])


# Selections in the emitted graph


@pytest.mark.parametrize("lowering", LOWERING_RULES)
def test_selections_that_take_everything_are_never_emitted(lowering: str) -> None:
    emitted = check_emission(three_readers(), {"b": [1, 5], "c": [1, 5], "d": [5, 1]}, lowering=lowering, target=PLAIN)
    assert not selections(emitted)


def test_consumers_that_select_the_same_share_one_node() -> None:
    kept = {"b": [0, 2, 4], "c": [1, 3, 5, 7], "d": [0, 2, 4]}
    emitted = check_emission(three_readers(), kept, lowering="gather", target=PLAIN)
    copies = selections(emitted)
    assert len(copies) == 2
    assert [readers_of(emitted, node.output[0]) for node in copies] == [["b", "d"], ["c"]]
    assert [node.name for node in copies] == ["b_select", "c_select"]


def test_kept_neighbours_are_sliced_others_gathered() -> None:
    kept = {"b": [0, 1, 2], "c": [2, 3, 0], "d": [0, 3, 1]}  # all three contiguous at once is impossible
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    model = net.output(*[net.conv(y, 2, name=name) for name in "bcd"]).model()
    emitted = check_emission(model, kept, lowering="slice", target=PLAIN)
    assert sorted(node.op_type for node in selections(emitted)) == ["Gather", "Slice", "Slice"]


def test_selections_stand_directly_in_front_of_the_consumer() -> None:
    """So behind the pool, where a channel is a single number."""
    emitted = check_emission(
        three_readers("GlobalAveragePool"), {"b": [0, 2], "c": [1, 2, 3], "d": [0, 3]}, lowering="gather", target=PLAIN
    )
    (pool,) = [node for node in emitted.graph.node if node.op_type == "GlobalAveragePool"]
    copies = selections(emitted)
    assert len(copies) == 3
    assert all(node.input[0] == pool.output[0] for node in copies)
    for node in copies:
        assert len(readers_of(emitted, node.output[0])) == 1


def test_no_selection_where_all_that_is_made_is_kept() -> None:
    emitted = check_emission(
        three_readers(), {"b": [0, 2], "c": [0, 1, 2, 3], "d": [3, 1]}, target=PLAIN, lowering="gather"
    )
    assert {name for node in selections(emitted) for name in readers_of(emitted, node.output[0])} == {"b", "d"}


@pytest.mark.parametrize("opset", [9, 17])
def test_slices_have_the_form_of_the_opset(opset: int) -> None:
    net = Net(opset=opset)
    y = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    model = net.output(net.conv(y, 2, name="b"), net.conv(y, 2, name="c")).model()
    emitted = check_emission(model, {"b": [0, 1, 2]}, lowering="slice", target=PLAIN)
    (node,) = selections(emitted)
    assert node.op_type == "Slice"
    if opset == 9:
        assert {a.name: list(a.ints) for a in node.attribute} == {"starts": [0], "ends": [3], "axes": [1]}
    else:
        values = {t.name: numpy_helper.to_array(t).tolist() for t in emitted.graph.initializer}
        assert [values[name] for name in node.input[1:]] == [[0], [3], [1]]


def test_masks_on_the_first_convolution() -> None:
    """Its channels are the graph's input, which stays: the weights become zero, or the input is selected from."""
    net = Net()
    model = net.output(net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")).model()
    for lowering in LOWERING_RULES:
        emitted = check_emission(model, {"a": [0, 2]}, lowering=lowering, target=PLAIN)
        assert list(emitted.graph.input) == list(model.graph.input)
        assert len(selections(emitted)) == (lowering in ("gather", "slice"))


@pytest.mark.parametrize("lowering", LOWERING_RULES)
def test_matmul_on_either_side_and_gemm(lowering: str) -> None:
    net = Net()
    a = net.conv(net.input("x", (2, 3, 2, 2)), 8, name="a")
    tokens = net.reshape(a, 2, 8, 4)
    left = net.op("MatMul", net.weight(net.normal(3, 8)), tokens, name="left")
    right = net.op("MatMul", net.op("Transpose", tokens, perm=[0, 2, 1]), net.weight(net.normal(8, 3)), name="right")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", a))
    gemm = net.op("Gemm", net.op("Transpose", pooled), net.weight(net.normal(8, 3)), name="gemm", transA=1)
    model = net.output(left, right, gemm).model()
    check_emission(model, {"left": [0, 7], "right": [1, 3, 4], "gemm": [2, 3, 7]}, lowering=lowering)
    check_emission(model, {"left": [0, 7], "right": [1, 3, 4], "gemm": [2, 3, 7]}, lowering=lowering, fill=True)


@pytest.mark.parametrize("lowering", ["duplicate", "auto"])
def test_own_producers_beside_a_convolution_in_groups(lowering: str) -> None:
    """What is left for the others still falls into equal parts."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    net.output(net.conv(net.op("Tanh", a), 4, groups=4, name="b"), net.conv(a, 2, name="c"), net.conv(a, 2, name="d"))
    kept = {"b": [1, 6, 7], "c": [0, 1], "d": [0, 7]}
    check_emission(net.model(), kept, lowering=lowering, target=PLAIN)
