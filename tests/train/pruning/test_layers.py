"""What belongs to a group, what is scored, and what a mask does to a network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.train.pruning.pruning_models import Everything, few, perceptron, random_weights
from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning import (
    BlockLayer,
    GroupLayer,
    Member,
    PrunableLayer,
    WeightLayer,
    axis_index,
    channel_index,
    layers_of,
)
from ucpe_onnx.train.pruning.soft_mask import soft_mask


class Holder(nn.Module):
    """Parameters without a meaning."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CONVOLUTIONS = [
    lambda: nn.Conv2d(6, 8, 3, bias=False),
    lambda: nn.Conv2d(6, 8, 3, groups=2, bias=False),
    lambda: nn.Conv1d(4, 8, 2, groups=4, bias=False),
    lambda: nn.ConvTranspose2d(6, 8, 3, bias=False),
    lambda: nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False),
    lambda: nn.Linear(5, 7, bias=False),
]


@pytest.mark.parametrize("build", CONVOLUTIONS)
@pytest.mark.parametrize("granularity", ["channel", "filter"])
def test_a_group_is_a_channel_that_the_module_reads_or_makes(build: object, granularity: str) -> None:
    torch.manual_seed(0)
    module = build()  # type: ignore[operator]
    if granularity == "channel" and getattr(module, "groups", 1) == getattr(module, "in_channels", 0):
        with pytest.raises(UsageError, match="to prune"):  # depthwise: it carries channels along
            layers_of(module, granularity)
        return
    (layer,) = layers_of(module, granularity, exclude_ends=False)
    keep = torch.rand(layer.shape) < 0.5
    shape = (2, 5) if isinstance(module, nn.Linear) else (2, module.in_channels, *[7] * len(module.kernel_size))
    inputs = torch.randn(shape)
    across = (1, -1, *[1] * (len(shape) - 2))
    wanted = module(inputs * keep.view(across)) if granularity == "channel" else module(inputs) * keep.view(across)
    with torch.no_grad():
        module.weight *= layer.spread(keep.float(), 0)
    torch.testing.assert_close(module(inputs), wanted)
    assert int(layer.sizes().sum()) == module.weight.numel()


@few
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 9))
def test_magnitudes_are_roots_of_means_over_all_scored_weights(
    blocks: int, rows: int, columns: int, shuffled: bool, seed: int
) -> None:
    one, other = random(blocks * rows, columns, 3, seed=seed), random(7, blocks * columns, seed=seed + 1)
    groups = blocks * columns
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(seed)) if shuffled else None
    holder = Holder(one=one, other=other)
    members = [
        Member(holder, "one", channel_index(one.shape, 1, blocks, order)),
        Member(holder, "other", axis_index(other.shape, 1, order)),
    ]
    layer = GroupLayer("slots", groups, members)
    places = torch.arange(groups) if order is None else order
    for channel in range(groups):
        block, column = divmod(channel, columns)
        mine = one[block * rows : (block + 1) * rows, column].flatten()
        wanted = torch.cat([mine, other[:, channel]]).square().mean().sqrt()
        torch.testing.assert_close(layer.magnitudes()[places[channel]], wanted)
    assert layer.sizes().tolist() == [3 * rows + 7] * groups


@few
@given(st.integers(0, 20), st.floats(0.05, 2))
def test_the_gradient_of_a_group(seed: int, tau: float) -> None:
    """m G_i + 2 / (n tau) m (1 - m) (sum of G_j w_j over the group) w_i; groups are columns here."""
    weight = random(4, 3, seed=seed).requires_grad_()
    holder = Holder(weight=weight.detach())
    layer = GroupLayer("columns", 3, [Member(holder, "weight", axis_index((4, 3), 1))])
    squared = layer.threshold(1)
    m = soft_mask(layer.squares(), squared, tau)
    arriving = random(4, 3, seed=seed + 100)
    (layer.spread(m, 0) * holder.weight).backward(arriving)
    w = weight.detach()
    m = m.detach()
    wanted = m * arriving + 2 / (4 * tau) * m * (1 - m) * (arriving * w).sum(0) * w
    torch.testing.assert_close(holder.weight.grad, wanted)
    assert torch.autograd.gradcheck(lambda w: soft_mask(w.square().mean(0), squared, tau) * w, weight, atol=1e-5)


