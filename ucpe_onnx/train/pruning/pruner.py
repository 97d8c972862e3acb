"""What PDP and the methods that it is compared with have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.discover import layers_of
from ucpe_onnx.train.pruning.layers import PrunableLayer
from ucpe_onnx.train.pruning.parametrisation import LayerMask, attach, remove
from ucpe_onnx.train.pruning.ratios import Allotment, allot
from ucpe_onnx.train.pruning.schedule import Schedule


@dataclass(frozen=True)
class Sparsity:
    """How far the pruning of a layer is.

    Attributes:
        dropped: weights or groups that the hard mask drops.
        prunable: those that are not frozen.
        undecided: mean of 4 m (1 - m) over the mask: 0 if it is hard, 1 if it is 1/2 everywhere. If it has become hard,
            what it was just before.
    """

    dropped: int
    prunable: int
    undecided: float

    @property
    def share(self) -> float:
        """Share that goes."""
        return self.dropped / self.prunable if self.prunable else 0.0


class Pruner(ABC):
    """Masks on parameters while they are trained, in any training loop.

    The masked parameters stay the objects that they are, so that an optimiser may be made before or after. In the
    model's ``state_dict`` they are called ``parametrizations.weight.original`` until `finish`.

    Attributes:
        layers: what is pruned.
        schedule: how the ratio grows.
        allotment: what is to go; None if all layers have a fixed number.
        steps_done: how often `step` has been called.
        counts: how many of each layer go in the end, by name; of each block for N:M. None during the warm-up.
    """

    shape = "linear"

    def __init__(
        self,
        target: nn.Module | Sequence[PrunableLayer],
        ratio: float | Allotment | None = None,
        *,
        steps: int | None = None,
        schedule: Schedule | None = None,
        granularity: str = "unstructured",
        exclude: Collection[str] = (),
        every: int = 1,
    ) -> None:
        if isinstance(target, nn.Module):
            target = layers_of(target, granularity, exclude=exclude)
        self.layers: tuple[PrunableLayer, ...] = tuple(target)
        self.allotment = ratio if ratio is None or isinstance(ratio, Allotment) else Allotment(float(ratio))
        self.schedule = self._schedule(steps) if schedule is None else schedule
        self.every = every
        self.steps_done = 0
        self.counts: dict[str, int] | None = None
        self._kept: dict[str, Tensor] | None = None
        self._undecided: dict[str, float] = {}
        self._check()
        self._masks = [self._mask(layer) for layer in self.layers]
        attach(self._masks)
        self._update()

    @abstractmethod
    def _mask(self, layer: PrunableLayer) -> LayerMask:
        """The mask of a layer, which drops nothing yet."""

    @abstractmethod
    def _settling(self) -> bool:
        """Whether masks that have reached the full ratio stay as they are from now on."""

    def _schedule(self, steps: int | None) -> Schedule:
        """The schedule if none is given."""
        if steps is None:
            raise UsageError("say how many steps there will be, or give a schedule")
        return Schedule(steps, shape=self.shape)

    def _check(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names:
            raise UsageError("there is no layer to prune")
        if len(set(names)) < len(names):
            raise UsageError(f"two layers are called {next(name for name in names if names.count(name) > 1)}")
        if all(layer.fixed is not None for layer in self.layers):
            if self.allotment is not None:
                raise UsageError("N:M says how much goes; leave the ratio out")
        elif self.allotment is None:
            raise UsageError("say which share is to go: ratio=0.9, for instance")
        if self.every < 1:
            raise UsageError(f"masks can't be chosen every {self.every} steps")

    def step(self) -> None:
        """Call after each step of the optimiser: the ratio grows, and masks follow the weights as they are now.

        Raises:
            UsageError: `finish` has been called.
        """
        self._unfinished()
        self.steps_done += 1
        self._update()

    def _update(self) -> None:
        if self.steps_done < self.schedule.start:
            return
        if self.counts is None:
            self.counts = allot(self.layers, self.allotment)
        share = self.schedule.ratio_at(self.steps_done)
        for mask in self._masks:
            final = self.counts[mask.layer.name]
            late = share >= 1 and mask.dropped != final  # the full ratio does not wait for its turn
            if mask.settled or not (late or self.steps_done % self.every == 0):
                continue
            mask.update(mask.layer.dropped_at(final, share))
            if mask.dropped == final and self._settling():
                mask.settle()

    def finish(self, keep: str = "weight") -> dict[str, Tensor]:
        """Write zeros into the parameters where masks drop, and take the masks off; the full ratio, wherever we are.

        Batch normalisations should see some batches afterwards, to renew their statistics.

        Args:
            keep: what is not dropped keeps its "weight" w, or becomes "soft", m w, which is what has been trained.

        Returns:
            The hard masks, like `masks`.

        Raises:
            UsageError: `finish` has been called, or ``keep`` is something else.
        """
        self._unfinished()
        if keep not in ("weight", "soft"):
            raise UsageError(f"keep is weight or soft, not {keep!r}")
        if self.counts is None:
            self.counts = allot(self.layers, self.allotment)
        for mask in self._masks:
            final = self.counts[mask.layer.name]
            if mask.dropped != final or not mask.settled:
                mask.update(final)
        kept = {mask.layer.name: mask.keep() for mask in self._masks}
        self._undecided = {mask.layer.name: mask.undecided() for mask in self._masks}
        remove(self._masks, kept, soft=keep == "soft")
        self._kept = kept
        return self.masks()

    def _unfinished(self) -> None:
        if self._kept is not None:
            raise UsageError("pruning is finished; make a new pruner to continue")

    def masks(self) -> dict[str, Tensor]:
        """The hard masks at the present ratio, True = keep, by name of layer; of shape (groups,) or the weight's."""
        if self._kept is not None:
            return dict(self._kept)
        return {mask.layer.name: mask.keep() for mask in self._masks}

    def sparsity(self) -> dict[str, Sparsity]:
        """How much of each layer goes at the present ratio, and how decided its mask is, by name."""
        undecided = (
            {mask.layer.name: mask.undecided() for mask in self._masks} if self._kept is None else self._undecided
        )
        masks = self.masks()
        return {
            layer.name: Sparsity(int((~masks[layer.name]).sum()), layer.prunable, undecided[layer.name])
            for layer in self.layers
        }

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue exactly, beside the states of the model and the optimiser."""
        states = {mask.layer.name: mask.state() for mask in self._masks}
        return {"steps_done": self.steps_done, "counts": self.counts, "layers": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, in a pruner made with the same arguments.

        Raises:
            UsageError: the state is that of other layers.
        """
        if set(state["layers"]) != {layer.name for layer in self.layers}:
            raise UsageError("the saved state belongs to other layers")
        self.steps_done, self.counts = state["steps_done"], state["counts"]
        for mask in self._masks:
            mask.restore(state["layers"][mask.layer.name])
