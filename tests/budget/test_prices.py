"""What choices are predicted to cost, against what emitted models cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from tests.budget.nets import NETS, by_weights, depthwise, joined, limits, planned_cost, residual, timed
from tests.builders import Net, feeds_for
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.budget.choices import choices_for
from ucpe_onnx.budget.knapsack import Knapsack
from ucpe_onnx.budget.prices import Work, carriers
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import TARGETS


@pytest.mark.parametrize("parameters", [False, True])
@pytest.mark.parametrize("build", NETS)
def test_work_is_what_is_counted(build: Callable[[], onnx.ModelProto], parameters: bool) -> None:
    model = build()
    traced, random = trace(model), np.random.default_rng(0)
    shapes = {name: value.shape for name, value in feeds_for(model, dynamic=1).items()}
    for density in (0.3, 0.5, 0.8, 0.8):
        masks = {}
        for name, consumer in traced.consumers.items():
            mask = (random.random(consumer.channels) < density) | ~consumer.prunable
            mask[int(random.integers(consumer.channels))] = True
            masks[name] = mask
        plan = make_plan(traced, masks, Settings(target=TARGETS["cpu"], lowering="gather"))
        prices = Work(traced, parameters=parameters)
        costs = planned_cost(traced, plan, prices)
        stats = [model_stats(found, shapes) for found in (model, emit(model, traced, plan))]
        assert costs == pytest.approx([s.parameters if parameters else s.macs for s in stats], rel=1e-9)


def test_what_nothing_goes_from_counts_too() -> None:
    """A depthwise convolution on the input, a layer that reads it, and a product of two tensors."""
    net = Net()
    x = net.input("x", (1, 4, 6, 6))
    a = net.conv(net.depthwise(x), 6, name="a")
    y = net.op("MatMul", x, net.conv(a, 4, name="b"))
    model = net.output(y).model()
    knapsack = Knapsack(trace(model), [], Work(trace(model)))
    macs = model_stats(model, {"x": (1, 4, 6, 6)}).macs
    assert knapsack.rest + sum(knapsack.prices.layer(use, knapsack.reads(use), 6) for use, _, _ in knapsack.layers) > 0
    layers = (6 * 4 + 4 * 6) * 36
    assert knapsack.rest == macs - layers == 4 * 9 * 36 + 4 * 6 * 6 * 6


def test_a_model_without_multiply_accumulates() -> None:
    net = Net()
    model = net.output(net.op("Relu", net.input())).model()
    assert Knapsack(trace(model), [], Work(trace(model))).solve(0.5, 1.0) is not None


@pytest.mark.parametrize("build", NETS)
def test_times_are_positive_and_grow_with_what_is_read_and_made(build: Callable[[], onnx.ModelProto]) -> None:
    traced = trace(build())
    prices = timed(traced)
    knapsack = Knapsack(traced, choices_for(traced, by_weights(traced), limits()), prices)
    for use, _, _ in knapsack.layers:
        costs = np.array([[prices.layer(use, read, made) for made in (4, 64, 1024)] for read in (4, 64, 1024)])
        assert costs.min() > 0 and (np.diff(costs, axis=0) >= 0).all() and (np.diff(costs, axis=1) >= 0).all()
        assert costs[-1, -1] > costs[0, 0]
    for choice in knapsack.choices:
        carried = [knapsack.carried(choice.segment, base) for base in range(len(choice.bases))]
        assert min(carried) >= 0 and (np.diff(carried) <= 1e-9).all()


def test_a_selection_costs_what_a_gather_does() -> None:
    traced = trace(residual())
    prices, consumer = timed(traced), traced.consumers["left"]
    assert prices.selection(consumer, 12, 12) == 0.0
    assert 0 < prices.selection(consumer, 12, 4) < prices.selection(consumer, 12, 11)
    assert Work(traced).selection(consumer, 12, 4) == 0.0


def test_carriers_make_nothing() -> None:
    traced = trace(joined())
    found = [node.op_type for segment in traced.segments for node in carriers(traced, segment)]
    assert sorted(found) == ["Concat", "Relu"]
    traced = trace(depthwise())
    assert sum(node.op_type == "Conv" for s in traced.segments for node in carriers(traced, s)) == 2
