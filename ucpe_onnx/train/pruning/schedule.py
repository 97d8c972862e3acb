"""How the pruned share grows during training."""

from __future__ import annotations

from dataclasses import dataclass

from ucpe_onnx.errors import UsageError

HOLD = 1 / 3
"""Share of the steps that are left at the full ratio if nothing else is asked for."""

SHAPES = ("linear", "cubic")


@dataclass(frozen=True)
class Schedule:
    """A warm-up without pruning, a ramp, and the rest at the full ratio.

    Attributes:
        steps: steps of the optimiser in all.
        warmup: share of them that is ordinary training. 0 suits a network that has been trained.
        ramp: share of them in which the ratio grows; None for all but the warm-up and the last third.
        shape: "linear", as in PDP (arXiv 2305.11203): min(1, epsilon (e - s)). Or "cubic", as in Zhu and Gupta, "To
            prune, or not to prune", 2017, arXiv 1710.01878, equation 1 from an initial sparsity of 0: 1 - (1 - p)³ with
            p the share of the ramp that is over.
        every: the ratio changes at multiples of so many steps.

    Raises:
        UsageError: a number is out of range, or the full ratio is never reached.
    """

    steps: int
    warmup: float = 0.16
    ramp: float | None = None
    shape: str = "linear"
    every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise UsageError(f"a schedule needs at least one step, not {min(self.steps, self.every)}")
        if self.shape not in SHAPES:
            raise UsageError(f"the shape of a ramp is {' or '.join(SHAPES)}, not {self.shape!r}")
        if not 0 <= self.warmup <= 1 or not 0 <= (self.ramp or 0) <= 1:
            raise UsageError(f"warm-up {self.warmup} and ramp {self.ramp} are shares of the steps, from 0 to 1")
        if self.warmup + (self.ramp or 0) > 1 + 1e-9:
            raise UsageError(f"warm-up {self.warmup} and ramp {self.ramp} leave no step at the full ratio")

    @property
    def start(self) -> int:
        """The first step after the warm-up."""
        return round(self.warmup * self.steps)

    def ratio_at(self, step: int) -> float:
        """Share of the final ratio, from 0 to 1, after ``step`` steps of the optimiser.

        Any number of steps is fine; from ``steps`` on it is 1.
        """
        if step >= self.steps:
            return 1.0
        over = step // self.every * self.every - self.start
        if over < 0:
            return 0.0
        length = self._ramp * self.steps
        share = over / length if length > 0 else 1.0
        if share >= 1 - 1e-9:
            return 1.0
        return share if self.shape == "linear" else 1 - (1 - share) ** 3

    def held_at(self, step: int) -> float:
        """Share, from 0 to 1, of the steps at the full ratio that are over after ``step`` steps."""
        full = self.start + self._ramp * self.steps
        hold = self.steps - full
        return min(1.0, max(0.0, (step - full) / hold)) if hold > 1e-6 else float(step >= self.steps)

    def share_until(self, held: float, step: int) -> float:
        """Share that is over, after ``step`` steps, of the time from the end of the warm-up until ``held_at`` is so."""
        full = self.start + self._ramp * self.steps
        length = full + held * max(0.0, self.steps - full) - self.start
        return min(1.0, max(0.0, (step - self.start) / length)) if length > 1e-6 else float(step >= self.start)

    @property
    def _ramp(self) -> float:
        return max(0.0, 1 - HOLD - self.warmup) if self.ramp is None else self.ramp
