"""Pruning in a training loop: what training sees, what is left at the end, and continuing after an interruption."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.train.pruning.pruning_models import (
    GRANULARITIES,
    IMAGES,
    INPUTS,
    METHODS,
    Everything,
    few,
    make,
    perceptron,
    random_weights,
    sgd,
    train_steps,
)
from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning import (
    PDP,
    Allotment,
    GradualMagnitude,
    OneShot,
    Pruner,
    Schedule,
    layers_of,
)
from ucpe_onnx.train.pruning.parametrisation import SoftMask


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_target_is_met_exactly_and_zeros_are_where_the_masks_say(method: type[Pruner], granularity: str) -> None:
    model = Everything()
    layers = {layer.name: layer for layer in layers_of(model, granularity)}
    pruner = make(method, model, granularity, steps=12)
    train_steps(model, sgd(model), pruner, IMAGES, range(12))
    masks = pruner.finish()
    assert not any("parametrizations" in name for name in model.state_dict())
    for name, layer in layers.items():
        weight = layer.masked[0].weight
        assert torch.equal(weight == 0, ~layer.spread(masks[name].float(), 0).expand_as(weight).bool())
        assert bool(masks[name].any())
    if ":" in granularity:
        kept, block = map(int, granularity.split(":"))
        for mask in masks.values():
            rows = (mask.movedim(1, 0) if mask.shape == (12, 2, 2, 2) else mask).flatten(1)
            for part in rows.split(block, 1):
                assert bool((part.sum(1) == -(-part.shape[1] * kept // block)).all())
    else:
        total = sum(layer.prunable for layer in layers.values())
        assert sum(int((~mask).sum()) for mask in masks.values()) == math.floor(0.6 * total)
    assert {name: one.dropped for name, one in pruner.sparsity().items()} == {
        name: int((~mask).sum()) for name, mask in masks.items()
    }


@few
@given(
    st.sampled_from(METHODS),
    st.sampled_from(["unstructured", "channel", "filter"]),
    st.floats(0, 0.99),
    st.integers(0, 6),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)
def test_any_ratio_and_shape_and_number_of_steps(
    method: type[Pruner], granularity: str, ratio: float, steps: int, sizes: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, sizes[0]), nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2]))
    layers = layers_of(model, granularity)
    limit = sum(layer.prunable - 1 for layer in layers)
    pruner = method(layers, Allotment(ratio, most=1.0), steps=6)
    for _ in range(steps):
        pruner.step()
    dropped = sum(int((~mask).sum()) for mask in pruner.finish().values())
    assert dropped == min(limit, math.floor(ratio * sum(layer.prunable for layer in layers) + 1e-6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("before", [True, False])
def test_an_optimiser_may_be_made_before_or_after(method: type[Pruner], before: bool) -> None:
    model = perceptron()
    parameters = {id(parameter) for parameter in model.parameters()}
    optimiser = sgd(model) if before else None
    pruner = method(model, 0.5, schedule=Schedule(10, 0, 0.5))
    optimiser = optimiser or sgd(model)
    assert {id(parameter) for group in optimiser.param_groups for parameter in group["params"]} == parameters
    old = [parameter.detach().clone() for parameter in model.parameters()]
    train_steps(model, optimiser, pruner, INPUTS, range(10))
    assert all(not torch.equal(one, other) for one, other in zip(old, model.parameters(), strict=True))
    pruner.finish()
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("method", [PDP, GradualMagnitude])
def test_the_warm_up_is_ordinary_training(method: type[Pruner]) -> None:
    pruned, plain = perceptron(), perceptron()
    pruner = method(pruned, 0.5, schedule=Schedule(20, 0.5, 0.2))
    train_steps(pruned, sgd(pruned), pruner, INPUTS, range(10))
    train_steps(plain, sgd(plain), None, INPUTS, range(10))
    assert torch.equal(pruned(INPUTS), plain(INPUTS))
    assert all(one.dropped == one.undecided == 0 for one in pruner.sparsity().values())


def test_training_sees_the_mask_times_the_weight() -> None:
    model = perceptron()
    layers = layers_of(model)
    PDP(layers, 0.5, schedule=Schedule(1, 0, 0), tau=1e-3)
    weight = layers[1].scored[0].weight
    ordered = weight.detach().abs().flatten().sort().values
    m = model[2].weight / weight
    dropped = int((m < 0.5).sum())
    root = (ordered[dropped - 1] + ordered[dropped]) / 2
    torch.testing.assert_close(m, torch.sigmoid((weight.square() - root.square()) / 1e-3))


def comeback(method: type[Pruner], **options: object) -> bool:
    """Whether a weight that starts below the threshold, and that the loss wants to be large, is kept in the end."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.9, 0.8, 0.7, 0.6]]))
    pruner = method(model, 0.5, schedule=Schedule(200, 0, 0), **options)
    assert pruner.masks()["0"].tolist() == [[True, True, False, False]]
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (model(torch.eye(4)).flatten() - torch.tensor([1.0, 0, 0, 1.0])).square().sum().backward()
        optimiser.step()
        pruner.step()
    return bool(pruner.finish()["0"][0, 3])


