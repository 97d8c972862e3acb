"""Integers at the end of a network: they may differ where the floats in front of them tie, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.builders import Net
from ucpe_onnx.errors import VerificationError
from ucpe_onnx.runtime.ties import tail_of
from ucpe_onnx.runtime.verify import Verification, verify

NEAR, FAR = 1e-6, 3e-2
"""Errors of floats, of about 1, that the tolerance of 1e-4 allows, and does not allow."""


def classes(net: Net, x: str) -> str:
    return net.op("ArgMax", x, axis=1, keepdims=0, elem_type=TensorProto.INT64)


def pixels(net: Net, x: str) -> str:
    x = net.op("Round", net.op("Mul", x, net.weight(np.float32(10))))
    return net.op("Cast", net.op("Clip", x, net.weight(np.float32(-100)), net.weight(np.float32(100))), to=6)


def places(net: Net, x: str) -> str:
    values, indices = net.ops("TopK", x, net.ints(3), outputs=2, axis=1)
    return net.op("Add", indices, net.op("Cast", net.op("Floor", values), to=7))


def bytes_(net: Net, x: str) -> str:
    return net.op("QuantizeLinear", x, net.weight(np.float32(0.1)), net.weight(np.uint8(128)))


def above(net: Net, x: str) -> str:
    """Floats again: a threshold, and what is above it."""
    return net.op("Where", net.op("Greater", x, net.weight(np.float32(0.3))), x, net.weight(np.float32(-5)))


TAILS = {"ArgMax": classes, "Round": pixels, "TopK": places, "QuantizeLinear": bytes_, "Greater": above}

FEED = 0.5 * np.random.default_rng(3).standard_normal((2, 6, 8, 8)).astype(np.float32)


def network(tail: Callable[[Net, str], str], error: float = 0.0, seed: int = 0) -> onnx.ModelProto:
    """A layer whose output has many ties, and a tail; the error goes on top of the floats in front of the tail."""
    net = Net(opset=21, ir_version=10)
    x = net.op("Round", net.op("Mul", net.input(shape=(2, 6, 8, 8)), net.weight(np.float32(7))))
    x = net.op("Div", x, net.weight(np.float32(10)))
    noise = np.random.default_rng(seed).uniform(-error, error, (2, 6, 8, 8)).astype(np.float32)
    identity = net.weight(np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1))
    x = net.op("Add", net.conv_with(x, identity), net.weight(noise + np.float32(0.05)))
    return net.output(tail(net, x)).model()


def verified(emitted: onnx.ModelProto, reference: onnx.ModelProto) -> Verification:
    return verify(emitted, reference, [{"x": FEED}, {"x": FEED[::-1].copy()}])


@pytest.mark.parametrize("name", TAILS)
def test_ties_may_fall_either_way(name: str) -> None:
    reference = network(TAILS[name])
    result = verified(network(TAILS[name], NEAR), reference)
    assert result.passed and result.feeds == 2
    assert 0 < result.worst.worst.error < result.worst.worst.bound, "what is told is how the floats differ"


@pytest.mark.parametrize("name", TAILS)
def test_floats_that_differ_more_are_wrong(name: str) -> None:
    assert not verified(network(TAILS[name], FAR), network(TAILS[name])).passed


def test_another_tail_is_wrong_however_near_the_floats_are() -> None:
    """What the emitted model makes of its floats has to be what the reference's tail makes of them."""

    def other(net: Net, x: str) -> str:
        return net.op("ArgMin", x, axis=1, keepdims=0, elem_type=TensorProto.INT64)

    assert not verified(network(other), network(classes)).passed


def test_a_tensor_of_another_name_explains_nothing() -> None:
    reference, emitted = network(classes), network(classes, NEAR)
    node = next(node for node in emitted.graph.node if node.op_type == "ArgMax")
    maker = next(made for made in emitted.graph.node if made.output[0] == node.input[0])
    maker.output[0] = node.input[0] = "renamed"
    with pytest.raises(VerificationError, match="not equal"):
        verified(emitted, reference).raise_if_failed("out.onnx")


def test_the_tail_begins_at_the_last_roundings() -> None:
    """The Round in front of the layer is not part of it: what follows is pruned."""
    model = network(pixels)
    tail = tail_of(model, [value.name for value in model.graph.output])
    assert tail is not None and [node.op_type for node in tail.nodes] == ["Round", "Clip", "Cast"]
    assert [name for node in model.graph.node if node.op_type == "Mul" for name in node.output][-1:] == list(
        tail.inputs
    )
    assert tail_of(network(lambda net, x: net.op("Relu", x)), ["t9"]) is None


# Random operators


def noisy(scale: float = 1.0) -> onnx.ModelProto:
    net = Net()
    x = net.conv_with(net.input(), net.weight(np.float32(scale) * np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)))
    drawn = net.op("RandomNormalLike", x)
    return net.output(net.op("Add", x, net.op("Mul", drawn, net.op("RandomUniformLike", x)))).model()


def test_random_operators_draw_the_same_in_both_models() -> None:
    feeds = [{"x": np.random.default_rng(seed).standard_normal((1, 8, 4, 4)).astype(np.float32)} for seed in range(5)]
    before = noisy().SerializeToString(deterministic=True)
    model = noisy()
    result = verify(model, noisy(), feeds)
    assert result.passed and result.seeded == 2 and result.to_dict()["seeded"] == 2
    assert model.SerializeToString(deterministic=True) == before, "the user's file keeps drawing as it did"
    assert not verify(noisy(1.1), noisy(), feeds).passed
