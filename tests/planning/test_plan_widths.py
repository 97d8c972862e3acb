"""How wide the emitted axes are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Net, prune
from ucpe_onnx.planning import Target, target_for


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
    _, _, emitted = prune(model, {"d": [*range(17), *range(64, 100), 104]})
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


@pytest.mark.parametrize(
    "providers, level, target",
    [
        (["CPUExecutionProvider"], "all", Target()),
        ([], "layout", Target()),
        (["cpu"], "extended", Target(blocked=False, read_multiple=4, joined_multiple=4)),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "all", Target(False, read_multiple=8, joined_multiple=8)),
    ],
)
def test_target_for(providers: list[str], level: str, target: Target) -> None:
    assert target_for(providers, level) == target
