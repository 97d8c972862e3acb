"""Weights with more than two axes: a matrix for each expert, for each head, and contractions over two axes at once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.analysis.rules.cases import made_by
from tests.builders import Net, masks_for
from tests.traps.trapping import PLAIN, check, check_halves
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.masked import masked_model

EXPERTS, WIDTH, HIDDEN, HEADS = 3, 8, 10, 4


def linear(net: Net, x: str, width: int, name: str) -> str:
    return net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], width)), name=name)


def contracted(net: Net, equation: str, *inputs: str, name: str = "") -> str:
    return net.op("Einsum", *inputs, equation=equation, name=name)


def test_all_experts_at_once_lose_the_same_hidden_units() -> None:
    net = Net()
    x = linear(net, net.input("x", (1, 5, 3)), WIDTH, "first")
    up = net.op("MatMul", net.unsqueeze(x, [1]), net.weight(net.normal(EXPERTS, WIDTH, HIDDEN)), name="up")
    down = net.op("MatMul", net.op("Relu", up), net.weight(net.normal(EXPERTS, HIDDEN, 6)), name="down")
    y = net.reduce("ReduceSum", net.op("Mul", down, net.weight(net.normal(EXPERTS, 1, 1))), [1], 0)
    net.output(linear(net, y, 2, "last"))
    for emitted in check(net, {"up": [0, 3, 7], "down": [1, 2, 5, 9], "last": [0, 4]}, PLAIN).values():
        assert made_by(emitted, "first", 1) == 3
        assert [made_by(emitted, "up", axis) for axis in range(3)] == [EXPERTS, 3, 4]
        assert [made_by(emitted, "down", axis) for axis in range(3)] == [EXPERTS, 4, 2]
    traced = check_halves(net.model())
    assert all(traced.consumers[name].prunable.all() for name in ("up", "down", "last"))


@pytest.mark.parametrize("shape", [(8, 4, 3), (1, 1, 4, 3), (1, 4, 3)], ids=str)
def test_channels_that_have_a_matrix_each_pass(shape: tuple[int, ...]) -> None:
    """The channels of a convolution in front of a product are what its matrices are for, or share one."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("MatMul", a, net.weight(net.normal(*shape)), name="m")
    model = net.output(net.conv(y, 2, name="b")).model()
    for emitted in check(net, {"b": [1, 5, 6]}, PLAIN).values():
        assert made_by(emitted, "a") == 3
        assert made_by(emitted, "m") == (3 if shape[0] == 8 else 1)
    assert not trace(model).consumers["m"].prunable.any()  # what it reads is space


def test_a_matrix_for_each_on_the_left() -> None:
    net = Net()
    a = net.op("MatMul", net.weight(net.normal(2, 8, 4)), net.input("x", (2, 4, 3)), name="a")
    net.output(net.op("MatMul", net.weight(net.normal(2, 5, 8)), net.op("Relu", a), name="b"))
    model = net.model()
    assert (trace(model).consumers["b"].channels, trace(model).consumers["b"].prunable.all()) == (8, True)
    check(net, {"b": [0, 2, 5]}, PLAIN)


def experts_by_einsum(*, weighted: bool) -> Net:
    net = Net()
    x = linear(net, net.input("x", (1, 5, 3)), WIDTH, "first")
    up = contracted(net, "blc,ecf->blef", x, net.weight(net.normal(EXPERTS, WIDTH, HIDDEN)), name="up")
    up = net.op("Relu", up)
    if weighted:
        up = net.op("Mul", up, net.unsqueeze(net.op("Softmax", linear(net, x, EXPERTS, "gate"), axis=-1), [3]))
    down = contracted(net, "blef,efd->bld", up, net.weight(net.normal(EXPERTS, HIDDEN, 6)), name="down")
    return net.output(linear(net, down, 2, "last"))


