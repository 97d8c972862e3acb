"""Widths of slots that stand for several channels: what counts are the channels of every tensor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.budget.nets import by_weights
from tests.builders import Masked, Net
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.budget.problem import Problem
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.planning.rates import default_rates
from ucpe_onnx.planning.rounding import Rounding
from ucpe_onnx.runtime.target import TARGETS, Target


def attention(heads: int, each: int) -> onnx.ModelProto:
    """Self-attention, of which "last" reads all heads side by side; a slot is a head of q, k and v."""
    net = Net()
    x = net.input("x", (1, 5, 8))
    q, k, v = (net.op("MatMul", x, net.weight(net.normal(8, heads * each)), name=name) for name in "qkv")
    q, k, v = (net.op("Transpose", net.reshape(y, 0, 0, heads, each), perm=[0, 2, 1, 3]) for y in (q, k, v))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.reshape(net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3]), 0, 0, heads * each)
    return net.output(net.op("MatMul", y, net.weight(net.normal(heads * each, 8)), name="last")).model()


def normalised(groups: int, each: int) -> onnx.ModelProto:
    """q -> group normalisation by way of an InstanceNormalization -> last; a slot is a group."""
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), groups * each, name="q")
    ones, zeros = net.weight(np.ones(groups)), net.weight(np.zeros(groups))
    y = net.op("InstanceNormalization", net.reshape(y, 0, groups, -1), ones, zeros)
    y = net.reshape(y, 1, groups * each, 4, 4)
    return net.output(net.conv(net.op("Relu", y), 8, name="last")).model()


def shuffled(slots: int, each: int) -> onnx.ModelProto:
    """q -> DepthToSpace -> last; a slot is several channels of q, and one that is read."""
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), slots * each, name="q")
    y = net.op("DepthToSpace", y, blocksize=int(each**0.5), mode="CRD")
    return net.output(net.conv(y, 8, name="last")).model()


def flattened(slots: int, each: int) -> onnx.ModelProto:
    """q -> Flatten -> last; a slot is one channel of q, and several that are read."""
    net = Net()
    y = net.op("Flatten", net.conv(net.input("x", (1, 3, each, 1)), slots, name="q"))
    return net.output(net.gemm(y, 8, name="last", trans_b=False)).model()


def squeezed(slots: int, each: int) -> onnx.ModelProto:
    """q, scaled by what is made of its means (squeeze and excitation) -> last."""
    assert each == 1
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), slots, name="q")
    narrow = net.op("Relu", net.conv(net.op("GlobalAveragePool", y), 4, name="narrow"))
    scale = net.op("Sigmoid", net.conv(narrow, slots, name="wide"))
    return net.output(net.conv(net.op("Mul", y, scale), 8, name="last")).model()


SHAPES = {  # the builder, what a slot may stand for, and for how many channels of the producer and of the consumer
    "heads": (attention, (1, 2, 3, 8, 64), lambda each: (each, each)),
    "groups": (normalised, (2, 3, 8), lambda each: (each, each)),
    "shuffle": (shuffled, (4, 9), lambda each: (each, 1)),
    "flatten": (flattened, (2, 3, 49), lambda each: (1, each)),
    "squeeze": (squeezed, (1,), lambda each: (1, 1)),
}


def widths(model: onnx.ModelProto) -> tuple[int, int]:
    """Channels that the emitted producer makes, and those that the consumer reads."""
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    weight = {n.name: (n.op_type, dims[n.input[1]]) for n in model.graph.node if n.name in ("q", "last")}
    return tuple(  # type: ignore[return-value]
        shape[axis if op == "Conv" else 1 - axis] for (op, shape), axis in ((weight["q"], 0), (weight["last"], 1))
    )


def emitted(model: onnx.ModelProto, slots: np.ndarray, target: Target, *, fill: bool = False) -> onnx.ModelProto:
    """The model in which the last layer keeps some slots; checked against the masked one."""
    traced = trace(model)
    last = traced.consumers["last"]
    masks = {name: np.isin(c.slots, np.flatnonzero(slots)) for name, c in traced.consumers.items() if c == last}
    if "narrow" in traced.consumers:
        masks["narrow"] = masks["last"]
    plan = make_plan(traced, masks, Settings(target=target, lowering="union", fill=fill))
    made = emit(model, traced, plan)
    Masked(model, plan.masks()).check(made)
    return made


@settings(max_examples=80, derandomize=True, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(SHAPES)), name=st.sampled_from(["avx512", "avx2", "cpu", "cuda"]))
def test_widths_are_the_smallest_that_suit_every_tensor(data: st.DataObject, kind: str, name: str) -> None:
    build, some, channels = SHAPES[kind]
    each, slots = data.draw(st.sampled_from(some)), data.draw(st.integers(2, 36))
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots).filter(any)))
    target = TARGETS[name]
    multiple = target.joined_multiple if kind == "squeeze" else target.read_multiple

    def suits(count: int) -> bool:
        return not (target.blocked or target.aligned) or all(
            count * n % multiple == 0 and (count * n >= target.minimum or slots * n < target.minimum)
            for n in channels(each)
        )

    smallest = next((count for count in range(int(kept.sum()), slots) if suits(count)), slots)
    made = emitted(build(slots, each), kept, target)
    assert widths(made) == tuple(smallest * n for n in channels(each))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("heads, kept", [(12, 9), (12, 11), (16, 11), (6, 5), (3, 1)])
def test_as_many_heads_go_as_the_mask_drops(heads: int, kept: int, fill: bool) -> None:
    made = emitted(attention(heads, 8), np.arange(heads) < kept, TARGETS["avx512"], fill=fill)
    assert widths(made) == (kept * 8, kept * 8)


def test_filling_up_counts_channels() -> None:
    """Two groups of eight channels are a block: one more than the mask keeps costs the convolutions nothing."""
    target = TARGETS["avx512"]
    assert widths(emitted(normalised(32, 8), np.arange(32) < 23, target, fill=True)) == (24 * 8, 24 * 8)
    assert widths(emitted(normalised(32, 8), np.arange(32) < 24, target, fill=True)) == (24 * 8, 24 * 8)
    assert widths(emitted(normalised(32, 16), np.arange(32) < 23, target, fill=True)) == (23 * 16, 23 * 16)


@pytest.mark.parametrize(
    "build, each, expected",
    [
        (attention, 64, (1, 1, 1)),
        (attention, 8, (1, 2, 2)),
        (attention, 3, (4, 8, 16)),
        (normalised, 2, (2, 8, 8)),
        (shuffled, 4, (4, 16, 16)),
        (flattened, 49, (4, 16, 16)),
    ],
)
def test_blocks_are_counted_in_slots(build, each: int, expected: tuple[int, int, int]) -> None:  # type: ignore[no-untyped-def]
    traced = trace(build(12, each))
    segment = traced.segments[traced.consumers["last"].segment]
    found = Rounding.of(traced, segment, TARGETS["avx512"])
    assert (found.step, found.minimum, found.joined) == expected
    assert found.exact.step == 1


def test_axes_of_several_groups_are_filled_up_in_channels() -> None:
    """Shuffled halves of two convolutions, of which every slot stands for two channels of what is read."""
    net = Net()
    x = net.input("x", (1, 3, 8, 8))
    joined = net.op("Concat", net.conv(x, 24, name="a"), net.conv(x, 24, name="b"), axis=1)
    twice = net.op("Concat", joined, joined, axis=1)
    model = net.output(net.conv(twice, 8, name="c")).model()
    traced = trace(model)
    masks = {"c": traced.consumers["c"].slots % 24 < 17}
    exact = replace(TARGETS["avx512"], joined_multiple=1, read_multiple=8, minimum=1)
    plan = make_plan(traced, masks, Settings(target=exact, lowering="union"))
    assert len(plan.consumers["c"].read) == 72, "34 slots are 68 channels: two more make a multiple of 8"
    Masked(model, masks).check(emit(model, traced, plan))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=24, max_size=24).filter(any), each=st.sampled_from([1, 2, 8]))
def test_parts_of_units_stay_equally_wide(kept: list[bool], each: int) -> None:
    """A convolution in 4 groups reads 24 groups of a normalisation: each of its own reads equally many channels."""
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), 24 * each, name="q")
    y = net.op("InstanceNormalization", net.reshape(y, 0, 24, -1), net.weight(np.ones(24)), net.weight(np.zeros(24)))
    y = net.op("Relu", net.reshape(y, 1, 24 * each, 4, 4))
    model = net.output(net.conv(y, 16, groups=4, name="last")).model()
    made, read = widths(emitted(model, np.array(kept), TARGETS["avx512"]))
    most = max(sum(kept[start : start + 6]) for start in range(0, 24, 6))
    assert made == 4 * read and read == (max(most * each, 16) if 6 * each >= 16 else most * each)


@pytest.mark.parametrize("each, step, width", [(64, 3, 1), (8, 3, 2), (3, 4, 16)])
def test_budgets_choose_from_widths_in_slots(each: int, step: int, width: int) -> None:
    """Of 36 heads any number is a whole number of blocks if a head is one: levels are no coarser than that."""
    traced = trace(attention(36, each))
    target = TARGETS["avx512"]
    problem = Problem("x", traced, by_weights(traced), target, default_rates(target), "auto")
    counts = {
        kind: {int(base.sum()) for choice in problem.knapsack(kind).choices for base in choice.bases if base.size == 36}
        for kind in ("macs", "latency")
    }
    assert 36 - step in counts["macs"] and all(count % step == 0 for count in counts["macs"])
    assert len(counts["latency"]) > 2 and all(count % width == 0 for count in counts["latency"] - {36})
