"""How wide the emitted axes are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Net, prune
from ucpe_onnx.runtime.target import TARGETS, Target


def widths(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """For each convolution of an emitted model the channels that it reads and makes."""
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return {n.name: (dims[n.input[1]][1], dims[n.input[1]][0]) for n in model.graph.node if n.op_type == "Conv"}


def chain(channels: int) -> onnx.ModelProto:
    """x -> a -> Relu -> b and c."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), channels, name="a"))
    return net.output(net.conv(a, 8, name="b"), net.conv(a, 8, name="c")).model()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(channels=st.integers(1, 70), data=st.data(), lowering=st.sampled_from(["auto", "union", "gather", "slice"]))
def test_convolutions_read_and_make_multiples_of_four(channels: int, data: st.DataObject, lowering: str) -> None:
    kept = {
        name: data.draw(st.lists(st.integers(0, channels - 1), min_size=1, max_size=channels, unique=True))
        for name in ("b", "c")
    }
    _, plan, emitted = prune(chain(channels), kept, lowering=lowering)
    found = widths(emitted)
    needed = len(set(kept["b"]) | set(kept["c"]))
    made = min(channels, max(-(-needed // 4) * 4, 16 if channels >= 16 else 0))
    assert found["a"] == (3, made)
    for name in ("b", "c"):
        read = found[name][0]
        assert read in (made, channels) or read % 4 == 0
        assert read >= min(16, made) or made < 16
        assert sorted(plan.consumers[name].keep) == sorted(kept[name])


@pytest.mark.parametrize("kept, made", [(1, 16), (16, 16), (17, 20), (33, 36), (61, 62), (62, 62)])
def test_rounding_never_goes_beyond_what_is_there(kept: int, made: int) -> None:
    _, _, emitted = prune(chain(62), {"b": range(kept), "c": range(kept)})
    assert widths(emitted)["a"][1] == made


def test_operands_of_a_concat_are_multiples_of_sixteen() -> None:
    net = Net()
    x = net.input("x", (1, 3, 8, 8))
    joined = net.op("Concat", net.conv(x, 64, name="a"), net.conv(x, 40, name="b"), net.conv(x, 8, name="c"), axis=1)
    model = net.output(net.conv(joined, 8, name="d")).model()
    _, _, emitted = prune(model, {"d": [*range(17), *range(64, 100), 104]}, lowering="union")
    assert {name: made for name, (_, made) in widths(emitted).items()} == {"a": 32, "b": 40, "c": 8, "d": 8}


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
def test_pooled_channels_are_multiples_of_sixteen(op_type: str) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 8, 8)), 64, name="a")
    options = {} if op_type.startswith("Global") else {"kernel_shape": [2, 2]}
    model = net.output(net.conv(net.op(op_type, a, **options), 8, name="b")).model()
    _, _, emitted = prune(model, {"b": range(20)}, lowering="union")
    assert widths(emitted) == {"a": (3, 32), "b": (32, 8)}


def test_channels_of_a_plain_runtime_are_not_rounded() -> None:
    _, _, emitted = prune(chain(64), {"b": range(5), "c": range(7)}, target=Target(blocked=False))
    assert widths(emitted)["a"] == (3, 7)


def test_fill_rounds_up_to_whole_blocks_and_uses_them() -> None:
    _, plan, emitted = prune(chain(64), {"b": range(20), "c": range(18)}, fill=True, lowering="union")
    assert widths(emitted) == {"a": (3, 32), "b": (32, 8), "c": (32, 8)}
    assert all(len(consumer.keep) == 32 for name, consumer in plan.consumers.items() if name != "a")


def test_fill_takes_the_most_important_channels_first() -> None:
    from ucpe_onnx.analysis.trace import trace
    from ucpe_onnx.planning.make import Settings, make_plan

    traced = trace(chain(64))
    mask = np.arange(64) < 30
    score = np.arange(64.0)
    plan = make_plan(traced, {"b": mask, "c": mask}, Settings(fill=True), {"b": score, "c": score})
    assert sorted(plan.consumers["b"].keep) == [*range(30), 62, 63]


