"""Budgets over models in which several layers read one weight."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.budget.nets import by_weights, limits, loss_of, planned_cost, problem, states
from tests.builders import Net
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.budget.prices import Work
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import TARGETS


def row(*, chains: bool = False) -> onnx.ModelProto:
    """Layers in a row, of which two have one weight, or each an Identity of it, and one bias."""
    net = Net()
    shared, bias = net.weight(net.normal(4, 4, 3, 3), "shared"), net.weight(net.normal(4), "bias")
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 5, 5)), 4, name="a", bias=False))
    for name in "bc":
        weight = net.op("Identity", shared) if chains else shared
        y = net.op("Relu", net.op("Conv", y, weight, bias, name=name, pads=[1] * 4))
    return net.output(net.conv(y, 3, name="d", bias=False)).model()


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7, 0.9])
def test_the_best_choice_with_one_mask_for_both(budget: float, kind: str) -> None:
    model = row()
    knapsack = problem(model, limits(), Work(trace(model), parameters=kind == "params"), b=1.0, c=3.0)
    chosen = knapsack.solve(budget, 20.0)
    assert chosen is not None
    whole = np.ones(4, dtype=bool)
    assert np.array_equal(chosen.masks.get("b", whole), chosen.masks.get("c", whole))
    most = budget * knapsack.greedy.cost(next(states(knapsack)))
    ways = knapsack.readings
    fitting = [
        loss_of(knapsack, state)
        for state in states(knapsack)
        if np.array_equal(ways["b"][state.ways["b"]].mask, ways["c"][state.ways["c"]].mask)
        and knapsack.greedy.cost(state) <= most * (1 + 1e-9)
    ]
    assert chosen.loss == pytest.approx(min(fitting), rel=1e-2)


@pytest.mark.parametrize("chains", [False, True])
def test_parameters_are_counted_once(*, chains: bool) -> None:
    model = row(chains=chains)
    traced, mask = trace(model), np.array([True, False, True, True])
    plan = make_plan(traced, dict.fromkeys("bcd", mask), Settings(target=TARGETS["cpu"], lowering="gather"))
    prices = Work(traced, parameters=True)
    stats = [model_stats(found, {"x": (1, 3, 5, 5)}) for found in (model, emit(model, traced, plan))]
    assert planned_cost(traced, plan, prices) == pytest.approx([s.parameters for s in stats], rel=1e-9)


def test_both_lose_channels_in_one_order() -> None:
    losses = by_weights(trace(row()), b=1.0, c=3.0)
    first, second = (losses.curve(name) for name in "bc")
    assert [unit.tolist() for unit in first.order] == [unit.tolist() for unit in second.order]
    assert np.allclose(3 * first.losses, second.losses)
