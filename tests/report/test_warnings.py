"""What a user is told before deploying the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.builders import Net
from tests.models_small import apart, latency
from tests.report.test_summary import printed
from tests.run.test_budget import fixed_latency
from ucpe_onnx import Result, UsageError, prune
from ucpe_onnx.report.html import render_html


def run(model: Any = None, **options: Any) -> Result:
    return prune(model or apart(), **{"bench_seconds": 0, **options})


def samples(count: int, labels: bool = True) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    given = {"x": random.standard_normal((count, 8, 4, 4)).astype(np.float32)}
    return {**given, "labels": random.integers(0, 3, count)} if labels else given


def classifier() -> Any:
    net = Net()
    x = net.op("Relu", net.conv(net.input(), 16, name="first"))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 16, name="second"))))
    return net.output(net.gemm(x, 3, name="head")).model()


def quantised() -> Any:
    net = Net()
    one, zero = net.weight(np.float32(0.1)), net.weight(np.int8(0))
    x = net.input()
    for width in (16, 16, 8):
        shape = (width, net.shapes[x][1], 1, 1)
        weight = net.weight(np.random.default_rng(0).integers(-90, 90, shape).astype(np.int8))
        x = net.op("Conv", x, net.op("DequantizeLinear", weight, one, zero))
    return net.output(x).model()


def the_one(result: Result, words: str) -> str:
    (found,) = (text for text in result.report.warnings if words in text)
    assert result.report.to_dict()["warnings"] == list(result.report.warnings)
    assert f"warning: {found}" in " ".join(printed(result.report, 1000).splitlines())
    page = render_html(result.report, result.plan)
    assert "Before you deploy it" in page
    return found


def test_nobody_has_looked_at_accuracy(tmp_path):
    assert "--data" in the_one(run(ratio=0.5), "accuracy was not looked at")
    kept = {"second": np.arange(16) < 8}
    np.savez(tmp_path / "plain.npz", **samples(16, labels=False))
    result = run(classifier(), masks=kept, data=tmp_path / "plain.npz")
    assert "the samples have no labels" in the_one(result, "accuracy was not looked at")
    np.savez(tmp_path / "labelled.npz", **samples(16))
    result = run(classifier(), masks=kept, lowering="union", data=tmp_path / "labelled.npz")
    assert result.report.warnings == () and result.plan.masks()
    assert "--data" not in the_one(run(classifier(), masks=kept), "accuracy was not looked at")


def test_nothing_is_said_where_nothing_was_removed():
    result = run(ratio=0.0)
    assert result.report.warnings == () and result.report.to_dict()["warnings"] == []
    assert "Before you deploy it" not in render_html(result.report, result.plan)


def test_a_repeated_plan_says_nothing_of_accuracy():
    assert run(plan=run(ratio=0.5).plan).report.warnings == ()


def test_quantised_models_are_pruned_before_they_are_quantised():
    assert "prune the float model" in the_one(run(quantised(), ratio=0.5), "quantised")
    assert not any("quantised" in text for text in run(ratio=0.5).report.warnings)


@pytest.mark.parametrize(("drop", "warned"), [(5.0, True), (20.0, False)])
def test_too_few_samples_for_the_points_that_may_be_lost(tmp_path, drop, warned):
    """Of 40 samples 10 judge: each is 10 points."""
    np.savez(tmp_path / "s.npz", **samples(40))
    result = run(classifier(), max_accuracy_drop=drop, data=tmp_path / "s.npz")
    assert result.report.budget is not None and result.report.budget.held_out == 10
    if warned:
        assert "10 samples held out tell accuracy in steps of 10 points" in the_one(result, "held out")
    else:
        assert not any("held out" in text for text in result.report.warnings)


def test_a_file_that_grew():
    """Both readers get a producer of their own."""
    net = Net()
    x = net.op("Relu", net.conv(net.input(), 64, k=3, name="made"))
    model = net.output(net.conv(x, 4, name="left"), net.conv(x, 4, name="right")).model()
    result = run(model, masks={"left": np.arange(64) < 60, "right": np.arange(64) > 4}, lowering="duplicate")
    assert result.report.after.bytes > result.report.before.bytes + 4096
    assert "larger than the input: layers that need different channels" in the_one(result, "larger")


@pytest.mark.parametrize(("ratio", "warned"), [(0.98, True), (0.72, False)])
def test_work_that_does_not_become_time(monkeypatch, ratio, warned):
    monkeypatch.setattr("ucpe_onnx.run.context.measure", fixed_latency(lambda model: ratio, []))
    result = run(target_macs=0.7, bench_seconds=1.0)
    if warned:
        assert "of the multiply-accumulates, but x0.98 of the time" in the_one(result, "--target-latency")
    else:
        assert not any("--target-latency" in text for text in result.report.warnings)


@pytest.mark.parametrize("target", ["target_latency", "target_macs", "target_params", "max_accuracy_drop"])
def test_a_ratio_beside_a_target_is_an_error(target):
    with pytest.raises(UsageError, match=f"--ratio and --{target.replace('_', '-')} exclude each other"):
        run(ratio=0.25, bench_seconds=1.0, data=samples(8), **{target: 0.7})


def test_warnings_stand_at_the_end_of_the_summary():
    report = run(ratio=0.5).report
    text = printed(replace(report, latency=latency(0.8)))
    assert text.index("latency: ratio of medians") < text.index("warning: accuracy")
