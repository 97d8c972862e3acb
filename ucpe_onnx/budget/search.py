"""Meet a budget as it is counted or measured, not as it is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ucpe_onnx.budget.knapsack import Chosen, Knapsack
from ucpe_onnx.masks import Mask

CLOSE = 0.02
"""A budget counts as met within this share of it."""

_MOST_TRIES = 6
_SMALLEST = 0.02


@dataclass(frozen=True)
class Try:
    """One look at a choice.

    Attributes:
        budget: what the choice was predicted to cost at most, over the unpruned model's cost.
        reached: what it really costs, over that of the unpruned model.
        chosen: the choice.
    """

    budget: float
    reached: float
    chosen: Chosen


@dataclass(frozen=True)
class BudgetOutcome:
    """How a budget was met.

    Attributes:
        kind: ``latency``, ``macs`` or ``params``.
        target: the budget: share of the input's.
        reached: share that the choice really takes: measured or counted.
        predicted: share that it was predicted to take.
        loss: error of the output that it was predicted to make, over the output's variance.
        status: of the solver.
        gap: share of that loss that is not proven to be needed.
        looks: all predicted budgets that were tried, each with what it came to.
        points_lost: points of accuracy that were lost on samples held out, if a largest loss was asked for.
        held_out: number of these samples.
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
    held_out: int = 0

    @classmethod
    def of(cls, kind: str, asked: float, best: Try, tries: tuple[Try, ...]) -> BudgetOutcome:
        """The outcome of a search that :func:`meet` has made."""
        chosen, looks = best.chosen, tuple((look.budget, look.reached) for look in tries)
        return cls(kind, asked, best.reached, chosen.cost, chosen.loss, chosen.status, chosen.gap, looks)

    @property
    def missed(self) -> bool:
        """Whether nothing was found that keeps to the budget."""
        return self.reached > self.target * (1 + CLOSE)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**vars(self), "looks": [list(look) for look in self.looks]}


def meet(
    knapsack: Knapsack,
    asked: float,
    cost_of: Callable[[Mapping[str, Mask]], float],
    *,
    seconds: float,
    seed: int = 0,
) -> tuple[Try | None, tuple[Try, ...]]:
    """Find a choice whose real cost is that of a budget, by correcting the predicted budget for what is found.

    Args:
        knapsack: the choices and their predicted costs.
        asked: the budget, as a share of the unpruned model's cost.
        cost_of: the real cost of masks, over the unpruned model's.
        seconds: time limit for each choice.
        seed: for the solver.

    Returns:
        The look that met the budget with least predicted loss, or came nearest to it; None if nothing could be chosen
        at all. And all looks.
    """
    tries: list[Try] = []
    budget = asked
    for _ in range(_MOST_TRIES):
        chosen = knapsack.solve(budget, seconds, seed)
        if chosen is None:
            break
        known = next((t for t in tries if same(t.chosen.masks, chosen.masks)), None)
        reached = known.reached if known is not None else cost_of(chosen.masks)
        tries.append(Try(budget, reached, chosen))
        if abs(reached / asked - 1) <= CLOSE:
            break
        budget = float(np.clip(_next(tries, asked), _SMALLEST, 1.0))
        if any(abs(t.budget - budget) < 1e-4 for t in tries):
            break
    if not tries:
        return None, ()
    met = [t for t in tries if t.reached <= asked * (1 + CLOSE)]
    best = min(met, key=lambda t: t.chosen.loss) if met else min(tries, key=lambda t: t.reached)
    return best, tuple(tries)


def _next(tries: list[Try], asked: float) -> float:
    """The predicted budget to try: between looks on both sides of it, else in proportion."""
    above = min((t for t in tries if t.reached > asked), key=lambda t: (t.reached, t.budget), default=None)
    below = max((t for t in tries if t.reached <= asked), key=lambda t: (t.reached, t.budget), default=None)
    if above is not None and below is not None and above.reached > below.reached:
        share = (asked - below.reached) / (above.reached - below.reached)
        return below.budget + share * (above.budget - below.budget)
    last = tries[-1]
    return float(last.budget * (asked / last.reached) ** (1.2 if len(tries) > 2 else 1.0))


def same(one: Mapping[str, Mask], other: Mapping[str, Mask]) -> bool:
    """Whether masks are equal."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
