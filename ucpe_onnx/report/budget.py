"""How a budget was met, as data and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLOSE = 0.02
"""A budget counts as met within this share of it."""

_UNITS = {"latency": "latency", "macs": "multiply-accumulates", "params": "parameters"}


@dataclass(frozen=True)
class BudgetReport:
    """How a budget was met.

    Attributes:
        kind: ``latency``, ``macs`` or ``params``.
        target: share of the input's.
        reached: share that the choice really takes: measured or counted.
        predicted: share that it was predicted to take.
        loss: error of the output that it was predicted to make, over the output's variance.
        status: of the solver.
        gap: share of that loss that is not proven to be needed.
        looks: all predicted budgets that were tried, each with what it came to.
        points_lost: points of accuracy that were lost on samples held out, if a largest loss was asked for.
    """

    kind: str
    target: float
    reached: float
    predicted: float
    loss: float
    status: str
    gap: float
    looks: tuple[tuple[float, float], ...] = ()
    points_lost: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "looks": [list(look) for look in self.looks]}


def in_words(budget: BudgetReport) -> str:
    """What was asked for, and what came of it."""
    missed = " (not met: nothing nearer was found)" if budget.reached > budget.target * (1 + CLOSE) else ""
    lost = "" if budget.points_lost is None else f", {budget.points_lost:.1f} points lost on samples held out"
    return (
        f"target {budget.target:.3g} of the input's {_UNITS[budget.kind]}: {budget.reached:.3f} reached{missed} in"
        f" {len(budget.looks)} {'look' if len(budget.looks) == 1 else 'looks'}{lost}"
    )