def test_scored_and_masked_members_may_differ() -> None:
    """A slot's producer is scored by one parameter, and others, biases too, are masked with it."""
    holder = Holder(scored=random(3, 4), bias=random(3), reader=random(2, 6))
    reads = torch.tensor([-1, 0, 1, 2, -1, -1])  # the other channels come from somewhere else
    layer = GroupLayer(
        "slots",
        3,
        [Member(holder, "scored", axis_index((3, 4), 0))],
        [Member(holder, "bias", torch.arange(3)), Member(holder, "reader", axis_index((2, 6), 1, reads))],
    )
    mask = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(layer.spread(mask, 0), mask)
    torch.testing.assert_close(layer.spread(mask, 1), torch.tensor([[1, 0.1, 0.2, 0.3, 1, 1]]))
    torch.testing.assert_close(layer.magnitudes(), holder.scored.square().mean(1).sqrt().detach())
    assert layer.sizes().tolist() == [3, 3, 3]


@pytest.mark.parametrize("shape", [(5, 12), (3, 7), (4, 5, 3, 3), (2, 3, 1, 1), (1, 2)])
@pytest.mark.parametrize(("kept", "block"), [(2, 4), (1, 2), (1, 4), (3, 5), (1, 8)])
@pytest.mark.parametrize("axis", [None, 1, 0, -1])
def test_n_of_every_m_weights_stay(shape: tuple[int, ...], kept: int, block: int, axis: int | None) -> None:
    weight = random(*shape)
    layer = BlockLayer("blocks", [Member(Holder(weight=weight), "weight")], kept, block, axis=axis)
    keep = layer.keep(block - kept)
    if axis is None:
        rows, values = keep.reshape(shape[0], -1), weight.abs().reshape(shape[0], -1)
    else:
        rows, values = (t.movedim(axis, -1).reshape(-1, shape[axis]) for t in (keep, weight.abs()))
    for row, value in zip(rows, values, strict=True):
        for mine, size in zip(row.split(block), value.split(block), strict=True):
            assert int(mine.sum()) == -(-len(mine) * kept // block)
            if 0 < int(mine.sum()) < len(mine):
                assert size[~mine].max() <= size[mine].min()
    below = soft_mask(layer.squares(), layer.threshold(block - kept), 1e-4) < 0.5
    assert torch.equal(below, ~keep)
    assert bool((soft_mask(layer.squares(), layer.threshold(0), 1e-4) == 1).all())
    assert bool(layer.keep(0).all())


def test_blocks_of_a_transposed_convolution_run_along_what_an_output_reads() -> None:
    weight = random(4, 2, 1, 1)  # inputs, outputs
    (layer,) = layers_of(nn.Sequential(nn.ConvTranspose2d(4, 2, 1)), "2:4")
    layer.scored[0].module.weight.data.copy_(weight)  # type: ignore[operator, union-attr]
    assert layer.keep(2).sum((0, 2, 3)).tolist() == [2, 2]


def test_n_to_m_ramps_to_the_nearest_number() -> None:
    layer = BlockLayer("blocks", [Member(Holder(weight=random(2, 4)), "weight")], 2, 4)
    assert [layer.dropped_at(2, share) for share in (0, 0.2, 0.3, 0.7, 0.8, 1)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["weights", "groups"])
def test_frozen_parts_stay_and_do_not_count(kind: str) -> None:
    weight = random(4, 6)
    weight[:, :3] = 0.0
    frozen = torch.arange(6) < 2
    member = Member(Holder(weight=weight), "weight", axis_index((4, 6), 1))
    layer: PrunableLayer = GroupLayer("g", 6, [member], frozen=frozen)
    if kind == "weights":
        layer = WeightLayer("w", [member], frozen.expand(4, 6))
    scale = 4 if kind == "weights" else 1
    assert layer.prunable == 4 * scale
    keep = layer.keep(2 * scale)
    assert int((~keep).sum()) == 2 * scale
    assert bool(keep[layer.frozen].all())
    assert not bool(keep.view(-1, 6)[:, 2].any())
    mask = layer.unfreeze(soft_mask(layer.squares(), layer.threshold(2 * scale), 1e-4))
    assert bool((mask[layer.frozen] == 1).all())


def test_shared_weights_are_one_layer_with_several_places() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9)
            self.head.weight = self.embedding.weight
            self.other = nn.Linear(4, 4)

    for granularity in ("unstructured", "2:4", "filter"):
        layers = layers_of(Tied(), granularity, exclude_ends=False)
        assert [layer.name for layer in layers] == ["head", "other"]
        assert [type(member.module) for member in layers[0].masked] == [nn.Embedding, nn.Linear]


