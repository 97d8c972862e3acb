"""What is scored and what is masked: the units of pruning that have a ratio and a threshold of their own.

A layer knows which parameters its scores come from and which ones its mask is put on; they need not be the same, nor
of one module. It holds no state of the pruning.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.soft_mask import keep_largest, squared_threshold


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter that a layer scores or masks.

    Attributes:
        module: the module that has it.
        parameter: the name of its attribute there.
        index: for groups, the group of each weight: integers in a shape that broadcasts to the parameter's, -1 for
            weights of no group, which are never masked. None for layers of single weights.
    """

    module: nn.Module
    parameter: str
    index: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The parameter that is trained, without masks."""
        lists = getattr(self.module, "parametrizations", None)
        if isinstance(lists, nn.ModuleDict) and self.parameter in lists:
            original = lists[self.parameter].original
            assert isinstance(original, Tensor)
            return original
        weight = getattr(self.module, self.parameter)
        assert isinstance(weight, Tensor)
        return weight


class PrunableLayer(ABC):
    """A unit of pruning with its own ratio and threshold.

    Attributes:
        name: identifies it in results and options.
        scored: the parameters that its magnitudes come from.
        masked: the parameters that its mask is put on.
        frozen: True for what always stays and does not count, in the shape of the mask; None if there is nothing such.
        fixed: the number that goes, if that is not a matter of a ratio; else None.
    """

    fixed: int | None = None

    def __init__(self, name: str, scored: Sequence[Member], masked: Sequence[Member], frozen: Tensor | None) -> None:
        self.name = name
        self.scored = tuple(scored)
        self.masked = tuple(masked)
        self.frozen = None if frozen is None or not bool(frozen.any()) else frozen.bool()
        if not self.scored:
            raise UsageError(f"layer {name} has nothing that its weights are scored by")
        if self.frozen is not None and tuple(self.frozen.shape) != self.shape:
            raise UsageError(f"layer {name}: frozen has shape {tuple(self.frozen.shape)}, the mask {self.shape}")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the mask: (groups,), or that of the weight."""

    @abstractmethod
    def squares(self) -> Tensor:
        """w² of each weight, or its mean over each group, in the shape of the mask; differentiable."""

    @abstractmethod
    def spread(self, mask: Tensor, place: int) -> Tensor:
        """A mask as a factor that broadcasts to the parameter ``masked[place]``; differentiable."""

    @abstractmethod
    def sizes(self) -> Tensor:
        """Number of masked weights that hang on each number of the mask, in its shape, or one that broadcasts to it."""

    @property
    def prunable(self) -> int:
        """How many numbers of the mask are not frozen."""
        return math.prod(self.shape) - (0 if self.frozen is None else int(self.frozen.sum()))

    @torch.no_grad()
    def magnitudes(self) -> Tensor:
        """The roots of the squares, in the shape of the mask; not differentiable."""
        return self.squares().sqrt()

    def candidates(self, values: Tensor) -> Tensor:
        """Those of some values in the shape of the mask that are not frozen, as a vector."""
        return values.flatten() if self.frozen is None else values[~self.frozen.to(values.device)]

    def dropped_at(self, final: int, share: float) -> int:
        """How many are dropped when the ratio is ``share``, from 0 to 1, of the final one; rounded down."""
        return final if share >= 1 else math.floor(final * share)

    def threshold(self, dropped: int) -> Tensor:
        """t² for so many dropped, in a shape that broadcasts to the mask; minus infinity where nothing is dropped."""
        return squared_threshold(self.candidates(self.magnitudes()), dropped)

    def keep(self, dropped: int) -> Tensor:
        """The hard mask that drops exactly so many, in the shape of the mask, True = keep."""
        magnitudes = self.magnitudes()
        chosen = keep_largest(self.candidates(magnitudes), dropped)
        if self.frozen is None:
            return chosen.view(self.shape)
        keep = torch.ones(self.shape, dtype=torch.bool, device=magnitudes.device)
        keep[~self.frozen.to(keep.device)] = chosen
        return keep

    def unfreeze(self, mask: Tensor) -> Tensor:
        """The mask with 1 where something is frozen; differentiable."""
        return mask if self.frozen is None else mask.masked_fill(self.frozen.to(mask.device), 1.0)


def exact(weight: Tensor) -> Tensor:
    """A weight in single precision at least: in half precision the squares of small weights would be 0."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


class WeightLayer(PrunableLayer):
    """Single weights of one parameter: unstructured pruning.

    Args:
        name: of the layer.
        members: the modules that hold the parameter; several if it is shared. All are masked, the first is scored.
        frozen: True for weights that always stay, of the parameter's shape.

    Raises:
        UsageError: the shape of ``frozen`` does not fit.
    """

    def __init__(self, name: str, members: Sequence[Member], frozen: Tensor | None = None) -> None:
        self._shape = tuple(members[0].weight.shape)
        super().__init__(name, members[:1], members, frozen)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        return self._shape

    def squares(self) -> Tensor:
        """w² of each weight."""
        return exact(self.scored[0].weight).square()

    @torch.no_grad()
    def magnitudes(self) -> Tensor:
        """|w|, which orders even weights whose squares are too small for their type."""
        return exact(self.scored[0].weight).abs()

    def spread(self, mask: Tensor, place: int) -> Tensor:
        """The mask itself."""
        return mask

    def sizes(self) -> Tensor:
        """One weight each."""
        return torch.ones(1, dtype=torch.long)
