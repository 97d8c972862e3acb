"""Timing in turns, with a made-up clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ucpe_onnx.calibration import timing
from ucpe_onnx.calibration.cases import cases_for
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import TARGETS


class Machine:
    """A clock that only runs of graphs move; each third run is disturbed, and the first one of all is cold."""

    def __init__(self, seconds: list[float | None]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.made = 0
        self.order: list[int] = []

    def session(self, *_: Any, **__: Any) -> Any:
        index, self.made = self.made, self.made + 1
        if self.seconds[index] is None:
            raise ModelError("not supported")
        machine = self

        class FakeSession:
            def run(self, *_: object) -> None:
                machine.order.append(index)
                count = machine.order.count(index)
                disturbed = 50.0 if count == 1 else 4.0 if count % 3 == 0 else 1.0
                machine.now += disturbed * (machine.seconds[index] or 0)

        return FakeSession()

    def clock(self) -> float:
        return self.now


def run(machine: Machine, monkeypatch: pytest.MonkeyPatch, seconds: float = 1.0) -> tuple[np.ndarray, list[float]]:
    monkeypatch.setattr(timing, "make_session", machine.session)
    graph = cases_for(TARGETS["cpu"])[0].chain(TARGETS["cpu"], 1).model()
    shares: list[float] = []
    times = timing.time_graphs(
        [graph] * len(machine.seconds), RunOptions(), seconds, shares.append, clock=machine.clock
    )
    return times, shares


def test_disturbed_and_cold_runs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times, shares = run(Machine([0.001, 0.003]), monkeypatch)
    assert times == pytest.approx([0.001, 0.003])
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


def test_a_graph_that_does_not_load_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    times, _ = run(Machine([0.001, None, 0.002]), monkeypatch)
    assert np.isnan(times[1]) and times[[0, 2]] == pytest.approx([0.001, 0.002])


def test_graphs_take_turns_in_changing_order_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine([0.001, 0.001, 0.001])
    run(machine, monkeypatch, seconds=0.5)
    rounds = np.array(machine.order).reshape(-1, 3)
    assert (np.sort(rounds, axis=1) == [0, 1, 2]).all()
    assert len(np.unique(rounds, axis=0)) > 3
    assert 0.5 <= machine.now < 0.6


def test_a_slow_machine_gets_a_few_rounds_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine([10.0])
    run(machine, monkeypatch, seconds=1.0)
    assert len(machine.order) == timing.FEWEST_ROUNDS
