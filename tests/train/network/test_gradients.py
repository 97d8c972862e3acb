"""Gradients are the differences of losses, through every operator and through parametrizations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.builders import Net
from tests.train.network.drawn import DRAWN
from tests.train.network.operator_cases import CASES
from tests.train.network.running import check_gradients, classifier, projected, scaled, tensors, uniform_feeds
from ucpe_onnx.train.network import Network

few = settings(max_examples=10, deadline=None, derandomize=True)

STEPS = {
    *("Ceil", "Floor", "Round", "Sign", "Cast", "NonZero", "OneHot", "Hardmax", "Hardmax old", "Reshape zero"),
    *("And", "Or", "Xor", "Not", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "IsInf, IsNaN"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Div of integers"),
    "ReduceMean of integers",
}
"""What has no gradient: the results are steps, or nothing at all."""


@pytest.mark.parametrize("name", sorted(set(CASES) - STEPS))
def test_through_each_operator(name: str) -> None:
    case = CASES[name]
    model = scaled(case.model())
    check_gradients(model, uniform_feeds(model, case.low, case.high))


@pytest.mark.parametrize("name", sorted(STEPS))
def test_steps_pass_no_gradient(name: str) -> None:
    case = CASES[name]
    network = Network(scaled(case.model()))
    loss = projected(network(tensors(uniform_feeds(scaled(case.model()), case.low, case.high))))
    if loss.requires_grad:
        loss.backward()
    gradient = network.weights.get_parameter(network.attribute_of["factors"]).grad
    assert gradient is None or not gradient.any()


@pytest.mark.parametrize("kind", DRAWN)
@given(data=st.data())
@few
def test_through_drawn_attributes(kind: str, data: st.DataObject) -> None:
    model = data.draw(DRAWN[kind])
    if kind not in ("GRU", "LSTM", "RNN"):  # whose input may be a single number
        model = scaled(model)
    check_gradients(model, uniform_feeds(model, 0.1, 2.0), all_matter=False)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_of_a_whole_network(batch_norm: bool) -> None:
    model = classifier(batch_norm=batch_norm)
    network = check_gradients(model, uniform_feeds(model))
    assert len(network.attribute_of) == (8 if batch_norm else 6)


def test_of_attention() -> None:
    net = Net(opset=20, ir_version=10)
    x = net.input("x", (2, 5, 6))
    y = net.op("LayerNormalization", x, net.weight(net.normal(6) + 1), net.weight(net.normal(6)))
    heads = []
    for perm in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        z = net.op("Add", net.op("MatMul", y, net.weight(net.normal(6, 6))), net.weight(net.normal(6)))
        heads.append(net.op("Transpose", net.reshape(z, 2, 5, 3, 2), perm=perm))
    scores = net.op("Softmax", net.op("Mul", net.op("MatMul", *heads[:2]), net.constant(0.7)))
    y = net.reshape(net.op("Transpose", net.op("MatMul", scores, heads[2]), perm=[0, 2, 1, 3]), 2, 5, 6)
    y = net.op("Add", x, net.op("MatMul", y, net.weight(net.normal(6, 6))))
    model = net.output(net.op("Gelu", y)).model()
    # A bias of the keys changes all scores of a query alike, which Softmax takes away again.
    network = check_gradients(model, uniform_feeds(model), all_matter=False)
    assert len(network.attribute_of) == 9


def test_of_an_embedding() -> None:
    net = Net()
    ids = net.input("ids", (2, 3), 7)
    y = net.op("Gather", net.weight(net.normal(9, 4), "table"), ids)
    model = net.output(net.op("Tanh", net.op("MatMul", y, net.weight(net.normal(4, 2))))).model()
    network = check_gradients(model, uniform_feeds(model, 0, 9))
    gradient = network.weights.get_parameter(network.attribute_of["table"]).grad
    assert gradient is not None
    used = {int(i) for i in uniform_feeds(model, 0, 9)["ids"].reshape(-1)}
    assert {int(i) for i in gradient.abs().sum(1).nonzero()} == used < set(range(9))


class Soft(nn.Module):
    """What soft masks do to a weight; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * torch.sigmoid((weight.square() - 0.1) / 0.05)


def shared_weight() -> tuple[Net, str]:
    """A network in which two nodes read one weight."""
    net = Net()
    x = net.input("x", (2, 6, 4, 4))
    weight = net.weight(net.normal(6, 6, 3, 3), "shared.weight")
    y = net.conv_with(net.op("Relu", net.conv_with(x, weight)), weight)
    return net, y


def test_through_parametrizations() -> None:
    net, y = shared_weight()
    model = net.output(net.op("GlobalAveragePool", net.batch_norm(y))).model()

    def prepare(network: Network) -> None:
        for attribute in network.attribute_of.values():
            parametrize.register_parametrization(network.weights, attribute, Soft())

    network = check_gradients(model, uniform_feeds(model), prepare)
    names = {name for name, _ in network.weights.named_parameters()}
    assert names == {f"parametrizations.{attribute}.original" for attribute in network.attribute_of.values()}


def test_a_pass_computes_each_weight_once() -> None:
    net, y = shared_weight()
    model = net.output(y).model()
    network, soft = Network(model), Soft()
    attribute = network.attribute_of["shared.weight"]
    parametrize.register_parametrization(network.weights, attribute, soft)
    soft.calls = 0
    outputs = network(tensors(uniform_feeds(model)))
    assert soft.calls == 1
    plain = Network(model)
    with torch.no_grad():
        plain.weights.get_parameter(attribute).copy_(soft(plain.weights.get_parameter(attribute)))
    expected = plain(tensors(uniform_feeds(model)))
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)