def test_a_dropped_weight_can_come_back() -> None:
    assert comeback(PDP, tau=0.3)
    assert comeback(PDP, tau_mode="relative", tau=0.5)
    assert comeback(PDP, tau=0.3, detach=True)


def test_with_hard_masks_it_can_not() -> None:
    assert not comeback(OneShot)
    assert not comeback(GradualMagnitude)


@pytest.mark.parametrize("method", [GradualMagnitude, OneShot])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_under_a_hard_mask_weights_get_no_gradient(method: type[Pruner], granularity: str) -> None:
    model = Everything()
    layers = layers_of(model, granularity)
    pruner = method(layers, None if ":" in granularity else 0.6, schedule=Schedule(2, 0, 0))
    model(IMAGES).square().sum().backward()
    for layer in layers:
        gone = ~layer.spread(pruner.masks()[layer.name].float(), 0).bool()
        gradient = layer.masked[0].weight.grad
        assert gradient is not None
        assert bool((gradient[gone.expand_as(gradient)] == 0).all())
        assert bool((gradient != 0).any())


def test_the_gradient_goes_through_the_mask_unless_it_is_detached() -> None:
    gradients = []
    for detach in (False, True):
        model = perceptron()
        PDP(model, 0.5, schedule=Schedule(1, 0, 0), tau=1e-3, detach=detach)
        model(INPUTS).square().sum().backward()
        gradients.append(model[2].parametrizations.weight.original.grad)  # type: ignore[union-attr]
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_continues_exactly_after_an_interruption(method: type[Pruner], granularity: str) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        model = Everything()
        return model, torch.optim.Adam(model.parameters(), 0.01), make(method, model, granularity, 12, every=2)

    whole, optimiser, pruner = start()
    train_steps(whole, optimiser, pruner, IMAGES, range(12))
    pruner.finish()
    for stop in (4, 11):
        model, optimiser, pruner = start()
        train_steps(model, optimiser, pruner, IMAGES, range(stop))
        file = io.BytesIO()
        torch.save([model.state_dict(), optimiser.state_dict(), pruner.state_dict()], file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        model, optimiser, pruner = start()
        random_weights(model, 1)
        for part, state in zip((model, optimiser, pruner), states, strict=True):
            part.load_state_dict(state)
        train_steps(model, optimiser, pruner, IMAGES, range(stop, 12))
        pruner.finish()
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (stop, name)


def test_the_state_of_other_layers_is_refused() -> None:
    state = PDP(perceptron(), 0.5, steps=5).state_dict()
    with pytest.raises(UsageError, match="other layers"):
        PDP(Everything(), 0.5, steps=5).load_state_dict(state)


def test_finishing_keeps_weights_or_what_was_trained() -> None:
    for keep in ("weight", "soft"):
        model = perceptron()
        pruner = PDP(model, 0.5, schedule=Schedule(1, 0, 0), tau=1e-3)
        trained = model[2].weight.detach().clone()
        weight = model[2].parametrizations.weight.original.detach().clone()  # type: ignore[union-attr]
        mask = pruner.finish(keep)["2"]
        torch.testing.assert_close(model[2].weight, (weight if keep == "weight" else trained) * mask)
    with pytest.raises(UsageError, match="finished"):
        pruner.step()
    with pytest.raises(UsageError, match="finished"):
        pruner.finish()
    assert all(one.share > 0 for one in pruner.sparsity().values())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_settle_so_that_what_is_left_is_trained(granularity: str) -> None:
    model = Everything()
    optimiser = sgd(model)
    pruner = make(PDP, model, granularity, 0, schedule=Schedule(20, 0, 0.2), tau_mode="relative")
    train_steps(model, optimiser, pruner, IMAGES, range(11))
    assert any(mask.float().unique().numel() > 2 for mask in soft_masks(pruner))
    train_steps(model, optimiser, pruner, IMAGES, range(11, 12))
    masks = pruner.masks()
    assert all(mask.float().unique().numel() <= 2 for mask in soft_masks(pruner))
    assert any(one.undecided > 0 for one in pruner.sparsity().values())
    train_steps(model, optimiser, pruner, IMAGES, range(12, 20))
    model.eval()
    outputs = model(IMAGES)
    assert all(torch.equal(mask, masks[name]) for name, mask in pruner.finish().items())
    torch.testing.assert_close(model(IMAGES), outputs)


def test_masks_need_not_settle() -> None:
    model = perceptron()
    pruner = PDP(model, 0.5, schedule=Schedule(20, 0, 0.2), tau_mode="relative", settle=1.0)
    train_steps(model, sgd(model), pruner, INPUTS, range(20))
    assert any(mask.unique().numel() > 2 for mask in soft_masks(pruner))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_are_decided_by_the_time_they_settle(granularity: str) -> None:
    undecided = {}
    for cooling in (1.0, 0.01):
        model = Everything()
        schedule = Schedule(20, 0.1, 0.2)
        pruner = make(PDP, model, granularity, 0, schedule=schedule, tau=0.1, tau_mode="relative", cooling=cooling)
        train_steps(model, sgd(model), pruner, IMAGES, range(20))
        undecided[cooling] = sum(one.undecided for one in pruner.sparsity().values())
        temperatures = [pruner.temperature_at(step, pruner.layers[0]) for step in range(21)]  # type: ignore[attr-defined]
        assert temperatures[:3] == [0.1] * 3 and temperatures[13:] == pytest.approx([0.1 * cooling] * 8)
        assert temperatures == sorted(temperatures, reverse=True)
    assert undecided[0.01] < 0.5 * undecided[1.0]


def soft_masks(pruner: Pruner) -> list[torch.Tensor]:
    masks = []
    for mask in pruner._masks:
        assert isinstance(mask, SoftMask)
        masks.append(mask.value().detach())
    return masks


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("tau_mode", ["absolute", "relative"])
def test_a_network_of_zeros_stays_finite(granularity: str, tau_mode: str) -> None:
    model = Everything()
    with torch.no_grad():
        for name in ("grouped", "up"):
            getattr(model, name).weight.zero_()
    pruner = make(PDP, model, granularity, 8, tau_mode=tau_mode)
    train_steps(model, sgd(model), pruner, IMAGES, range(8))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert all(bool(mask.any()) for mask in pruner.finish().values())


def test_thresholds_can_rest_for_some_steps() -> None:
    model = perceptron()
    pruner = PDP(model, 0.5, schedule=Schedule(100, 0, 0.95), every=10)
    seen = []
    for _ in range(100):
        pruner.step()
        seen.append(sum(one.dropped for one in pruner.sparsity().values()))
    changes = [step for step in range(1, 100) if seen[step] != seen[step - 1]]
    assert changes == [9 + 10 * at for at in range(9)] + [94]  # the full ratio does not wait
    assert seen[-1] == sum(pruner.counts.values())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0, "steps": 5}, "from 0 to less than 1"),
        ({"steps": 5}, "which share"),
        ({"ratio": 0.5}, "how many steps"),
        ({"ratio": 0.5, "steps": 5, "granularity": "2:4"}, "leave the ratio out"),
        ({"ratio": 0.5, "steps": 5, "granularity": "rows"}, "granularity is"),
        ({"ratio": 0.5, "steps": 5, "every": 0}, "every 0 steps"),
        ({"ratio": 0.5, "steps": 5, "tau": 0.0}, "temperature is positive"),
        ({"ratio": 0.5, "steps": 5, "tau_mode": "log"}, "absolute or relative"),
        ({"ratio": 0.5, "steps": 5, "cooling": 0.0}, "cooling is the share"),
        ({"ratio": 0.5, "steps": 5, "settle": 1.5}, "settle is a share"),
        ({"ratio": 0.5, "steps": 5, "exclude": ["*"]}, "to prune"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_changed(options: dict[str, object], message: str) -> None:
    model = perceptron()
    with pytest.raises(UsageError, match=message):
        PDP(model, **options)  # type: ignore[arg-type]
    assert list(model.state_dict()) == list(perceptron().state_dict())


def test_layers_that_can_not_be_pruned_are_refused() -> None:
    model = perceptron()
    with pytest.raises(UsageError, match="no layer"):
        PDP([], 0.5, steps=5)
    with pytest.raises(UsageError, match="two layers are called 0"):
        PDP([*layers_of(model), *layers_of(model)], 0.5, steps=5)
    with pytest.raises(UsageError, match="keep is"):
        PDP(perceptron(), 0.5, steps=5).finish("hard")
    layers = layers_of(model)
    PDP(model, 0.5, steps=5, exclude=["0", "2"])
    with pytest.raises(UsageError, match="parametrized already"):
        PDP(layers, 0.5, steps=5)
    assert not nn.utils.parametrize.is_parametrized(model[0])
