"""Groups of weights that stay or go together: channels, filters, and slots that several parameters share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.layers import Member, PrunableLayer, exact


class GroupLayer(PrunableLayer):
    """Groups of weights, numbered from 0, that any number of parameters share.

    The magnitude of a group is the root of the mean of w² over all of its scored weights, so that a temperature means
    the same as for single weights. A weight may lie in one layer along one axis and in another along another: its
    masks are multiplied.

    Args:
        name: of the layer.
        groups: how many there are.
        scored: parameters that the magnitudes come from, with the group of each weight in their `Member.index`.
        masked: parameters that are masked; the scored ones if None.
        frozen: True for groups that always stay, shape (groups,).

    Raises:
        UsageError: an index does not fit its parameter or the number of groups, or no scored weight belongs to a group
            that is not frozen.
    """

    def __init__(
        self,
        name: str,
        groups: int,
        scored: Sequence[Member],
        masked: Sequence[Member] | None = None,
        frozen: Tensor | None = None,
    ) -> None:
        masked = scored if masked is None else masked
        self._shape = (groups,)
        self._scored = [_Index(name, groups, member) for member in scored]
        self._masked = [_Index(name, groups, member) for member in masked]
        super().__init__(name, scored, masked, frozen)
        self._weights = sum((index.weights for index in self._scored), torch.zeros(groups, dtype=torch.long))
        empty = self._weights == 0
        if self.frozen is not None:
            empty &= ~self.frozen.cpu()
        if bool(empty.any()):
            raise UsageError(f"layer {name}: no scored weight belongs to group {int(empty.nonzero()[0])}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(groups,)."""
        return self._shape

    def squares(self) -> Tensor:
        """The mean of w² over the scored weights of each group; 0 for a frozen group without any."""
        total: Tensor | None = None
        for member, index in zip(self.scored, self._scored, strict=True):
            part = index.sum(exact(member.weight).square())
            total = part if total is None else total + part
        assert total is not None
        return total / self._weights.clamp(min=1).to(total)

    def spread(self, mask: Tensor, place: int) -> Tensor:
        """The number of each weight's group, 1 for weights of no group."""
        return self._masked[place].spread(mask)

    def sizes(self) -> Tensor:
        """Number of masked weights in each group, shape (groups,)."""
        return sum((index.weights for index in self._masked), torch.zeros(self._shape, dtype=torch.long))


class _Index:
    """The groups of one parameter's weights, prepared for sums over groups and for spreading numbers of groups.

    Attributes:
        weights: number of its weights in each group, shape (groups,).
    """

    def __init__(self, layer: str, groups: int, member: Member) -> None:
        shape = tuple(member.weight.shape)
        index = member.index
        where = f"layer {layer}, {member.parameter} of shape {shape}"
        if index is None or index.is_floating_point() or index.dtype == torch.bool:
            raise UsageError(f"{where}: groups need an index of integers")
        if index.dim() > len(shape):
            raise UsageError(f"{where}: an index of shape {tuple(index.shape)} does not broadcast to it")
        index = index.detach().cpu().long()[(None,) * (len(shape) - index.dim())]
        if any(mine not in (1, full) for mine, full in zip(index.shape, shape, strict=True)):
            raise UsageError(f"{where}: an index of shape {tuple(index.shape)} does not broadcast to it")
        flat = index.flatten()
        if flat.numel() and (int(flat.min()) < -1 or int(flat.max()) >= groups):
            raise UsageError(f"{where}: groups are numbers from 0 to {groups - 1}, or -1 for none")
        self.groups = groups
        self.shape = tuple(index.shape)
        self.summed = [axis for axis, (mine, full) in enumerate(zip(self.shape, shape, strict=True)) if mine != full]
        # Weights of no group get a number of their own, the last.
        self.flat = torch.where(flat < 0, groups, flat)
        self.plain = flat.numel() == groups and bool((flat == torch.arange(groups)).all())
        each = math.prod(full for axis, full in enumerate(shape) if axis in self.summed)
        self.weights = torch.bincount(self.flat, minlength=groups + 1)[:groups] * each

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the weights of each group, shape (groups,); differentiable.

        Args:
            values: of the parameter's shape.
        """
        rows = (values.sum(self.summed) if self.summed else values).flatten()
        if self.plain:
            return rows
        return rows.new_zeros(self.groups + 1).index_add(0, self._on(rows), rows)[:-1]

    def spread(self, mask: Tensor) -> Tensor:
        """Numbers of groups, shape (groups,), for every weight, in the index' shape; differentiable."""
        if self.plain:
            return mask.view(self.shape)
        return torch.cat([mask, mask.new_ones(1)]).index_select(0, self._on(mask)).view(self.shape)

    def _on(self, values: Tensor) -> Tensor:
        if self.flat.device != values.device:  # the model has moved
            self.flat = self.flat.to(values.device)
        return self.flat


def axis_index(shape: Sequence[int], axis: int, groups: Tensor | None = None) -> Tensor:
    """The index of groups along one axis.

    Args:
        shape: of the parameter.
        axis: the axis.
        groups: the group of each position, shape (shape[axis],); the position itself if None.

    Returns:
        Integers that broadcast to the parameter's shape.
    """
    numbers = torch.arange(shape[axis]) if groups is None else groups
    return numbers.view([-1 if at == axis % len(shape) else 1 for at in range(len(shape))])


def channel_index(shape: Sequence[int], axis: int, blocks: int, groups: Tensor | None = None) -> Tensor:
    """The index of channels for the weight of a grouped convolution, each block of which has channels of its own.

    Args:
        shape: of the weight.
        axis: of the channels: 1 for what Conv reads, and for what ConvTranspose makes. The other of the first two axes
            runs through the blocks. (Along that one the channels are simply `axis_index`.)
        blocks: number of the convolution's groups.
        groups: the group of each channel, shape (blocks * shape[axis],); the channel itself if None.

    Returns:
        Integers that broadcast to the weight's shape.
    """
    if blocks == 1:
        return axis_index(shape, axis, groups)
    other = 1 - axis
    block = torch.arange(shape[other]) // (shape[other] // blocks)
    channels = axis_index(shape, other, block) * shape[axis] + axis_index(shape, axis)
    return channels if groups is None else groups[channels]
