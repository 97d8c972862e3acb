"""How consumers get their channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.builders import Net, check_emission
from ucpe_onnx.plan import LOWERINGS
from ucpe_onnx.planning import Target
from ucpe_onnx.planning.cost import ReadCost
from ucpe_onnx.planning.lower import LOWERING_RULES, Reading, auto, gather, predicted_us, slice_, union

PLAIN = Target(blocked=False)


def selections(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Gather", "Slice")]


def readers_of(model: onnx.ModelProto, tensor: str) -> list[str]:
    return [node.name for node in model.graph.node if tensor in node.input]


def reading(layout: list[int], kept: list[int], *, target: Target = PLAIN, grouped: bool = False) -> Reading:
    keep = np.isin(np.arange(max(layout) + 1), kept)
    return Reading(np.array(layout), keep, ReadCost(64, 1e6, True), target, grouped)


def three_readers(head: str = "Relu") -> onnx.ModelProto:
    """x -> a (8 channels) -> head -> b, c, d."""
    net = Net()
    y = net.op(head, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"), name="head")
    return net.output(*[net.conv(y, 4, name=name) for name in "bcd"]).model()


# The rules, on their own


def test_union_reads_all_that_is_there() -> None:
    assert union(reading([2, 0, 1], [1, 2])).kind == "union"
    assert union(reading([2, 0, 1], [1, 2])).read.tolist() == [2, 0, 1]
    assert union(reading([2, 0], [0, 1, 2])).kind == "direct"


def test_gather_reads_what_is_kept_in_emitted_order() -> None:
    lowered = gather(reading([4, 2, 0, 1, 3], [0, 3, 4]))
    assert (lowered.kind, lowered.read.tolist()) == ("gather", [4, 0, 3])


def test_slice_needs_neighbours() -> None:
    assert (slice_(reading([4, 2, 0, 1, 3], [0, 2])).read.tolist()) == [2, 0]
    assert slice_(reading([4, 2, 0, 1, 3], [0, 2])).kind == "slice"
    assert slice_(reading([4, 2, 0, 1, 3], [0, 4])).kind == "gather"


def test_widths_are_filled_up_with_neighbours() -> None:
    layout = list(range(40))
    target = Target()
    sliced = slice_(reading(layout, [38, 39], target=target))
    assert sliced.read.tolist() == list(range(24, 40))
    gathered = gather(reading(layout, [5, 38, 39], target=target))
    assert gathered.read.size == 16 and {5, 38, 39} <= set(gathered.read.tolist())
    assert (np.diff(gathered.read) > 0).all()
    filled = gather(reading(layout, [*range(0, 38, 2)], target=target))
    assert filled.read.size == 20


def test_a_width_that_takes_everything_needs_no_copy() -> None:
    assert gather(reading(list(range(16)), [3], target=Target())).kind == "union"
    assert slice_(reading(list(range(16)), [3], target=Target())).kind == "union"
    assert gather(reading([0, 1], [0, 1])).kind == "direct"


def test_a_grouped_consumer_reads_all() -> None:
    for rule in (gather, slice_, auto):
        assert rule(reading([0, 1, 2, 3], [1, 2], grouped=True)).read.tolist() == [0, 1, 2, 3]


def test_auto_takes_the_least_predicted_time() -> None:
    dear = Reading(np.arange(64), np.arange(64) < 16, ReadCost(4, 1e8, True), Target())
    cheap = Reading(np.arange(64), np.arange(64) < 16, ReadCost(4096, 1e2, True), Target())
    assert auto(dear).kind == "slice"
    assert auto(cheap).kind == "union"
    for given in (dear, cheap):
        assert predicted_us(given, auto(given)) == min(predicted_us(given, r(given)) for r in (union, slice_, gather))


def test_registry() -> None:
    assert set(LOWERING_RULES) == {"auto", "union", "gather", "slice"}
    assert set(LOWERING_RULES) - {"auto"} <= set(LOWERINGS)
    kinds = {rule(reading([0, 1, 2, 3], kept)).kind for rule in LOWERING_RULES.values() for kept in ([0, 2], [1])}
    assert kinds <= set(LOWERINGS)


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
