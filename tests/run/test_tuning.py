"""Lowerings chosen by timing: what is timed, and what is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.builders import Masked, Net, feeds_for
from tests.models_small import latency
from ucpe_onnx import prune
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.model.offload import Offload
from ucpe_onnx.options import Options
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.run import tuning
from ucpe_onnx.run.tuning import Tuner


def two_forks() -> onnx.ModelProto:
    """Two tensors of 64 channels, each with two readers."""
    net = Net()
    x = net.input("x", (1, 16, 16, 16))
    outputs = []
    for fork in "ab":
        made = net.op("Relu", net.conv(x, 64, 3, name=fork))
        outputs += [net.conv(made, 32, 3, name=f"{fork}{side}") for side in "lr"]
    return net.output(*outputs).model()


def masks() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.random(64) < 0.5 for name in ("al", "ar", "bl", "br")}


@pytest.fixture
def job(monkeypatch):
    """A tuner, what it starts from, the models that it times, and what they are found to take."""
    model = two_forks()
    traced, settings = trace(model), Settings()
    plan = make_plan(traced, masks(), settings)
    seen: list[dict[str, onnx.ModelProto]] = []
    found: dict[str, float] = {}

    def measure(models, *_, **__):
        seen.append(dict(models))
        others = list(models)[1:]
        return latency(*[found.get("first" if name == others[0] else "", 1.2) for name in others], names=models)

    monkeypatch.setattr(tuning, "measure", measure)
    with Offload() as offload:
        tuner = Tuner(model, traced, feeds_for(model), Options(bench_seconds=1.0), offload)
        yield tuner, plan, settings, seen, found


def test_every_segment_with_alternatives_is_timed_and_nothing_slower_is_taken(job) -> None:
    tuner, plan, settings, seen, _ = job
    tuned, steps = tuner.tuned(plan, masks(), settings, None)
    assert tuned == plan and len(seen) == 2
    assert {step.segment for step in steps} == {
        tuner.traced.consumers["al"].segment,
        tuner.traced.consumers["bl"].segment,
    }
    assert not any(step.taken for step in steps) and all(step.measured_us == 200 for step in steps)


def test_the_alternative_that_is_measured_to_be_faster_is_taken(job) -> None:
    tuner, plan, settings, seen, found = job
    found["first"] = 0.8
    tuned, steps = tuner.tuned(plan, masks(), settings, None)
    first, second = seen
    taken = [step.lowering for step in steps if step.taken]
    assert taken == [list(first)[1], list(second)[1]]
    emitted = emit(tuner.model, tuner.traced, tuned)
    Masked(tuner.model, masks()).check(emitted)
    assert second[""].SerializeToString() == first[taken[0]].SerializeToString(), (
        "what was taken stays for the next one"
    )


def test_no_gain_beyond_doubt_changes_nothing(job) -> None:
    tuner, plan, settings, _, found = job
    found["first"] = 0.995  # the interval reaches 1.005
    assert tuner.tuned(plan, masks(), settings, None)[0] == plan


def test_time_is_bounded(job) -> None:
    tuner, plan, settings, seen, found = job
    found["first"] = 0.5
    hurried = replace(tuner, options=replace(tuner.options, bench_seconds=1e-9))
    assert hurried.tuned(plan, masks(), settings, None) == (plan, ()) and not seen


def test_the_whole_job_reports_what_it_tried() -> None:
    result = prune(two_forks(), masks=masks(), measure=True, bench_seconds=0.05, threads=1)
    steps = result.report.to_dict()["tuning"]
    assert steps and all(np.isfinite([step["predicted_us"], step["measured_us"]]).all() for step in steps)
    assert result.report.verification.passed
