"""Budgets by real costs that predictions miss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ucpe_onnx.budget.knapsack import Chosen
from ucpe_onnx.budget.search import BudgetOutcome, meet, same
from ucpe_onnx.report.sections import Budget


@dataclass
class Ruler:
    """Chooses as many of 1000 channels as the budget says, from a smallest share on, in steps."""

    least: float = 0.0
    step: int = 1
    asked: list[float] = field(default_factory=list)

    def solve(self, budget: float, seconds: float, seed: int = 0) -> Chosen | None:
        self.asked.append(budget)
        count = int(round(budget * 1000, 6)) // self.step * self.step
        if budget < self.least:
            return None
        return Chosen({"a": np.arange(1000) < count}, 1.0 - count / 1000, count / 1000, "OPTIMAL", 0.0)


def met(ruler: Ruler, target: float, real: Callable[[float], float]) -> Any:
    return meet(ruler, target, lambda masks: real(masks["a"].mean()), seconds=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0.3, 0.6, 0.85])
@pytest.mark.parametrize(
    "real", [lambda share: share, lambda share: 0.2 + 0.8 * share, lambda share: share**2, lambda share: share**0.5]
)
def test_what_grows_is_met(target: float, real: Callable[[float], float]) -> None:
    best, tries = met(Ruler(), target, real)
    assert abs(best.reached / target - 1) <= 0.02
    assert best in tries and len(tries) <= 6 and tries[0].budget == target


def test_a_right_prediction_takes_one_look() -> None:
    best, tries = met(Ruler(), 0.7, lambda share: share)
    assert len(tries) == 1 and best.reached == pytest.approx(0.7)


def test_steps() -> None:
    """Nothing between 0.5 and 0.75: the smaller one keeps to the target, and no look is lost on what is known."""
    ruler, looked = Ruler(step=250), []
    best, tries = met(ruler, 0.7, lambda share: looked.append(share) or share + 0.01)
    assert best.reached == pytest.approx(0.51)
    assert len(looked) == len(set(looked)) and len(tries) <= 6


def test_stepped_costs_are_narrowed_down() -> None:
    """Real costs jump between shares of 0.6 and 0.61: what is just below the jump loses least within the target."""
    best, _ = met(Ruler(), 0.7, lambda share: 0.68 + share / 100 if share < 0.605 else 0.9)
    assert best.reached <= 0.7 * 1.02 and best.chosen.cost > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_noise(seed: int) -> None:
    random = np.random.default_rng(seed)
    best, tries = met(Ruler(), 0.6, lambda share: (0.15 + 0.85 * share) * random.normal(1, 0.01))
    assert abs(best.reached / 0.6 - 1) <= 0.02 and len(tries) <= 6


def test_the_least_loss_of_what_keeps_to_the_target() -> None:
    found = iter([0.55, 0.58, 0.75, 0.56, 0.57, 0.9])
    best, tries = met(Ruler(), 0.6, lambda share: next(found))
    kept = [t for t in tries if t.reached <= 0.6 * 1.02]
    assert best.chosen.loss == min(t.chosen.loss for t in kept)


def test_what_is_out_of_reach() -> None:
    assert met(Ruler(least=0.5), 0.3, lambda share: share) == (None, ())
    best, tries = met(Ruler(least=0.25), 0.3, lambda share: 0.4 + 0.6 * share)
    assert best.reached == min(t.reached for t in tries) > 0.5
    best, tries = met(Ruler(), 0.3, lambda share: 1.1)  # nothing helps
    assert best.reached == 1.1 and len(tries) <= 6


def test_equal_masks() -> None:
    one = {"a": np.array([True, False])}
    assert same(one, {"a": np.array([True, False])}) and same({}, {})
    assert not same(one, {"a": np.array([True, True])}) and not same(one, {}) and not same(one, {"b": one["a"]})


@pytest.mark.parametrize(
    ("reached", "looks", "words"),
    [
        (0.71, 1, "target 0.7 of the input's multiply-accumulates: 0.710 reached in 1 look"),
        (0.8, 2, "target 0.7 of the input's multiply-accumulates: 0.800 reached (not met: nothing nearer was found)"),
        (0.5, 2, "target 0.7 of the input's multiply-accumulates: 0.500 reached in 2 looks"),
    ],
)
def test_in_words(reached: float, looks: int, words: str) -> None:
    outcome = BudgetOutcome("macs", 0.7, reached, 0.7, 0.1, "OPTIMAL", 0.0, ((0.7, reached),) * looks)
    assert Budget(outcome).in_words().startswith(words)
    assert outcome.to_dict()["looks"] == [[0.7, reached]] * looks
