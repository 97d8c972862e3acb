"""PDP: pruning with masks that are a differentiable function of the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.layers import PrunableLayer, WeightLayer
from ucpe_onnx.train.pruning.parametrisation import LayerMask, SoftMask
from ucpe_onnx.train.pruning.pruner import Pruner
from ucpe_onnx.train.pruning.ratios import Allotment
from ucpe_onnx.train.pruning.schedule import Schedule

_TAU = {"absolute": (1e-4, 1e-4), "relative": (0.1, 0.02)}
"""Default temperatures: of groups and blocks, and of single weights. The absolute one is the paper's for vision."""

_COOLING = (0.1, 1.0)
"""Default shares of the temperature that are left in the end, likewise."""


class PDP(Pruner):
    """Parameter-free differentiable pruning (Cho, Adya, Naik, NeurIPS 2023, arXiv 2305.11203).

    In the forward pass a weight w is m(w) w with m(w) = sigmoid((w² - t²) / tau), t midway between the smallest
    magnitude that stays and the largest that goes; w itself is trained. Its slope m + 2 w² / tau m (1 - m) pushes what
    is near the threshold to one side or the other, and what is dropped keeps a gradient and can come back. Groups go by
    the mean of w² over their scored weights, and have one m each::

        pdp = PDP(model, ratio=0.9, steps=epochs * len(loader))
        for inputs, labels in batches:
            loss(model(inputs), labels).backward()
            optimiser.step()
            optimiser.zero_grad()
            pdp.step()
        pdp.finish()

    Args:
        target: a model, whose convolutions and linear layers are pruned, or layers.
        ratio: the share that goes, or an `Allotment` that says how it is shared out; None for N:M.
        steps: how many steps of the optimiser there will be; for the schedule if there is none.
        schedule: how the ratio grows. Default: warm-up of 16 % of the steps, a linear ramp, the last third at the full
            ratio.
        granularity: for a model, see `layers_of`: "unstructured", "2:4" for instance, "channel", "filter".
        exclude: for a model, modules that are left alone, by name or pattern.
        every: thresholds are recomputed every so many steps.
        tau: temperature, in units of a squared weight, or of the squared threshold if it is relative. Default 1e-4; or
            0.1, for single weights 0.02. The smaller, the harder.
        tau_mode: "absolute", as in the paper; it suits weights of the usual scale, not for instance those of a network
            whose batch normalisations are folded. "relative" does not depend on scale. With a threshold near 0 an
            absolute temperature halves weights, which a relative one does not.
        cooling: share of the temperature that is left, after a fall at a constant rate, when masks become hard. 1: it
            stays, as in the paper. Default 0.1, for single weights 1. Magnitudes of groups lie close together, so that
            masks that leave a gradient to most of them are undecided: with 0.1 to the end, making those of a CIFAR
            ResNet-20's channels hard cost 70 of 83 points. As they cool, what is left is trained meanwhile.
        detach: no gradient goes through the masks.
        settle: share of the steps at the full ratio after which masks become hard and stay, so that the others train
            what will be left. 1 for never, as in the paper: if masks are not decided at the end (see `sparsity`), as
            is likely with groups and a temperature that stays, making them hard then costs accuracy.

    Raises:
        UsageError: an argument makes no sense, there is nothing to prune, or a weight has another parametrization.
    """

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
        tau: float | None = None,
        tau_mode: str = "absolute",
        cooling: float | None = None,
        detach: bool = False,
        settle: float = 0.5,
    ) -> None:
        if tau_mode not in _TAU:
            raise UsageError(f"tau_mode is absolute or relative, not {tau_mode!r}")
        if tau is not None and tau <= 0:
            raise UsageError(f"a temperature is positive, not {tau}")
        if cooling is not None and not 0 < cooling <= 1:
            raise UsageError(f"cooling is the share of the temperature that is left, above 0, up to 1, not {cooling}")
        if not 0 <= settle <= 1:
            raise UsageError(f"settle is a share of the steps at the full ratio, from 0 to 1, not {settle}")
        self.tau, self.tau_mode, self.cooling = tau, tau_mode, cooling
        self.detach, self.settle = detach, settle
        super().__init__(
            target, ratio, steps=steps, schedule=schedule, granularity=granularity, exclude=exclude, every=every
        )

    def _mask(self, layer: PrunableLayer) -> LayerMask:
        return SoftMask(layer, self.temperature_at(0, layer), self.tau_mode, self.detach)

    def temperature_at(self, step: int, layer: PrunableLayer) -> float:
        """The temperature of a layer after so many steps, in the units of ``tau``."""
        single = type(layer) is WeightLayer
        tau = _TAU[self.tau_mode][single] if self.tau is None else self.tau
        cooling = _COOLING[single] if self.cooling is None else self.cooling
        return float(tau * cooling ** self.schedule.share_until(self.settle, step))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, in a pruner made with the same arguments.

        Raises:
            UsageError: the state is that of other layers.
        """
        super().load_state_dict(state)
        self._cool()

    def _update(self) -> None:
        self._cool()
        super()._update()

    def _cool(self) -> None:
        for mask in self._masks:
            if isinstance(mask, SoftMask):
                mask.tau = self.temperature_at(self.steps_done, mask.layer)

    def _settling(self) -> bool:
        return self.settle < 1 and self.schedule.held_at(self.steps_done) >= self.settle
