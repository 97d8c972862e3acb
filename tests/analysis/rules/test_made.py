"""Tensors that are made and not computed from data: constants, fills and single channels, as long as others need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx import numpy_helper

from tests.analysis.rules.cases import made_by
from tests.builders import Net
from tests.traps.trapping import PLAIN, check, check_halves
from ucpe_onnx.analysis.trace import trace

WIDTH = 12
Target = Callable[[Net, str, Sequence[int]], str]
"""Makes the shape of a class token for each sample from a tensor and the known lengths behind the batch."""


def linear(net: Net, x: str, width: int, name: str) -> str:
    return net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], width)), name=name)


def batch(net: Net, x: str) -> str:
    return net.op("Gather", net.op("Shape", x), net.ints(0))


def joined(net: Net, x: str, lengths: Sequence[int]) -> str:
    return net.op("Concat", batch(net, x), net.ints(*lengths), axis=0)


def with_where(net: Net, x: str, lengths: Sequence[int]) -> str:
    """What torch exports for ``expand(n, -1, -1)``: -1 is looked for when the model runs."""
    target = joined(net, x, [-1] * len(lengths))
    one = numpy_helper.from_array(np.array([1], dtype=np.int64))
    ones = net.op("ConstantOfShape", net.ints(1 + len(lengths)), value=one)
    marked = net.op("Equal", target, net.op("Mul", ones, net.weight(np.int64(-1))))
    return net.op("Where", marked, ones, target)


def from_own_shape(net: Net, x: str, lengths: Sequence[int]) -> str:
    """The shape of the tokens times the lengths: the first token's."""
    return net.op("Max", net.op("Min", net.op("Shape", x), net.ints(2**31, *lengths)), net.ints(1, *lengths))


def token_by_expand(target: Target) -> Callable[[Net, str], str]:
    def token(net: Net, x: str) -> str:
        constant = net.weight(net.normal(1, 1, WIDTH), "token")
        return net.ops("Expand", constant, target(net, x, [1, WIDTH]), shapes=[("n", 1, WIDTH)])[0]

    return token


def token_by_tile(net: Net, x: str) -> str:
    constant = net.weight(net.normal(1, 1, WIDTH), "token")
    return net.ops("Tile", constant, joined(net, x, [1, 1]), shapes=[("n", 1, WIDTH)])[0]


def token_by_zeros(net: Net, x: str) -> str:
    zeros = net.ops("ConstantOfShape", joined(net, x, [1, WIDTH]), shapes=[("n", 1, WIDTH)])[0]
    return net.op("Add", zeros, net.weight(net.normal(1, 1, WIDTH), "token"))


TOKENS = {
    "Expand": token_by_expand(joined),
    "Expand with Where": token_by_expand(with_where),
    "Expand with arithmetic": token_by_expand(from_own_shape),
    "Tile": token_by_tile,
    "ConstantOfShape": token_by_zeros,
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_for_each_sample_is_cut_like_what_it_joins(kind: str) -> None:
    net = Net()
    x = linear(net, net.input("x", ("n", 4, 3)), WIDTH, "first")
    y = net.op("Concat", TOKENS[kind](net, x), x, axis=1)
    net.output(linear(net, y, 5, "a"), linear(net, y, 2, "b"))
    for emitted in check(net, {"a": [0, 3, 7], "b": [3, 8]}, PLAIN).values():
        sizes = {t.name: list(t.dims) for t in emitted.graph.initializer}
        assert (made_by(emitted, "first", 1), sizes["token"]) == (4, [1, 1, 4])
    check_halves(net.model())


def test_a_target_that_names_the_channels_by_their_number_is_patched() -> None:
    """The batch is read at run time and the channels too: the emitted model must not make the old number of them."""
    net = Net()
    x = linear(net, net.input("x", ("n", 4, 3)), WIDTH, "first")
    zeros = net.ops("ConstantOfShape", net.op("Shape", x), shapes=[("n", 4, WIDTH)])[0]
    y = net.op("Where", net.weight(net.random.random(WIDTH) < 0.5), x, zeros)
    net.output(linear(net, y, 5, "a"))
    assert trace(net.model()).consumers["a"].prunable.all()
    check_halves(net.model())


@pytest.mark.parametrize("length", [2, 3])
def test_fills_with_channels_of_their_own(length: int) -> None:
    """Channels that nothing makes go from the shape."""
    net = Net()
    x = net.conv(net.input("x", ("n", 3, 4, 4)), 8, name="first")
    target = net.op("Concat", batch(net, x), net.ints(length, 4, 4), axis=0)
    half = numpy_helper.from_array(np.array([0.5], dtype=np.float32))
    made = net.ops("ConstantOfShape", target, shapes=[("n", length, 4, 4)], value=half)[0]
    net.output(net.conv(net.op("Concat", x, made, axis=1), 4, name="a"))
    traced = trace(net.model())
    assert traced.consumers["a"].prunable.all()
    check(net, {"a": [1, 2, 8]}, PLAIN)


def spread_by_expand(net: Net, x: str, many: int) -> str:
    return net.ops(
        "Expand", x, net.op("Concat", batch(net, x), net.ints(many, 1, 1), axis=0), shapes=[("n", many, 4, 4)]
    )[0]


def spread_by_tile(net: Net, x: str, many: int) -> str:
    return net.op("Tile", x, net.ints(1, many, 1, 1))


def spread_by_lengths(net: Net, x: str, many: int) -> str:
    """Repeats that are put together when the model runs."""
    one = net.op("Gather", net.op("Shape", x), net.ints(1))
    return net.ops("Tile", x, net.op("Concat", one, net.ints(many, 1, 1), axis=0), shapes=[("n", many, 4, 4)])[0]


@pytest.mark.parametrize("spread", [spread_by_expand, spread_by_tile, spread_by_lengths])
def test_one_channel_as_many(spread: Callable[[Net, str, int], str]) -> None:
    net = Net()
    x = net.conv(net.input("x", ("n", 3, 4, 4)), 8, name="first")
    gate = net.op("Sigmoid", net.conv(x, 1, name="gate"))
    y = net.op("Mul", net.conv(x, 8, name="other"), spread(net, gate, 8))
    net.output(net.conv(y, 4, name="a"))
    assert trace(net.model()).consumers["a"].prunable.all()
    for emitted in check(net, {"a": [1, 2, 6]}, PLAIN).values():
        assert made_by(emitted, "other") == 3


def test_repeats_that_count_channels_are_written_down() -> None:
    """Repeated as often as there are channels: with fewer of them it would be repeated less."""
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="first")
    count = net.op("Gather", net.op("Shape", x), net.ints(1))
    repeats = net.op("Concat", net.ints(1, 1), count, net.ints(1), axis=0)
    model = net.output(net.conv(net.ops("Tile", x, repeats, shapes=[(1, 8, 32, 4)])[0], 2, name="a")).model()
    check_halves(model)


def test_what_nothing_joins_has_a_shape_too() -> None:
    """A spread channel that nothing reads, beside channels that go."""
    net = Net()
    x = net.conv(net.input("x", ("n", 3, 4, 4)), 8, name="first")
    target = net.op("Concat", batch(net, x), net.ints(3, 4, 4), axis=0)
    spread = net.ops("Expand", net.conv(x, 1, name="gate"), target, shapes=[("n", 3, 4, 4)])[0]
    net.output(net.conv(x, 2, name="a"), net.op("Relu", spread))
    check(net, {"a": [0, 1], "gate": [1, 5]}, PLAIN)
