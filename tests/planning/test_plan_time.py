"""Planning takes work in step with the size of a graph, and stops searching when time is up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.builders import Net
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.solve.blocks import BlockProblem, BlockSolution, solve_blocks
from ucpe_onnx.solve.blocks import solve as block_solver
from ucpe_onnx.solve.blocks.problem import FEASIBLE


def joined(operands: int) -> onnx.ModelProto:
    """A Concat of so many convolutions, which one convolution reads."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    return net.output(net.conv(net.op("Concat", *[net.conv(x, 4) for _ in range(operands)], axis=1), 4)).model()


def chain(layers: int) -> onnx.ModelProto:
    """So many convolutions one after the other, with a pool at the end: a segment between any two."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    for _ in range(layers):
        x = net.op("Relu", net.conv(x, 8))
    return net.output(net.op("MaxPool", x, kernel_shape=[2, 2])).model()


def trunk(readers: int) -> onnx.ModelProto:
    """A tensor that so many convolutions read, each behind an Add of its own."""
    net = Net()
    stem = net.conv(net.input("x", (1, 3, 4, 4)), 16, name="stem")
    outputs = []
    for number in range(readers):
        stem = net.op("Add", stem, net.conv(net.op("Relu", stem), 16, name=f"r{number}"))
        outputs.append(net.conv(stem, 2, name=f"end{number}"))
    return net.output(*outputs).model()


def halves(traced: Trace) -> dict[str, Mask]:
    """For each consumer with free channels every second one."""
    return {
        name: ~consumer.prunable | (np.arange(consumer.channels) % 2 == 0)
        for name, consumer in traced.consumers.items()
        if consumer.prunable.any()
    }


def random_masks(traced: Trace) -> dict[str, Mask]:
    random = np.random.default_rng(0)
    return {
        name: ~consumer.prunable | (random.random(consumer.channels) < 0.5) | (np.arange(consumer.channels) == 0)
        for name, consumer in traced.consumers.items()
        if consumer.prunable.any()
    }


def lines(action: Callable[[], Any]) -> int:
    """How many lines of Python an action runs: a measure of its work that is equal on all machines."""
    count = 0

    def seen(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return seen

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("build", [joined, chain])
def test_twice_the_graph_takes_about_twice_the_work(build: Callable[[int], onnx.ModelProto]) -> None:
    def whole_line(model: onnx.ModelProto) -> None:
        traced = trace(model)
        emit(model, traced, make_plan(traced, halves(traced), Settings()))

    small, large = build(100), build(200)
    whole_line(build(3))  # what is imported and remembered on first use is not counted
    assert lines(lambda: whole_line(large)) < 2.2 * lines(lambda: whole_line(small))


def test_layouts_that_differ_for_one_reader_price_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    priced = []
    prices = block_solver.BlockPrices
    real = prices._price_tensor
    monkeypatch.setattr(prices, "_price_tensor", lambda *given: priced.append(given[1]) or real(*given))
    counts = []
    for readers in (20, 40):
        problems: list[BlockProblem] = []
        traced = trace(trunk(readers))

        def recorded(problem: BlockProblem, _kept: list[BlockProblem] = problems, **_: Any) -> BlockSolution:
            _kept.append(problem)
            return solve_blocks(problem, seconds=0.0)

        monkeypatch.setattr(make, "solve_blocks", recorded)
        make_plan(traced, random_masks(traced), Settings())
        largest = max(problems, key=lambda problem: len(problem.tensors))
        assert len(largest.tensors) >= readers
        priced.clear()
        for layout in block_solver.fixed_layouts(prices(largest)):
            assert layout.us > 0
        counts.append(len(priced))
    assert counts[1] < 3 * counts[0]


def test_nothing_is_searched_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_given: Any, **_named: Any) -> None:
        raise AssertionError("time is up")

    for place, name in ((make, "ordered"), (block_solver, "warm_start"), (block_solver, "solve_master")):
        monkeypatch.setattr(place, name, searched)
    model = trunk(12)
    traced = trace(model)
    masks = random_masks(traced)
    for target in (Target(), Target(contiguity_pays=True)):
        plan = make_plan(traced, masks, Settings(target=target, seconds=0.0))
        decided = plan.segments[traced.consumers["r0"].segment]
        assert decided.status == FEASIBLE
        assert all(set(np.flatnonzero(mask)) <= set(plan.consumers[name].read) for name, mask in masks.items())
        onnx.checker.check_model(emit(model, traced, plan), full_check=True)


def test_no_search_gets_more_time_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    asked: list[tuple[float, float]] = []

    def slow(problem: BlockProblem, *, seconds: float, **_: Any) -> BlockSolution:
        nonlocal now
        asked.append((now, seconds))
        now += 4.0
        return solve_blocks(problem, seconds=0.0)

    monkeypatch.setattr(make, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(make, "solve_blocks", slow)
    traced = trace(chain(6))
    make_plan(traced, halves(traced), Settings(seconds=10.0))
    assert len(asked) >= 5
    assert all(seconds <= max(0.0, 10.0 - start) for start, seconds in asked)
    assert [seconds for start, seconds in asked if start >= 10.0] == [0.0] * sum(start >= 10.0 for start, _ in asked)
    assert asked[0][1] > 0