def test_layers_of_a_model() -> None:
    model = Everything()
    names = ["stem", "grouped", "depthwise", "up", "head"]
    assert [layer.name for layer in layers_of(model)] == names
    assert [layer.name for layer in layers_of(model, exclude=["up", "st*"])] == ["grouped", "depthwise", "head"]
    assert [layer.name for layer in layers_of(model, exclude_ends=True)] == names[1:-1]
    assert [layer.name for layer in layers_of(model, "channel")] == ["grouped", "up", "head"]
    assert [layer.name for layer in layers_of(model, "filter")] == names[:-1]
    assert [layer.shape for layer in layers_of(model, "channel")] == [(8,), (12,), (6,)]
    assert [layer.shape for layer in layers_of(model, "filter")] == [(8,), (12,), (12,), (6,)]


def test_half_precision_is_scored_in_single() -> None:
    model = perceptron().half()
    random_weights(model, 1)
    with torch.no_grad():
        model[0].weight *= 1e-3  # type: ignore[operator]
    layer = layers_of(model)[0]
    assert layer.squares().dtype == torch.float32
    assert float(layer.threshold(100)) > 0


@few
@given(st.integers(1, 6), st.integers(0, 6))
def test_nothing_is_infinite_or_no_number_when_all_weights_are_0(groups: int, dropped: int) -> None:
    holder = Holder(weight=torch.zeros(3, groups), reader=torch.ones(2, groups))
    index = torch.arange(groups)
    layer = GroupLayer("g", groups, [Member(holder, "weight", index)], [Member(holder, "reader", index)])
    dropped = min(dropped, groups)
    mask = soft_mask(layer.squares(), layer.threshold(dropped), 1e-4)
    (layer.spread(mask, 0) * holder.reader).sum().backward()
    assert bool(torch.isfinite(mask).all())
    assert bool((holder.weight.grad == 0).all())
    assert int((~layer.keep(dropped)).sum()) == dropped


@pytest.mark.parametrize(
    ("index", "frozen", "message"),
    [
        (None, None, "index of integers"),
        (torch.zeros(3), None, "index of integers"),
        (torch.arange(4), None, "does not broadcast"),
        (torch.zeros(1, 1, 3, dtype=torch.long), None, "does not broadcast"),
        (torch.tensor([0, 1, 3]), None, "numbers from 0 to 2"),
        (torch.tensor([0, -2, 1]), None, "numbers from 0 to 2"),
        (torch.tensor([0, 1, 1]), None, "no scored weight belongs to group 2"),
        (torch.arange(3), torch.zeros(4, dtype=torch.bool) | True, "frozen has shape"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index: Tensor | None, frozen: Tensor | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GroupLayer("g", 3, [Member(Holder(weight=random(2, 3)), "weight", index)], frozen=frozen)


def test_a_layer_needs_something_to_score() -> None:
    masked = Member(Holder(weight=random(2, 3)), "weight", torch.arange(3))
    with pytest.raises(UsageError, match="nothing that its weights are scored by"):
        GroupLayer("g", 3, [], [masked])


def test_a_frozen_group_needs_no_weights() -> None:
    member = Member(Holder(weight=random(2, 3)), "weight", torch.tensor([0, 1, 1]))
    layer = GroupLayer("g", 3, [member], frozen=torch.tensor([False, False, True]))
    assert layer.squares()[2] == 0


@pytest.mark.parametrize(("kept", "block"), [(4, 4), (0, 2), (3, 2)])
def test_patterns_without_sense_are_refused(kept: int, block: int) -> None:
    with pytest.raises(UsageError, match="no sparsity"):
        BlockLayer("b", [Member(Holder(weight=random(2, 3)), "weight")], kept, block)


def test_models_that_can_not_be_pruned_are_refused() -> None:
    with pytest.raises(UsageError, match="granularity is"):
        layers_of(perceptron(), "rows")
    with pytest.raises(UsageError, match="no sparsity"):
        layers_of(perceptron(), "4:4")
    with pytest.raises(UsageError, match="no blocks"):
        layers_of(perceptron(), "2:4", block_axis=2)
    with pytest.raises(UsageError, match="to prune"):
        layers_of(nn.ReLU())
    with pytest.raises(UsageError, match="no module conv"):
        layers_of(perceptron(), exclude=["conv*"])
    with pytest.raises(UsageError, match="run the model once"):
        layers_of(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(UsageError, match="computed from something else"):
        layers_of(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))))
