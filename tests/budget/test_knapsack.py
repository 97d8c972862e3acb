"""The solver and its start, against all combinations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from ortools.sat.python import cp_model

from tests.budget.nets import joined, limits, loss_of, problem, residual, states, timed
from tests.builders import Net
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.budget import knapsack as solving
from ucpe_onnx.budget.greedy import Greedy
from ucpe_onnx.budget.knapsack import Knapsack
from ucpe_onnx.budget.prices import Work

BUDGETS = (0.45, 0.6, 0.75, 0.9, 1.0)


def small(seed: int = 0) -> onnx.ModelProto:
    """Six channels that two layers read, four of each read by a third."""
    net = Net(seed=seed)
    a = net.op("Relu", net.conv(net.input("x", (1, 2, 4, 4)), 6, 3, name="a"))
    total = net.op("Add", net.conv(a, 4, 3, name="b"), net.conv(a, 4, name="c"))
    return net.output(net.conv(total, 3, name="d")).model()


def instance(seed: int, *, parameters: bool = False) -> Knapsack:
    model = small(seed)
    weights = dict(zip("bcd", np.random.default_rng(seed).uniform(0.1, 2.0, 3), strict=True))
    prices = Work(trace(model), parameters=parameters)
    return problem(model, limits(most={"b": 0.7, "c": 0.7, "d": 0.8}), prices, **weights)


@pytest.mark.parametrize("parameters", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_all_combinations(seed: int, parameters: bool) -> None:
    knapsack = instance(seed, parameters=parameters)
    greedy = Greedy(knapsack)
    every = [(greedy.cost(state), loss_of(knapsack, state)) for state in states(knapsack)]
    assert len(every) > 100
    whole = max(cost for cost, _ in every)
    for budget in BUDGETS:
        possible = [loss for cost, loss in every if cost <= whole * budget]
        found, start = knapsack.solve(budget, 30.0), greedy.choice(budget)
        assert found is not None and start is not None
        assert found.status == "OPTIMAL" and found.gap <= 1e-3 and found.cost <= budget + 1e-5
        assert found.loss == pytest.approx(min(possible), rel=2e-3, abs=2e-5)
        assert greedy.cost(start) <= whole * budget * (1 + 1e-9)
        assert loss_of(knapsack, start) >= min(possible) - 1e-9
        assert loss_of(knapsack, start) <= 3 * min(possible) + 1e-9  # a good start: here never so far off
    assert knapsack.solve(min(cost for cost, _ in every) / whole - 0.01, 30.0) is None
    assert greedy.choice(min(cost for cost, _ in every) / whole - 0.01) is None


def test_a_search_starts_from_what_others_have_found() -> None:
    worse = 0
    for seed in range(8):
        knapsack = instance(seed)
        best, start = knapsack.solve(0.6, 30.0), knapsack.greedy.choice(0.6)
        assert best is not None and start is not None
        at_once = knapsack.solve(0.65, 0.0)  # no time to search
        assert at_once is not None and at_once.loss <= best.loss + 1e-6 and at_once.cost <= 0.65
        worse += loss_of(knapsack, start) > best.loss + 1e-6
    assert worse, "the greedy choice was the best every time: this shows nothing"


@pytest.mark.parametrize("clock", [False, True])
def test_less_loss_for_more(clock: bool) -> None:
    model = residual()
    prices = timed(trace(model)) if clock else None
    losses = []
    for budget in (0.88, 0.92, 0.95, 0.98, 1.0) if clock else BUDGETS:  # so small a model takes what its calls take
        found = problem(model, prices=prices).solve(budget, 30.0)
        if found is not None:
            assert found.cost <= budget + 1e-5
            losses.append(found.loss)
    assert len(losses) >= 3 and losses[-1] == 0.0
    assert all(more <= less * 1.002 + 1e-5 for less, more in pairwise(losses))


@pytest.mark.parametrize("build", [residual, joined])
def test_auto_may_do_what_constrained_does(build) -> None:
    model = build()
    for budget in (0.5, 0.7, 0.9):
        auto = problem(model, limits("auto")).solve(budget, 30.0)
        constrained = problem(model, limits("constrained")).solve(budget, 30.0)
        assert auto is not None and constrained is not None
        assert auto.loss <= constrained.loss * 1.002 + 1e-5


def test_what_costs_much_loss_is_kept() -> None:
    model = small()
    dear, cheap = (problem(model, b=weight, c=1.0).solve(0.75, 30.0) for weight in (100.0, 0.01))
    assert dear is not None and cheap is not None
    kept = [found.masks["b"].sum() if "b" in found.masks else 6 for found in (dear, cheap)]
    assert kept[0] > kept[1]


def test_a_solver_without_time_falls_back_on_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    knapsack = instance(0)
    found = knapsack.solve(0.6, 30.0)
    monkeypatch.setattr(solving.cp_model.CpSolver, "solve", lambda self, model: cp_model.UNKNOWN)
    monkeypatch.setattr(solving.cp_model.CpSolver, "best_objective_bound", property(lambda self: 0.0))
    start = knapsack.solve(0.6, 30.0)
    assert found is not None and start is not None
    assert start.status == "FEASIBLE" and start.gap == 1.0 and start.cost <= 0.6 + 1e-5
    assert start.loss >= found.loss - 1e-5 and start.masks
    assert knapsack.solve(0.01, 30.0) is None


def test_the_seed_decides() -> None:
    one, other = (problem(joined()).solve(0.6, 30.0, seed=3) for _ in range(2))
    assert one is not None and other is not None and one.loss == other.loss
    assert all(np.array_equal(one.masks[name], other.masks[name]) for name in one.masks.keys() | other.masks.keys())
