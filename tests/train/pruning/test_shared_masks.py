"""Masks that several parameters share: cut out in the end, differentiated once, and never out of date."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.train.pruning.pruning_models import INPUTS, METHODS, perceptron, sgd, train_steps
from ucpe_onnx.train.pruning import PDP, GroupLayer, Member, PrunableLayer, Pruner, Schedule, axis_index
from ucpe_onnx.train.pruning.parametrisation import SoftMask


def slots(model: nn.Sequential) -> list[PrunableLayer]:
    """The two hidden widths of a perceptron, each with its producer, its bias and its consumer; all of it is scored."""
    layers: list[PrunableLayer] = []
    for at in (0, 2):
        producer, consumer = model[at], model[at + 2]
        assert isinstance(producer, nn.Linear)
        assert isinstance(consumer, nn.Linear)
        made = Member(producer, "weight", axis_index(producer.weight.shape, 0))
        read = Member(consumer, "weight", axis_index(consumer.weight.shape, 1))
        bias = Member(producer, "bias", torch.arange(producer.out_features))
        layers.append(GroupLayer(f"width {at}", producer.out_features, [made, read], [made, bias, read]))
    return layers


@pytest.mark.parametrize("method", METHODS)
def test_slots_that_several_parameters_share_can_be_cut_out(method: type[Pruner]) -> None:
    """The middle weight is in two layers, along one axis each."""
    model = perceptron()
    optimiser = sgd(model)
    pruner = method(slots(model), 0.5, schedule=Schedule(10, 0, 0.5))
    train_steps(model, optimiser, pruner, INPUTS, range(10))
    masks = pruner.finish()
    first, second = masks["width 0"], masks["width 2"]
    assert int((~first).sum()) + int((~second).sum()) == 24
    small = nn.Sequential(nn.Linear(16, int(first.sum())), nn.ReLU(), nn.Linear(int(first.sum()), int(second.sum())))
    small.extend([nn.ReLU(), nn.Linear(int(second.sum()), 4)])
    with torch.no_grad():
        for at, (made, read) in {0: (first, None), 2: (second, first), 4: (None, second)}.items():
            weight, bias = model[at].weight, model[at].bias
            weight, bias = (weight, bias) if made is None else (weight[made], bias[made])
            small[at].weight.copy_(weight if read is None else weight[:, read])
            small[at].bias.copy_(bias)
    torch.testing.assert_close(small(INPUTS), model(INPUTS))


def test_a_shared_mask_is_computed_once_in_a_forward_pass_and_never_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    pruner = PDP(slots(model), 0.5, schedule=Schedule(4, 0, 0), tau=1e-2)
    computed = 0
    value = SoftMask.value

    def counted(self: SoftMask) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return value(self)

    monkeypatch.setattr(SoftMask, "value", counted)
    outputs = model(INPUTS)
    assert computed == 2
    with torch.no_grad():
        assert torch.equal(outputs, model(INPUTS))
    (outputs.sum() + model(INPUTS).sum()).backward()  # two passes, one gradient
    for _ in range(2):  # gradients that add up before a step
        model(INPUTS).sum().backward()
    losses = [model(INPUTS).sum() for _ in range(2)]  # and passes before their gradients
    for loss in losses:
        loss.backward()
    with torch.no_grad():
        old = model(INPUTS)
        for parameter in model.parameters():
            parameter.mul_(2)
        assert not torch.allclose(old, model(INPUTS))
    pruner.step()
    changed = model(INPUTS)
    assert not torch.allclose(old, changed)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(INPUTS), changed)


def test_the_gradient_of_a_shared_mask_is_that_of_the_whole_formula() -> None:
    model = perceptron().double()
    layers = slots(model)
    PDP(layers, 0.5, schedule=Schedule(4, 0, 0), tau=1e-2)
    inputs = INPUTS.double()
    model(inputs).square().sum().backward()
    weight = layers[1].masked[0].weight  # the middle one
    gradient = weight.grad
    assert gradient is not None
    for at in ((0, 0), (3, 7), (20, 11)):
        ends = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                weight[at] += change
                ends.append(float(model(inputs).square().sum()))
                weight[at] -= change
        assert float(gradient[at]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_weights_that_modules_share_are_masked_in_all_of_them() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    pruner = PDP(model, 0.5, schedule=Schedule(1, 0, 0), tau=1e-2)
    assert torch.equal(model[0].weight, model[2].weight)
    assert not torch.equal(model[0].weight, model[0].parametrizations.weight.original)
    trained = model[0].weight.detach().clone()
    mask = pruner.finish("soft")["0"]
    assert model[0].weight is model[2].weight
    torch.testing.assert_close(model[0].weight, trained * mask)
