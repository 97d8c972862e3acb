"""The masks of layers as they are now, put on parameters by torch.nn.utils.parametrize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.layers import PrunableLayer
from ucpe_onnx.train.pruning.soft_mask import soft_mask, temperature, undecidedness


class LayerMask(ABC):
    """The mask of one layer at this moment of the training.

    Attributes:
        layer: what it is the mask of.
        dropped: how many go now: of the layer, or of each block. With 0 parameters are used as they are.
        settled: whether the mask is hard and stays as it is.
    """

    _saved: tuple[str, ...]

    def __init__(self, layer: PrunableLayer) -> None:
        self.layer = layer
        self.dropped = 0
        self.settled = False

    @abstractmethod
    def update(self, dropped: int) -> None:
        """Choose again, from the weights as they are, with so many to go."""

    def settle(self) -> None:
        """Become hard, if it is not, and stay."""
        self.settled = True

    @abstractmethod
    def factor(self, place: int) -> Tensor:
        """What the parameter ``layer.masked[place]`` is multiplied by, in a shape that broadcasts to it."""

    @abstractmethod
    def keep(self) -> Tensor:
        """The hard mask that this one stands for, in the shape of the layer's mask, True = keep."""

    @abstractmethod
    def undecided(self) -> float:
        """How far the mask is, or was before it settled, from hard, from 0 to 1; see `undecidedness`."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs: numbers and tensors."""
        return {name: getattr(self, name) for name in self._saved}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        for name in self._saved:
            setattr(self, name, state[name])

    def masked(self, weight: Tensor, place: int) -> Tensor:
        """A parameter, or what other masks have made of it, with this mask."""
        return weight * self.factor(place).to(weight.dtype) if self.dropped else weight


class HardMask(LayerMask):
    """Zeros and ones, which do not depend on the weights until the next update. What is masked gets no gradient."""

    _saved = ("dropped", "settled", "_keep")

    def __init__(self, layer: PrunableLayer) -> None:
        super().__init__(layer)
        self._keep = torch.ones(layer.shape, dtype=torch.bool, device=layer.scored[0].weight.device)

    def update(self, dropped: int) -> None:
        """Drop the smallest magnitudes."""
        self._keep = self.layer.keep(dropped)
        self.dropped = dropped

    def factor(self, place: int) -> Tensor:
        """Zeros and ones."""
        weight = self.layer.masked[place].weight
        self._keep = self._keep.to(weight.device)
        return self.layer.spread(self._keep.to(weight.dtype), place)

    def keep(self) -> Tensor:
        """The mask itself."""
        return self._keep

    def undecided(self) -> float:
        """It is hard: 0."""
        return 0.0