def test_of_two_summed_axes_the_mask_is_for_the_one_that_is_free() -> None:
    """A Softmax mixes the experts: hidden units may go."""
    net = experts_by_einsum(weighted=True)
    assert trace(net.model()).consumers["down"].channels == HIDDEN
    for emitted in check(net, {"down": [0, 3, 8]}, PLAIN).values():
        assert [made_by(emitted, "up", axis) for axis in range(3)] == [EXPERTS, WIDTH, 3]
    check_halves(net.model())


def test_of_two_summed_axes_that_are_free_the_mask_is_for_the_first() -> None:
    net = experts_by_einsum(weighted=False)
    for emitted in check(net, {"down": [0, 2]}, PLAIN).values():
        assert [made_by(emitted, "up", axis) for axis in range(3)] == [2, WIDTH, HIDDEN]


def test_a_mask_tells_summed_axes_apart_by_its_length() -> None:
    """Also in the reference, which knows nothing of what is frozen; of equally long ones it is for the last."""
    for shape, length, axis in (((2, 3, 4), 2, 0), ((2, 3, 4), 3, 1), ((3, 3, 4), 3, 1)):
        net = Net()
        weight = net.weight(np.ones(shape, np.float32), "w")
        net.output(contracted(net, "abc,bcz->az", net.input("x", (1, *shape[:2])), weight, name="e"))
        mask = np.arange(length) != 1
        masked = masked_model(net.model(), {"e": mask})
        value = onnx.numpy_helper.to_array(next(t for t in masked.graph.initializer if t.name == "w"))
        assert (np.moveaxis(value, axis, 0)[1] == 0).all() and value.sum() == value.size - value.size // length


def test_heads_that_are_axes_go_as_a_whole() -> None:
    """Keras and JAX export attention so: made by one Einsum, read by another, heads and channels never merged."""
    net = Net()
    x = net.input("x", (1, 5, WIDTH))
    q, k, v = (
        contracted(net, "bsm,mhd->bshd", x, net.weight(net.normal(WIDTH, HEADS, 3)), name=name) for name in "qkv"
    )
    v = net.op("Add", v, net.weight(net.normal(HEADS, 3), "bias"))
    scores = net.op("Softmax", contracted(net, "bqhd,bkhd->bhqk", q, k), axis=3)
    y = contracted(net, "bhqk,bkhd->bqhd", scores, v)
    net.output(contracted(net, "bqhd,hdm->bqm", y, net.weight(net.normal(HEADS, 3, 6)), name="o"))
    assert trace(net.model()).consumers["o"].channels == HEADS
    for emitted in check(net, {"o": [1, 3]}, PLAIN).values():
        assert [made_by(emitted, name, 1) for name in "qkv"] == [2, 2, 2]
        assert made_by(emitted, "o") == 2
        assert {t.name: list(t.dims) for t in emitted.graph.initializer}["bias"] == [2, 3]
    check_halves(net.model())


@pytest.mark.parametrize("equation", ["...d,dh->...h", "...d,dh", "...d,dh->h..."])
def test_an_ellipsis_stands_for_the_axes_that_there_are(equation: str) -> None:
    net = Net()
    x = linear(net, net.input("x", (1, 5, 3)), WIDTH, "first")
    y = contracted(net, equation, x, net.weight(net.normal(WIDTH, 6)), name="e")
    net.output(y)
    for emitted in check(net, {"e": [0, 3, 7]}, PLAIN).values():
        assert made_by(emitted, "first", 1) == 3


def test_an_ellipsis_of_the_constant_is_not_followed() -> None:
    net = Net()
    x = linear(net, net.input("x", (1, 5, 3)), WIDTH, "first")
    model = net.output(
        contracted(net, "bd,...d->b...", net.reshape(x, 5, 8), net.weight(net.normal(6, WIDTH)), name="e")
    ).model()
    traced = trace(model)
    assert "e" not in traced.consumers
    assert masks_for(traced, {}) == {}
