"""Producers of which next to nothing is read, and some of which nothing is."""

from __future__ import annotations

import pytest

from tests.builders import Net
from tests.traps.trapping import check, width


def test_consumers_keep_one_channel_each() -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    y = net.op("Concat", *(net.conv(a, 4, name=name) for name in "bcd"), axis=1)
    net.output(net.conv(y, 2, name="e"))
    for emitted in check(net, {"b": [0], "c": [5], "d": [5], "e": [11]}).values():
        assert (width(emitted, "a"), width(emitted, "d")) == (2, 1)


def test_one_consumer_alone_keeps_channels() -> None:
    """Two others are left with the one channel that they must have."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    net.output(*(net.conv(a, 4, name=name) for name in "bcd"))
    for lowering, emitted in check(net, {"b": [2, 3, 4, 6], "c": [7], "d": [7]}).items():
        assert width(emitted, "a") == 5
        assert [width(emitted, n, 1) for n in "cd"] == ([1, 1] if lowering in ("gather", "slice") else [5, 5])


@pytest.mark.parametrize("axis", [1, -3])
def test_nothing_is_read_of_one_operand_of_a_concat(axis: int) -> None:
    """No channel of ``c`` is needed: one remains, since no tensor may have none."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    b = net.op("Relu", net.conv(a, 8, name="b"))
    c = net.op("Relu", net.batch_norm(net.conv(net.depthwise(a), 6, name="c")))
    net.output(net.conv(net.op("Concat", b, c, axis=axis), 4, name="d"))
    for emitted in check(net, {"b": [0, 1], "c": [1, 2], "d": [1, 2, 5]}).values():
        assert [width(emitted, name) for name in "abc"] == [3, 3, 1]


def test_nothing_is_read_of_a_part() -> None:
    """A Split, whose first part nobody needs, and whose other parts lose channels."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 12, name="a"))
    first, second, third = net.split(a, [4, 4, 4])
    total = net.op("Add", net.depthwise(second), third)
    net.output(net.conv(net.op("Concat", net.op("Tanh", first), total, axis=1), 4, name="b"))
    for emitted in check(net, {"b": [6, 7]}).values():
        assert width(emitted, "a") == 1 + 2 * 2


def test_all_consumers_of_one_operand_but_one_drop_it() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = (net.op("Relu", net.conv(x, 6, name=name)) for name in "ab")
    joined = net.op("Concat", a, b, axis=1)
    net.output(*(net.conv(joined, 4, name=name) for name in "cde"))
    for emitted in check(net, {"c": [6, 7], "d": [7, 8, 11], "e": [0, 1, 8]}).values():
        assert (width(emitted, "a"), width(emitted, "b")) == (2, 4)


def test_every_layer_keeps_one_channel() -> None:
    """Down to single channels, which shape operators must not take for an axis that may disappear."""
    net = Net()
    y = net.input("x", (2, 3, 4, 4))
    for name in "abcd":
        y = net.op("Relu", net.batch_norm(net.conv(y, 8, 3, name=name)))
    pooled = net.squeeze(net.op("GlobalAveragePool", y))
    net.output(net.op("MatMul", pooled, net.weight(net.normal(8, 5)), name="e"))
    for emitted in check(net, {"b": [3], "c": [0], "d": [7], "e": [5]}).values():
        assert [width(emitted, name) for name in "abcd"] == [1, 1, 1, 1]