def test_frozen_channels_are_always_made() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 8, 8)), 8, name="a")
    model = net.output(net.conv(a, 4, name="b"), net.op("CumSum", a, net.weight(np.int64(1)))).model()
    _, plan, emitted = prune(model, {"b": [2]})
    assert widths(emitted)["a"] == (3, 8)
    assert plan.consumers["b"].keep == (2,)


def test_no_group_is_emptied() -> None:
    """An operand of a Concat of which nobody keeps anything still makes one channel."""
    net = Net()
    x = net.input("x", (1, 3, 8, 8))
    joined = net.op("Concat", net.conv(x, 8, name="a"), net.conv(x, 8, name="b"), axis=1)
    model = net.output(net.conv(joined, 4, name="c")).model()
    _, _, emitted = prune(model, {"c": [0, 1]}, target=Target(blocked=False))
    assert widths(emitted) == {"a": (3, 2), "b": (3, 1), "c": (3, 4)}


def halves(net: Net, x: str, channels: int) -> list[str]:
    return net.ops("Split", x, net.ints(channels // 2, channels // 2), outputs=2, axis=1)


def test_what_a_split_leaves_of_several_groups_is_a_multiple_too() -> None:
    """The halves of a shuffle hold parts of both operands of the Concat, whichever of their channels stay."""
    net = Net()
    x = net.input("x", (1, 3, 8, 8))
    joined = net.op("Concat", net.conv(x, 48, name="a"), net.conv(x, 48, name="b"), axis=1)
    apart = net.op("Transpose", net.op("Reshape", joined, net.ints(1, 2, 48, 8, 8)), perm=[0, 2, 1, 3, 4])
    left, right = halves(net, net.op("Reshape", apart, net.ints(1, 96, 8, 8)), 96)
    model = net.output(net.conv(left, 8, name="c"), net.conv(right, 8, name="d")).model()
    kept = {"c": [*range(0, 48, 3)], "d": [*range(1, 48, 5)]}
    _, plan, emitted = prune(model, kept, lowering="union")
    found = widths(emitted)
    assert found["c"][0] % 4 == 0 and found["d"][0] % 4 == 0
    assert found["a"][1] < 48
    assert {name: sorted(plan.consumers[name].keep) for name in kept} == kept


def grouped(groups: int, each: int) -> onnx.ModelProto:
    """a -> grouped convolution g -> b."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 8, 8)), groups * each, name="a")
    g = net.conv(net.op("Relu", a), groups * each, 3, groups=groups, pads=[1] * 4, name="g")
    return net.output(net.conv(net.op("Relu", g), 8, name="b")).model()


@pytest.mark.parametrize(
    "each, kept, made",
    [
        (32, 31, 32),  # one channel more for each group, and the convolution stays in the blocked layout
        (32, 20, 20),  # twelve more would cost more than that is worth
        (8, 7, 7),  # was never in that layout
    ],
)
def test_groups_are_rounded_to_blocks_where_that_is_cheap(each: int, kept: int, made: int) -> None:
    model = grouped(4, each)
    mask = [group * each + channel for group in range(4) for channel in range(kept)]
    _, _, emitted = prune(model, {"b": mask}, lowering="union")
    assert widths(emitted)["b"][0] == 4 * made


def test_quantised_depthwise_convolutions_get_whole_columns() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 8, 8)), 64, name="a")
    model = net.output(net.conv(net.conv(a, 64, 3, groups=64, pads=[1] * 4, name="d"), 8, name="b")).model()
    _, _, emitted = prune(model, {"b": range(33)}, target=TARGETS["cpu-int8"], lowering="union")
    assert widths(emitted)["a"][1] == 48
    _, _, emitted = prune(chain(64), {"b": range(33), "c": range(33)}, target=TARGETS["cpu-int8"], lowering="union")
    assert widths(emitted)["a"][1] == 40
