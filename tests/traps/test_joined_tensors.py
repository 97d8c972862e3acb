"""Tensors that meet themselves, padding, the graph's inputs or its outputs on the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.builders import Net
from tests.traps.trapping import check, check_halves, width


def stem(net: Net, channels: int = 8, name: str = "a") -> str:
    x = "x" if "x" in net.shapes else net.input("x", (1, 3, 6, 6))
    return net.op("Relu", net.conv(x, channels, 3, name=name))


# A tensor with itself


def test_concat_with_itself() -> None:
    """Each copy is read by weights of its own: a channel can be needed from one and not from the other."""
    net = Net()
    a = stem(net)
    net.output(net.conv(net.op("Concat", a, a, axis=1), 4, name="b"))
    for lowering, emitted in check(net, {"b": [0, 1, 2, 10, 13]}).items():
        assert (width(emitted, "a"), width(emitted, "b", 1)) == (4, 5 if lowering in ("gather", "slice") else 8)


def test_concat_with_itself_added_to_another_branch() -> None:
    """Channel i and i + 8 of the other branch stay or go together, as they do in the sum."""
    net = Net()
    a = stem(net)
    twice = net.op("Concat", a, a, axis=1)
    total = net.op("Add", twice, net.conv(net.op("MaxPool", "x", kernel_shape=[1, 1]), 16, name="c"))
    net.output(net.conv(total, 4, name="b"), net.conv(a, 4, name="d"))
    for emitted in check(net, {"b": [0, 9], "d": [2]}).values():
        assert (width(emitted, "a"), width(emitted, "c")) == (3, 6)


def test_concat_of_concats_with_repetitions() -> None:
    net = Net()
    a, c = stem(net), stem(net, 4, "c")
    inner = net.op("Concat", a, c, axis=1)
    outer = net.op("Concat", c, inner, a, axis=1)
    net.output(net.conv(outer, 4, name="b"), net.conv(inner, 4, name="d"))
    check_halves(net.model())
    for emitted in check(net, {"b": [0, 13, 5, 17], "d": [8, 9, 1, 2]}).values():
        assert (width(emitted, "a"), width(emitted, "c")) == (2, 2)


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Max"])
def test_tensor_with_itself(op_type: str) -> None:
    net = Net()
    a = stem(net)
    net.output(net.conv(net.op(op_type, a, a), 4, name="b"))
    for emitted in check(net, {"b": [1, 6]}).values():
        assert width(emitted, "a") == 2


def test_gate_of_its_own() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 6, 6)), 8, name="a")
    net.output(net.conv(net.op("Mul", a, net.op("Sigmoid", a)), 4, name="b"))
    for emitted in check(net, {"b": [1, 6]}).values():
        assert width(emitted, "a") == 2


# Shortcuts that are padded (option A)


def padded(net: Net, x: str, before: int, after: int) -> str:
    return net.pad(x, [0, before, 0, 0, 0, after, 0, 0])


def joined_to_zeros(net: Net, x: str, before: int, after: int) -> str:
    n, _, *space = net.shapes[x]
    ends = [net.weight(np.zeros((n, count, *space), np.float32)) for count in (before, after)]
    return net.op("Concat", ends[0], x, ends[1], axis=1)


SHRINK = {
    "slice": lambda net, x: net.slice(x, [2, 3], [0, 0], [6, 6], [2, 2]),
    "average": lambda net, x: net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
}


@pytest.mark.parametrize("shrink", SHRINK)
@pytest.mark.parametrize("widen, before, after", [(padded, 3, 5), (padded, 0, 8), (joined_to_zeros, 4, 4)])
def test_padded_shortcut(widen: Callable[..., str], before: int, after: int, shrink: str) -> None:
    """The narrow branch stands between zeros; what goes of it and of them need not be alike."""
    net = Net()
    a = stem(net)
    main = net.conv(net.op("Relu", net.conv(a, 12, 3, strides=[2, 2], name="b")), 16, 3, name="c")
    y = net.op("Relu", net.op("Add", main, widen(net, SHRINK[shrink](net, a), before, after)))
    net.output(net.op("Flatten", net.op("GlobalAveragePool", net.conv(y, 10, name="d"))))
    check_halves(net.model())
    kept = [before, before + 1, 15]  # two of the branch, one of the zeros behind it
    for emitted in check(net, {"b": [0, 5], "d": kept}).values():
        zeros = 1 + (before > 0)  # what is read of those behind, and one of those before, where there are any
        assert (width(emitted, "a"), width(emitted, "c")) == (3, 3 + zeros)


# The graph's own inputs and outputs


def test_tensor_that_is_an_output_too() -> None:
    """It stays whole; whoever reads it may still read a part."""
    net = Net()
    a = stem(net)
    y = net.op("Relu", net.conv(a, 8, name="b"))
    net.output(a, net.conv(y, 4, name="c"))
    for lowering, emitted in check(net, {"b": [0, 1, 5], "c": [2, 3]}).items():
        assert (width(emitted, "a"), width(emitted, "b")) == (8, 2)
        assert width(emitted, "b", 1) == (3 if lowering in ("gather", "slice") else 8)


def test_part_that_is_an_output_too() -> None:
    """Of several outputs of one node one is the graph's: only its channels stay."""
    net = Net()
    first, second, third = net.split(stem(net, 12), [4, 4, 4])
    net.output(second, net.conv(net.op("Concat", third, first, axis=1), 4, name="b"))
    check_halves(net.model())
    for emitted in check(net, {"b": [0, 6]}).values():
        assert width(emitted, "a") == 6


def test_conv_reads_a_concat_with_the_input() -> None:
    net = Net()
    a = stem(net)
    net.output(net.conv(net.op("Concat", "x", a, net.op("Neg", "x"), axis=1), 4, name="b"))
    check_halves(net.model())
    for lowering, emitted in check(net, {"b": [0, 4, 6, 12]}).items():
        assert width(emitted, "a") == 2
        assert width(emitted, "b", 1) == (4 if lowering in ("gather", "slice") else 8)


def test_several_outputs() -> None:
    """Hidden tokens, probabilities and a map of the same network."""
    net = Net()
    features = stem(net)
    pooled = net.op("Flatten", net.op("GlobalMaxPool", features))
    tokens = net.op("MatMul", pooled, net.weight(net.normal(8, 6)), name="t")
    values, places = net.ops("TopK", net.gemm(tokens, 5, name="c"), net.ints(2), outputs=2)
    net.output(tokens, values, places, net.conv(features, 4, name="d"))
    for lowering, emitted in check(net, {"t": [0, 1, 2], "d": [2, 3], "c": [0, 5]}).items():
        assert (width(emitted, "a"), width(emitted, "t", 1)) == (4, 6)
        assert width(emitted, "c", 1) == (2 if lowering in ("gather", "slice") else 6)
