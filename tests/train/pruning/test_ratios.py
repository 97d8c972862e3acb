"""Numbers that go from each layer: their sum is the target, and no layer loses more than it may."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.train.pruning.pruning_models import few
from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning import (
    Allotment,
    BlockLayer,
    GroupLayer,
    Member,
    PrunableLayer,
    WeightLayer,
    allot,
    axis_index,
)


def weights_layer(name: str, values: Tensor) -> WeightLayer:
    module = nn.Module()
    module.weight = nn.Parameter(values)
    return WeightLayer(name, [Member(module, "weight")])


def groups_layer(name: str, values: Tensor, frozen: Tensor | None = None) -> GroupLayer:
    """Groups are columns."""
    module = nn.Module()
    module.weight = nn.Parameter(values)
    return GroupLayer(name, values.shape[1], [Member(module, "weight", axis_index(values.shape, 1))], frozen=frozen)


@st.composite
def several(draw: st.DrawFn) -> list[PrunableLayer]:
    layers: list[PrunableLayer] = []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    for at in range(draw(st.integers(1, 5))):
        rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 12))
        values = 10 ** draw(st.floats(-2, 1)) * torch.randn(rows, columns, generator=generator)
        if draw(st.booleans()):
            values = (2 * values).round()  # ties
        if draw(st.booleans()):
            layers.append(weights_layer(f"layer {at}", values))
        else:
            frozen = torch.rand(columns, generator=generator) < draw(st.sampled_from([0, 0.3]))
            layers.append(groups_layer(f"layer {at}", values, frozen))
    return layers


ratios = st.one_of(st.floats(0, 0.99), st.sampled_from([0.1, 0.29, 0.5, 0.9]))


@few
@given(several(), ratios, st.sampled_from(["global", "local"]), st.sampled_from(["magnitude", "lamp"]))
def test_the_sum_is_the_target_and_limits_hold(
    layers: list[PrunableLayer], ratio: float, scope: str, rank: str
) -> None:
    counts = allot(layers, Allotment(ratio, scope=scope, rank=rank, most=1.0))
    limits = [
        max(0, min(layer.prunable, layer.prunable - 1 + (0 if layer.frozen is None else int(layer.frozen.sum()))))
        for layer in layers
    ]
    target = math.floor(ratio * sum(layer.prunable for layer in layers) + 1e-6)
    assert sum(counts.values()) == min(target, sum(limits))
    for layer, limit in zip(layers, limits, strict=True):
        assert 0 <= counts[layer.name] <= limit
        assert bool(layer.keep(counts[layer.name]).any())
        if scope == "local" and target <= sum(limits):
            share = ratio * layer.prunable
            assert counts[layer.name] <= math.ceil(share - 1e-6) or counts[layer.name] - share < len(layers)


@few
@given(several(), ratios)
def test_a_share_of_weights_is_met_within_one_group(layers: list[PrunableLayer], ratio: float) -> None:
    counts = allot(layers, Allotment(ratio, by="weights", most=1.0))
    sizes = [layer.candidates(layer.sizes().expand(layer.shape)) for layer in layers]
    target = ratio * sum(int(size.sum()) for size in sizes)
    gone = sum(counts[layer.name] * int(size[0]) for layer, size in zip(layers, sizes, strict=True) if len(size))
    assert gone <= target + 1e-5
    limited = any(counts[layer.name] >= len(size) - 1 for layer, size in zip(layers, sizes, strict=True))
    assert limited or gone > target - max(int(size.max()) for size in sizes if len(size)) - 1e-5


def test_global_ranking_takes_the_smallest_of_all() -> None:
    layers = [weights_layer("small", torch.tensor([0.1, 0.2, 0.3, 5])), weights_layer("large", torch.arange(1.0, 7))]
    assert allot(layers, Allotment(0.4)) == {"small": 3, "large": 1}
    assert allot(layers, Allotment(0.4, scope="local")) == {"small": 2, "large": 2}


def test_lamp_keeps_layers_of_small_weights_alive() -> None:
    small, large = torch.arange(1.0, 11) / 1000, torch.arange(1.0, 11)
    counts = allot([weights_layer("small", small), weights_layer("large", large)], Allotment(0.5, rank="lamp"))
    assert counts == {"small": 5, "large": 5}


def test_what_a_layer_may_not_lose_others_lose() -> None:
    layers = [weights_layer("small", torch.arange(1.0, 11) / 1000), weights_layer("large", torch.arange(1.0, 11))]
    assert allot(layers, Allotment(0.5)) == {"small": 9, "large": 1}
    assert allot(layers, Allotment(0.5, most=0.7)) == {"small": 7, "large": 3}
    assert allot(layers, Allotment(0.5, min_keep=4)) == {"small": 6, "large": 4}
    assert allot(layers, Allotment(0.4, min_keep=9)) == {"small": 1, "large": 1}  # no more may go


def test_a_high_ratio_raises_the_default_limit() -> None:
    layers = [weights_layer("one", torch.arange(1.0, 1001)), weights_layer("other", torch.arange(1.0, 1001))]
    assert sum(allot(layers, Allotment(0.98)).values()) == 1960


def test_a_layer_that_keeps_something_frozen_may_lose_the_rest() -> None:
    layers: list[PrunableLayer] = [groups_layer("one", torch.ones(2, 3) / 100, torch.tensor([True, False, False]))]
    layers.append(groups_layer("other", torch.ones(2, 8)))
    assert allot(layers, Allotment(0.2, most=1.0)) == {"one": 2, "other": 0}


def test_layers_with_ratios_of_their_own() -> None:
    layers: list[PrunableLayer] = [weights_layer(name, torch.arange(1.0, 11)) for name in "abc"]
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 4))
    layers.append(BlockLayer("blocks", [Member(module, "weight")], 1, 2))
    assert allot(layers, Allotment(0.5, ratios={"a": 0.29})) == {"a": 2, "b": 5, "c": 5, "blocks": 1}
    assert allot(layers, Allotment(0.5, ratios={"a": 0.3, "b": 0.2, "c": 0})) == {"a": 3, "b": 2, "c": 0, "blocks": 1}


def test_rounding_does_not_mind_floating_point() -> None:
    assert allot([weights_layer("one", torch.arange(1.0, 101))], Allotment(0.29)) == {"one": 29}


@few
@given(several(), st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_larger_ratio_takes_no_less_of_any_layer(layers: list[PrunableLayer], one: float, other: float) -> None:
    assume(one <= other)
    less, more = (allot(layers, Allotment(ratio, most=1.0)) for ratio in (one, other))
    assert all(less[name] <= more[name] for name in less)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "from 0 to less than 1"),
        ({"ratio": -0.1}, "from 0 to less than 1"),
        ({"ratio": math.nan}, "from 0 to less than 1"),
        ({"ratio": 0.5, "ratios": {"a": 1.5}}, "from 0 to less than 1"),
        ({"ratio": 0.5, "scope": "all"}, "scope is global or local"),
        ({"ratio": 0.5, "by": "rows"}, "by is groups or weights"),
        ({"ratio": 0.5, "rank": "l1"}, "rank is magnitude or lamp"),
        ({"ratio": 0.5, "most": 0.4}, "can't go"),
        ({"ratio": 0.5, "min_keep": 0}, "at least 1"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Allotment(**options)  # type: ignore[arg-type]


def test_what_does_not_fit_the_layers_is_refused() -> None:
    layers = [weights_layer("a", torch.ones(3))]
    with pytest.raises(UsageError, match="no layer b"):
        allot(layers, Allotment(0.5, ratios={"b": 0.5}))
    with pytest.raises(UsageError, match="layer a needs a ratio"):
        allot(layers, None)
