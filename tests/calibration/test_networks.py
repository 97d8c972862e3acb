"""Kernels within networks: their work, and times told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucpe_onnx.calibration import timing
from ucpe_onnx.calibration.chain import Chain
from ucpe_onnx.calibration.networks import Profile, kernel_work, networks, timed_kernels
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import TARGETS, target_for

ONE = RunOptions(threads=1)


@pytest.mark.parametrize("level, precision", [("all", "float32"), ("extended", "float32"), ("all", "int8")])
def test_onnxruntime_runs_the_kernels_that_networks_note(level: str, precision: str) -> None:
    """In this very order: else times would be those of other kernels, or left out."""
    target, options = target_for([], level, precision), RunOptions(threads=1, opt_level=level)
    chains = list(networks(target))
    profiles = timing.profile_graphs([chain.model() for chain in chains], options, 0.0)
    work, times = timed_kernels(chains, profiles)
    assert len(work) == len(times) == sum(len(kernel_work(chain)) for chain in chains) > 300
    assert np.isfinite(times).all() and (times > 0).all()


def two_layers(precision: str = "float32") -> Chain:
    chain = Chain(TARGETS["cpu" if precision == "float32" else "cpu-int8"], 16, 4)
    chain.conv(32)
    chain.gather()
    return chain


def test_a_network_that_ran_otherwise_is_left_out() -> None:
    right = Profile(("Conv", "Gather"), np.array([7.0, 5.0]))
    wrong = Profile(("Gather", "Conv"), np.array([7.0, 5.0]))
    more = Profile(("Conv", "Gather", "Gather"), np.array([7.0, 5.0, 3.0]))
    work, times = timed_kernels([two_layers()] * 4, [wrong, right, None, more])
    assert [entry[0][0] for entry in work] == ["plain", "gather"]
    assert times.tolist() == [7.0, 5.0]


def test_the_transposes_around_a_quantised_selection_are_part_of_it() -> None:
    profile = Profile(
        ("QuantizeLinear", "Transpose", "QLinearConv", "Transpose", "Gather", "Transpose", "DequantizeLinear"),
        np.array([1.0, 2.0, 40.0, 5.0, 3.0, 4.0, 1.0]),
    )
    _, times = timed_kernels([two_layers("int8")], [profile])
    assert times.tolist() == [40.0, 12.0]


def test_what_the_profiler_adds_is_taken_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two kernels that seem to take 12 and 6 us, of a graph that takes 14 us without the profiler."""

    class Clock:
        now = 0.0

    class FakeSession:
        def __init__(self, profile: str | None) -> None:
            self.profile, self.runs = profile, 0

        def run(self, *_: object) -> None:
            self.runs += 1
            Clock.now += 14e-6

        def end_profiling(self) -> str:
            events: list[dict[str, Any]] = [{"cat": "Session", "name": "model_run", "dur": 99}]
            for run in range(self.runs):
                cold = 100 if run == 0 else 0
                events += [
                    {"cat": "Node", "name": "a_fence_before", "dur": 0},
                    {"cat": "Node", "name": "a_kernel_time", "dur": 12 + cold, "args": {"op_name": "Conv"}},
                    {"cat": "Node", "name": "b_kernel_time", "dur": 6 + cold, "args": {"op_name": "Gather"}},
                ]
            path = tmp_path / "events.json"
            path.write_text(json.dumps(events))
            return str(path)

    monkeypatch.setattr(timing, "make_session", lambda *_, profile=None, **__: FakeSession(profile))
    (found,) = timing.profile_graphs([two_layers().model()], ONE, 1.0, clock=lambda: Clock.now)
    assert found is not None and found.ops == ("Conv", "Gather")
    assert found.us == pytest.approx([10.0, 4.0])
