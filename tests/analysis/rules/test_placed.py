"""Reads and writes at places that indices tell, and items of sequences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.analysis.rules.cases import made_by
from tests.builders import Net
from tests.traps.trapping import PLAIN, check, check_halves
from ucpe_onnx.analysis.trace import trace

SHAPE = (1, 8, 4, 4)
Step = Callable[[Net, str], str]


def places(net: Net, *shape: int) -> str:
    """Along the last axis, none twice."""
    return net.weight(np.argsort(np.random.default_rng(0).random(shape), axis=-1))


PASS: dict[str, Step] = {
    "GatherElements": lambda net, x: net.op("GatherElements", x, places(net, 1, 8, 4, 4), axis=3),
    "GatherElements of fewer": lambda net, x: net.op(
        "GatherElements", x, net.weight(np.ones((1, 8, 4, 1), np.int64)), axis=-1
    ),
    "ScatterElements": lambda net, x: net.op("ScatterElements", x, places(net, *SHAPE), net.op("Neg", x), axis=-1),
    "ScatterElements into a constant": lambda net, x: net.op(
        "ScatterElements", net.weight(net.normal(*SHAPE)), places(net, *SHAPE), x, axis=3
    ),
    "ScatterElements of a constant": lambda net, x: net.op(
        "ScatterElements", x, places(net, *SHAPE), net.weight(net.normal(*SHAPE)), axis=3
    ),
    "GatherND in a batch": lambda net, x: net.op(
        "GatherND", net.op("Transpose", x, perm=[1, 0, 2, 3]), net.weight(np.zeros((8, 1, 3), np.int64)), batch_dims=1
    ),
    "GatherND": lambda net, x: net.op(
        "GatherND", net.op("Transpose", x, perm=[0, 2, 3, 1]), net.weight(np.array([[[0, 1, 2]], [[0, 3, 0]]]))
    ),
    "ScatterND": lambda net, x: net.op(
        "ScatterND",
        net.op("Transpose", x, perm=[0, 2, 3, 1]),
        net.weight(np.array([[0, 1, 2], [0, 3, 0]])),
        net.weight(net.normal(2, 8)),
    ),
}
"""Steps that pass the channels on, to whichever axis."""

STAY: dict[str, Step] = {
    "GatherElements": lambda net, x: net.op("GatherElements", x, net.weight(np.zeros((1, 3, 4, 4), np.int64)), axis=1),
    "GatherElements of fewer channels": lambda net, x: net.op(
        "GatherElements", x, net.weight(np.zeros((1, 3, 4, 4), np.int64)), axis=2
    ),
    "ScatterElements": lambda net, x: net.op(
        "ScatterElements", x, net.weight(np.full((1, 1, 4, 4), 3)), net.weight(net.normal(1, 1, 4, 4)), axis=1
    ),
    "ScatterElements of fewer channels": lambda net, x: net.op(
        "ScatterElements", x, net.weight(np.full((1, 1, 4, 4), 3)), net.weight(net.normal(1, 1, 4, 4)), axis=2
    ),
    "GatherND": lambda net, x: net.op("GatherND", x, net.weight(np.array([[0, 5], [0, 1]]))),
    "ScatterND": lambda net, x: net.op("ScatterND", x, net.weight(np.array([[0, 5]])), net.weight(net.normal(1, 4, 4))),
}


def model_with(step: Step) -> onnx.ModelProto:
    """x -> conv ``a`` of eight channels -> step -> a product over each axis in turn that has eight positions."""
    net = Net()
    y = step(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    rank = len(net.shapes[y])
    axis = net.shapes[y].index(8) if 8 in net.shapes[y] else rank - 1
    order = [*(a for a in range(rank) if a != axis), axis]
    y = net.op("Transpose", y, perm=order)
    return net.output(net.op("MatMul", y, net.weight(net.normal(net.shapes[y][-1], 2)), name="b")).model()


@pytest.mark.parametrize("name", PASS)
def test_axes_that_are_not_indexed_pass(name: str) -> None:
    model = model_with(PASS[name])
    assert trace(model).consumers["b"].prunable.all()
    check_halves(model)


@pytest.mark.parametrize("name", STAY)
def test_axes_that_are_indexed_stay(name: str) -> None:
    traced = trace(model_with(STAY[name]))
    (segment,) = [segment for segment in traced.segments if "a" in segment.producers]
    assert segment.frozen.all()
    assert any(f"places told by indices: {name.split(maxsplit=1)[0]}" in reason for reason in segment.reasons)


# Sequences


def split(net: Net, x: str, sizes: list[int] | int) -> str:
    length = net.weight(np.int64(sizes)) if isinstance(sizes, int) else net.ints(*sizes)
    return net.ops("SplitToSequence", x, length, axis=1, shapes=[()])[0]


def item(net: Net, sequence: str, at: int, channels: int) -> str:
    return net.ops("SequenceAt", sequence, net.weight(np.int64(at)), shapes=[(1, channels, 4, 4)])[0]


def bare(net: Net) -> onnx.ModelProto:
    """Without shapes of what is taken out: the analysis has to find them."""
    model = net.model()
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("sizes, found", [([3, 5], [3, 5]), (3, [3, 3, 2]), ([2, 2, 4], [2, 2, 4])])
def test_items_of_a_split_are_parts_of_the_channels(sizes: list[int] | int, found: list[int]) -> None:
    net = Net()
    sequence = split(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"), sizes)
    first, last = item(net, sequence, 0, found[0]), item(net, sequence, -1, found[-1])
    net.output(net.conv(first, 2, name="first"), net.conv(last, 2, name="last"))
    traced = trace(bare(net))
    assert [traced.consumers[name].channels for name in ("first", "last")] == [found[0], found[-1]]
    assert all(traced.consumers[name].prunable.all() for name in ("first", "last"))
    for emitted in check(net, {"first": [1], "last": [0, 1]}, PLAIN).values():
        assert made_by(emitted, "a") == 3
        assert "SplitToSequence" not in {node.op_type for node in emitted.graph.node}


def test_a_split_that_is_put_together_again() -> None:
    net = Net()
    sequence = split(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"), 4)
    (y,) = net.ops("ConcatFromSequence", sequence, axis=1, shapes=[SHAPE])
    net.output(net.conv(y, 2, name="b"), net.conv(item(net, sequence, 1, 4), 2, name="c"))
    for emitted in check(net, {"b": [0, 5], "c": [1, 3]}, PLAIN).values():
        assert made_by(emitted, "a") == 3
    assert trace(bare(net)).consumers["b"].prunable.all()


def test_tensors_that_are_named_one_by_one() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    parts = [x, net.conv(x, 5, name="c"), net.weight(net.normal(1, 2, 4, 4), "given")]
    (sequence,) = net.ops("SequenceConstruct", *parts, shapes=[()])
    (joined,) = net.ops("ConcatFromSequence", sequence, axis=1, shapes=[(1, 15, 4, 4)])
    net.output(net.conv(joined, 2, name="b"), net.conv(item(net, sequence, 1, 5), 2, name="d"))
    for emitted in check(net, {"b": [0, 9, 13], "c": [0, 1], "d": [1, 2]}, PLAIN).values():
        assert (made_by(emitted, "a"), made_by(emitted, "c")) == (2, 2)
        assert {t.name: list(t.dims) for t in emitted.graph.initializer}["given"] == [1, 1, 4, 4]


def test_an_item_that_the_run_picks_keeps_all() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    (y,) = net.ops("SequenceAt", split(net, x, 4), net.input("at", (), TensorProto.INT64), shapes=[(1, 4, 4, 4)])
    traced = trace(net.output(net.conv(y, 2, name="b")).model())
    assert not traced.consumers["b"].prunable.any()
    (segment,) = [segment for segment in traced.segments if "a" in segment.producers]
    assert any("items are not known in advance: SplitToSequence" in reason for reason in segment.reasons)


def test_parts_on_an_axis_of_their_own_stay() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    (y,) = net.ops("ConcatFromSequence", split(net, x, 4), axis=0, new_axis=1, shapes=[(2, 1, 4, 4, 4)])
    traced = trace(net.output(net.op("Relu", y)).model())
    assert not any((~segment.frozen).any() for segment in traced.segments)