class SoftMask(LayerMask):
    """PDP's mask: a function of the weights as they are in each forward pass, with a threshold from the last update.

    If several parameters share it, it is computed once for all of them in a forward pass. That must not outlive the
    pass, as a graph can be differentiated once: it is computed again when a parameter asks a second time, when the
    gradient has come back, and when a weight has changed.
    """

    _saved = ("dropped", "settled", "_squared", "_keep", "_undecided")

    def __init__(self, layer: PrunableLayer, tau: float, mode: str, detach: bool) -> None:
        super().__init__(layer)
        self.tau, self.mode, self.detach = tau, mode, detach
        self._squared = torch.zeros(())
        self._keep: Tensor | None = None
        self._undecided = 0.0
        self._shared: Tensor | None = None
        self._versions: tuple[int, ...] = ()
        self._readers: set[int] = set()

    def update(self, dropped: int) -> None:
        """Move the threshold to where so many are below it."""
        if dropped:
            self._squared = self.layer.threshold(dropped)
        self.dropped = dropped
        self._forget()

    def settle(self) -> None:
        """Become the hard mask that the weights as they are give."""
        self._undecided = self.undecided()
        self._keep = self.keep()
        self.settled = True
        self._forget()

    def factor(self, place: int) -> Tensor:
        """The mask, with a gradient to all scored weights unless it is detached."""
        if len(self.layer.masked) == 1 or not torch.is_grad_enabled():
            return self.layer.spread(self.value(), place)
        versions = tuple(member.weight._version for member in self.layer.scored)
        if self._shared is None or place in self._readers or versions != self._versions:
            self._shared, self._versions, self._readers = self.value(), versions, set()
            if self._shared.requires_grad:
                hook: Callable[..., object] = self._shared.register_hook
                hook(self._forget)
        self._readers.add(place)
        return self.layer.spread(self._shared, place)

    def value(self) -> Tensor:
        """The mask, in the shape of the layer's mask."""
        if self._keep is not None:
            weight = self.layer.scored[0].weight
            return self._keep.to(weight)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            squares = self.layer.squares()
            squared = self._squared.to(squares.device)
            tau = temperature(squared, self.tau, self.mode)
            return self.layer.unfreeze(soft_mask(squares, squared, tau))

    def keep(self) -> Tensor:
        """What lies above the threshold, by rank, from the weights as they are; unless it has settled."""
        return self.layer.keep(self.dropped) if self._keep is None else self._keep

    @torch.no_grad()
    def undecided(self) -> float:
        """Over everything that is not frozen."""
        if self.settled:
            return self._undecided
        return undecidedness(self.layer.candidates(self.value())) if self.dropped else 0.0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        super().restore(state)
        self._forget()

    def _forget(self, gradient: Tensor | None = None) -> None:
        self._shared = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}  # a part of a graph can't be copied


class _Parametrization(nn.Module):
    """A mask on one parameter."""

    def __init__(self, mask: LayerMask, place: int) -> None:
        super().__init__()
        self.mask = mask
        self.place = place

    def forward(self, weight: Tensor) -> Tensor:
        """The parameter with the mask."""
        return self.mask.masked(weight, self.place)


def attach(masks: Iterable[LayerMask]) -> None:
    """Put masks on the parameters of their layers. The parameters stay the objects that they are.

    Raises:
        UsageError: a parameter has a parametrization; nothing has been put on any then.
    """
    masks = list(masks)
    for mask in masks:
        for member in mask.layer.masked:
            if parametrize.is_parametrized(member.module, member.parameter):
                raise UsageError(
                    f"layer {mask.layer.name}: {member.parameter} is parametrized already; finish what did that, or "
                    "exclude the layer"
                )
    for mask in masks:
        for place, member in enumerate(mask.layer.masked):
            parametrize.register_parametrization(member.module, member.parameter, _Parametrization(mask, place))


@torch.no_grad()
def remove(masks: Iterable[LayerMask], keeps: Mapping[str, Tensor], *, soft: bool) -> None:
    """Take all masks off, with zeros where a hard mask drops.

    Args:
        masks: what `attach` was given.
        keeps: hard masks, by name of layer.
        soft: what is kept is multiplied by its mask; else it keeps its value.
    """
    places: dict[tuple[int, str], list[tuple[LayerMask, int]]] = {}
    for mask in masks:
        for place, member in enumerate(mask.layer.masked):
            places.setdefault((id(member.module), member.parameter), []).append((mask, place))
    done: set[int] = set()
    finished = []
    for found in places.values():
        first = found[0][0].layer.masked[found[0][1]]
        weight = first.weight
        value = weight.detach().clone()
        for mask, place in found:
            if soft:
                value = mask.masked(value, place)
            keep = mask.layer.spread(keeps[mask.layer.name].to(weight.device, torch.float32), place)
            value = value.masked_fill(keep == 0, 0.0)
        finished.append((first, weight, value))
    for member, weight, value in finished:  # after all values, as masks are made of weights
        parametrize.remove_parametrizations(member.module, member.parameter, leave_parametrized=False)
        if id(weight) not in done:  # a parameter that several modules share has one value
            done.add(id(weight))
            weight.copy_(value)
