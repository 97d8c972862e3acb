"""Methods to compare PDP with, on the same layers and with the same interface: hard masks by magnitude."""

from __future__ import annotations

from ucpe_onnx.train.pruning.layers import PrunableLayer
from ucpe_onnx.train.pruning.parametrisation import HardMask, LayerMask
from ucpe_onnx.train.pruning.pruner import Pruner
from ucpe_onnx.train.pruning.schedule import Schedule


class GradualMagnitude(Pruner):
    """Gradual magnitude pruning (Zhu and Gupta, "To prune, or not to prune", 2017, arXiv 1710.01878).

    The ratio grows along a cubic; masks are chosen by magnitude at each step (or ``every`` so many) until the full
    ratio is reached, and stay from then on. A weight that is masked gets no gradient, but keeps its value, and is used
    again should it be among the larger ones before the end of the ramp. Arguments are those of `PDP` without the
    temperature.
    """

    shape = "cubic"

    def _mask(self, layer: PrunableLayer) -> LayerMask:
        return HardMask(layer)

    def _settling(self) -> bool:
        return self.schedule.ratio_at(self.steps_done) >= 1


class OneShot(GradualMagnitude):
    """The full ratio at once, by magnitude, and training of what is left. ``steps`` is not needed."""

    def _schedule(self, steps: int | None) -> Schedule:
        return Schedule(steps or 1, warmup=0, ramp=0)
