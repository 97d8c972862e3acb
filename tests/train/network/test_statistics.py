"""What differs in training: batch normalisations and dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.builders import Net
from tests.train.network.running import classifier, outputs_of, tensors, uniform_feeds
from ucpe_onnx.errors import ModelError
from ucpe_onnx.train.network import Network

NAMES = ("scale", "bias", "mean", "var")


def normalised(momentum: float | None = 0.8, *, opset: int = 17, shape: tuple[int, ...] = (4, 3, 5, 5)) -> Network:
    net = Net(opset=opset)
    x = net.input("x", shape)
    weights = [net.weight(net.random.uniform(0.5, 1.5, 3), name) for name in NAMES]
    more = {} if momentum is None else {"momentum": momentum}
    return Network(net.output(net.op("BatchNormalization", x, *weights, epsilon=1e-3, **more)).model(), label="a.onnx")


def by_torch(network: Network, momentum: float) -> nn.BatchNorm2d:
    """Torch's module with the same values; its momentum is the share of the new."""
    module = nn.BatchNorm2d(3, eps=1e-3, momentum=1 - momentum)
    values = [torch.from_numpy(network.trained()[name]) for name in NAMES]
    module.load_state_dict(
        dict(zip(("weight", "bias", "running_mean", "running_var"), values, strict=True)), strict=False
    )
    return module


@pytest.mark.parametrize(("momentum", "meant"), [(0.8, 0.8), (0.0, 0.0), (1.0, 1.0), (None, 0.9)])
@pytest.mark.parametrize("opset", [9, 17])
def test_training_is_that_of_torch_but_for_the_biased_variance(momentum: float, meant: float, opset: int) -> None:
    network = normalised(momentum, opset=opset).train()
    module = by_torch(network, meant)
    random = torch.Generator().manual_seed(0)
    count = 4 * 5 * 5
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5, generator=random) * 2 + 1
        before = module.running_var.clone()
        (y,) = network({"x": x}).values()
        torch.testing.assert_close(y, module(x))
        # ONNX counts what is there, torch one less.
        biased = before * meant + (module.running_var - before * meant) * (count - 1) / count
        module.running_var.copy_(biased)
        torch.testing.assert_close(torch.from_numpy(network.trained()["mean"]), module.running_mean)
        torch.testing.assert_close(torch.from_numpy(network.trained()["var"]), biased)
    x = torch.randn(1, 3, 5, 5, generator=random)
    torch.testing.assert_close(network.eval()({"x": x})["t5"], module.eval()(x))


def test_gradients_are_those_of_torch() -> None:
    network = normalised().train()
    module = by_torch(network, 0.8)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    network({"x": x})["t5"].pow(3).sum().backward()
    module(x).pow(3).sum().backward()
    for name, expected in (("scale", module.weight), ("bias", module.bias)):
        torch.testing.assert_close(network.weights.get_parameter(network.attribute_of[name]).grad, expected.grad)


@pytest.mark.parametrize("how", ["eval", "frozen", "named"])
def test_statistics_that_stay(how: str) -> None:
    model = classifier()
    means = [name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]]
    network = Network(model, frozen=means if how == "named" else ())
    reference = outputs_of(network, uniform_feeds(model))
    before = network.trained()
    network.train(how != "eval")
    network.freeze_statistics = how == "frozen"
    (y,) = network(tensors(uniform_feeds(model))).values()
    assert np.array_equal(y.detach().numpy(), reference[0])
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in network.weights.parameters())
    after = network.trained()
    assert set(after) == set(before) == set(network.attribute_of) | (set() if how == "named" else set(means))
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_statistics_move_otherwise() -> None:
    network = Network(classifier())
    before = network.trained()
    network.train()(tensors(uniform_feeds(classifier())))
    changed = {name for name, value in network.trained().items() if not np.array_equal(value, before[name])}
    assert changed == set(network.statistic_of)
    assert len(changed) == 4


def test_shared_statistics_stay() -> None:
    """Files share equal constants: two normalisations, or a mean that is a bias too, must not update them."""
    net = Net()
    x = net.input("x", (2, 3, 4, 4))
    scale, zeros, ones = net.weight(np.full(3, 1.5), "s"), net.weight(np.zeros(3), "z"), net.weight(np.ones(3), "o")
    alone = [net.weight(np.ones(3), name) for name in ("bias", "mean", "var")]
    y = net.op("BatchNormalization", x, scale, zeros, zeros, ones)
    y = net.op("BatchNormalization", y, scale, *alone)
    model = net.output(y).model()
    network = Network(model).train()
    assert set(network.attribute_of) == {"s", "bias"}
    assert set(network.statistic_of) == {"mean", "var"}
    network(tensors(uniform_feeds(model)))
    assert not np.array_equal(network.trained()["mean"], np.ones(3))


def test_one_value_has_no_variance() -> None:
    network = normalised(shape=(1, 3, 1, 1)).train()
    with pytest.raises(ModelError, match=r"^a\.onnx: node 'BatchNormalization_0' gets one value .* larger batches"):
        network({"x": torch.ones(1, 3, 1, 1)})
    network.freeze_statistics = True
    assert network({"x": torch.ones(1, 3, 1, 1)})["t5"].shape == (1, 3, 1, 1)


@pytest.mark.parametrize("as_input", [False, True])
def test_dropout(as_input: bool) -> None:
    net = Net(opset=13 if as_input else 11)
    x = net.input("x", (50, 100))
    given, options = ([x, net.constant(0.2)], {}) if as_input else ([x], {"ratio": 0.2})
    y, mask = net.ops("Dropout", *given, outputs=2, **options)
    model = net.output(y, mask).model()
    network = Network(model)
    ones = {"x": torch.ones(50, 100)}
    torch.manual_seed(0)
    kept, mask = network.train()(ones).values()
    assert torch.equal(kept, mask * 1.25)
    assert 0.75 < mask.float().mean() < 0.85
    kept, mask = network.eval()(ones).values()
    assert torch.equal(kept, ones["x"]) and mask.all()
