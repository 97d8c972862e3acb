"""Budgets through the whole run: what is reached, what the user is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from tests.builders import Array, Net
from tests.models_small import apart, branches, elementwise, latency, sample, single_consumer, write
from ucpe_onnx import DataError, ModelError, Result, UsageError, prune
from ucpe_onnx.cli import main
from ucpe_onnx.report.summary import print_summary
from ucpe_onnx.run import budget as budget_stage


def network() -> onnx.ModelProto:
    """A stem of 32 channels, a residual block, and ten classes."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 8, 8)), 32, 3, name="stem"))
    b = net.op("Relu", net.conv(a, 24, 3, name="left"))
    c = net.op("Relu", net.op("Add", net.conv(b, 32, 3, name="right"), a))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.conv(c, 16, name="head")))
    net.ops("Gemm", pooled, net.weight(net.normal(10, 16)), transB=1, name="fc", outputs=["y"])
    return net.output("y").model()


def run(model: onnx.ModelProto | None = None, **options: Any) -> Result:
    quick = {"bench_seconds": 0.0, "threads": 1, "opt_level": "extended"}
    return prune(network() if model is None else model, **{**quick, **options})


def data(count: int = 48, **more: Array) -> dict[str, Array]:
    return {"x": sample(count), **more}


def told(result: Result) -> str:
    stream = StringIO()
    print_summary(result.report, Console(file=stream, width=200))
    return stream.getvalue()


def shares(result: Result) -> tuple[float, float]:
    """Multiply-accumulates and parameters over the input's."""
    before, after = result.report.before, result.report.after
    assert before.macs and after.macs
    return after.macs / before.macs, after.parameters / before.parameters


# Targets


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, 0.7),
        ({"mode": "constrained"}, 0.5),
        ({"mode": "unconstrained"}, 0.8),
        ({"opt_level": "all"}, 0.7),
        ({"data": data()}, 0.6),
    ],
)
def test_a_share_is_reached(kind: str, options: dict[str, Any], target: float) -> None:
    result = run(**{f"target_{kind}": target}, **options)
    budget, found = result.report.budget, shares(result)[kind == "params"]
    assert budget is not None and (budget.kind, budget.target) == (kind, target)
    assert budget.reached == pytest.approx(found, abs=1e-9)
    assert found <= target * 1.02 and (found >= 0.8 * target or options.get("opt_level") == "all")
    assert f"target {target:.3g} of the input's" in told(result) and f"{found:.3f} reached" in told(result)
    assert result.report.to_dict()["budget"]["reached"] == budget.reached
    assert result.report.mode == options.get("mode", "auto")
    json.dumps(result.report.to_dict()["budget"])


def test_samples_say_what_goes() -> None:
    plain, informed = run(target_macs=0.6), run(target_macs=0.6, data=data())
    assert informed.report.compensation is not None and plain.report.compensation is None
    assert plain.plan.masks().keys() and informed.plan.masks().keys()
    assert any(not np.array_equal(plain.plan.masks().get(n), m) for n, m in informed.plan.masks().items())


def test_limits_are_kept() -> None:
    result = run(target_macs=0.7, ignore=("left",), ratio_for=(("head", 0.25),), max_ratio=0.5)
    kept = {name: float(mask.mean()) for name, mask in result.plan.masks().items()}
    assert "left" not in kept and kept.get("head", 1.0) >= 0.75 and min(kept.values()) >= 0.5


def fixed_latency(found: Callable[[onnx.ModelProto], float], calls: list[Mapping[str, Any]]) -> Callable[..., Any]:
    def measure(models: Mapping[str, onnx.ModelProto], *_: Any, **__: Any) -> Any:
        calls.append(models)
        return latency(*(found(model) for name, model in models.items() if name != "input"), names=models)

    return measure


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Latency is half a constant, half what the weights weigh; returns what was measured."""
    whole = sum(np.prod(t.dims) for t in apart().graph.initializer)
    calls: list[Mapping[str, Any]] = []

    def found(model: onnx.ModelProto) -> float:
        return float(0.5 + 0.5 * sum(np.prod(t.dims) for t in model.graph.initializer) / whole)

    monkeypatch.setattr("ucpe_onnx.run.context.measure", fixed_latency(found, calls))
    return calls


@pytest.mark.parametrize("options", [{}, {"mode": "constrained"}, {"lowering": "gather"}, {"lowering": "union"}])
def test_latency(measured: list[Mapping[str, Any]], options: dict[str, Any]) -> None:
    result = run(apart(), target_latency=0.8, bench_seconds=1.0, **options)
    budget = result.report.budget
    assert budget is not None and budget.kind == "latency" and budget.reached <= 0.8 * 1.02
    assert result.report.faster and len(measured) >= 2
    assert f"target 0.8 of the input's latency: {budget.reached:.3f} reached" in told(result)


def test_latency_that_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ucpe_onnx.run.context.measure", fixed_latency(lambda model: 0.95, []))
    result = run(apart(), target_latency=0.8, bench_seconds=1.0)
    assert result.report.budget is not None and result.report.budget.reached == 0.95
    assert "0.950 reached (not met: nothing nearer was found)" in told(result)


# Accuracy


@pytest.mark.parametrize("labelled", [False, True])
def test_accuracy(labelled: bool) -> None:
    labels = {"labels": np.zeros(48, np.int64)} if labelled else {}
    result = run(max_accuracy_drop=20, data=data(**labels))
    budget = result.report.budget
    assert budget is not None and budget.kind == "macs" and budget.points_lost is not None
    assert budget.points_lost <= 20 and shares(result)[0] < 1
    assert f"{budget.points_lost:.1f} points lost on 12 samples held out" in told(result)


def test_samples_that_judge_are_fitted_to_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out samples a thousand times as large would spoil every statistic that they got into."""
    samples = data()["x"].copy()
    samples[3::4] *= 1e3
    clean = data()["x"].copy()
    clean[3::4] = 0
    monkeypatch.setattr(budget_stage, "output_agreement", lambda *_: 1.0)
    chosen = [run(max_accuracy_drop=10, data={"x": x}, compensate=False).plan.masks() for x in (samples, clean)]
    assert chosen[0].keys() == chosen[1].keys()
    assert all(np.array_equal(mask, chosen[1][name]) for name, mask in chosen[0].items())


def test_more_may_go_if_more_may_be_lost() -> None:
    reached = [shares(run(max_accuracy_drop=drop, data=data()))[0] for drop in (0, 99)]
    assert reached[0] >= reached[1] and reached[1] < 0.35


def test_accuracy_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_stage, "output_agreement", lambda *_: 0.2)
    with pytest.raises(ModelError, match=r"nothing was found that loses at most 1\.5 points; allow more"):
        run(max_accuracy_drop=1.5, data=data())


@pytest.mark.parametrize("few", [data(3), [data(8)] * 3])
def test_samples_that_are_too_few_to_hold_some_out(few: Any) -> None:
    with pytest.raises(DataError, match="every 4th sample is held out"):
        run(max_accuracy_drop=10, data=few)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_macs": 0.5, "target_params": 0.5}, "--target-macs and --target-params exclude each other"),
        ({"target_macs": 0.5, "max_accuracy_drop": 1.0, "data": data()}, "exclude each other: give one target"),
        ({"target_macs": 0.5, "masks": {"left": [0]}}, "--target-macs and --masks exclude each other"),
        ({"target_params": 0.5, "plan": "p.json"}, "--target-params and --plan exclude each other"),
        ({"max_accuracy_drop": 1.0, "data": data(), "masks": {"left": [0]}}, "--masks exclude each other"),
        *(({"target_macs": bad}, rf"--target-macs: {bad} is outside of \(0, 1\)") for bad in (0, 1, 1.5, -0.1)),
        ({"target_latency": float("nan"), "bench_seconds": 1.0}, "--target-latency: nan is outside"),
        ({"target_params": "half"}, "--target-params: half is outside"),
        ({"target_latency": 0.5}, "--target-latency needs to measure: give --bench-seconds above 0"),
        ({"max_accuracy_drop": 1.0}, "--max-accuracy-drop needs samples: give them with --data"),
        *(({"max_accuracy_drop": bad, "data": data()}, f"--max-accuracy-drop: {bad} is no") for bad in (-1, 100, "x")),
    ],
)
def test_usage(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        run(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"target_macs": 0.5}, {"target_params": 0.5}])
@pytest.mark.parametrize("build", [single_consumer, elementwise])
def test_a_model_that_cannot_be_pruned(build: Callable[[], onnx.ModelProto], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"there is nothing to choose from.*ucpe_onnx\.inspect"):
        run(build(), **options)


def test_accuracy_of_a_model_that_cannot_be_pruned() -> None:
    with pytest.raises(UsageError, match="there is nothing to choose from"):
        run(single_consumer(), max_accuracy_drop=5, data={"x": sample(8)[:, :, :8, :8]})
    with pytest.raises(UsageError, match="there is nothing to choose from"):
        run(target_macs=0.5, ignore=("*",))


@pytest.mark.parametrize(("options", "flag"), [({"target_macs": 1e-4}, "macs"), ({"target_params": 1e-4}, "params")])
def test_a_target_out_of_reach(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=rf"--target-{flag} 0\.0001: .* can't be pruned that far"):
        run(**options)


# Again, and from the command line


@pytest.mark.parametrize("options", [{"target_macs": 0.6}, {"target_params": 0.6, "data": data()}])
def test_two_runs_give_one_plan(options: dict[str, Any]) -> None:
    one, other = (run(**options).plan for _ in range(2))
    plain = [{k: v for k, v in plan.to_dict().items() if k != "segments"} for plan in (one, other)]
    assert plain[0] == plain[1]
    assert [s.order for s in one.segments] == [s.order for s in other.segments]


@pytest.fixture
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    write(network(), tmp_path / "in.onnx")
    return tmp_path


@pytest.mark.parametrize("flags", [[], ["--data", "d.npz"]])
def test_command_line(folder: Any, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    np.savez(folder / "d.npz", **data())
    quick = [
        "--bench-seconds",
        "0",
        "--threads",
        "1",
        "--opt-level",
        "extended",
        "--json",
        "j.json",
        "--report",
        "r.html",
    ]
    assert main(["in.onnx", "out.onnx", "--target-macs", "0.7", *quick, *flags]) == 0
    account, out = json.loads((folder / "j.json").read_text()), capsys.readouterr().out
    reached = account["after"]["macs"] / account["before"]["macs"]
    assert account["budget"]["reached"] == pytest.approx(reached)
    assert abs(reached / 0.7 - 1) <= 0.05 or f"{reached:.3f} reached" in out
    assert f"target 0.7 of the input's multiply-accumulates: {reached:.3f} reached" in out
    onnx.checker.check_model(onnx.load("out.onnx"), full_check=True)


def test_command_line_usage(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (
        ["--target-macs", "0.7", "--target-params", "0.5"],
        ["--target-latency", "0.5", "--bench-seconds", "0"],
    ):
        assert main(["in.onnx", "out.onnx", *flags]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1 and not (folder / "out.onnx").exists()


def test_a_saved_plan_repeats_what_a_target_chose(folder: Any) -> None:
    quick = ["--bench-seconds", "0", "--threads", "1", "-q"]
    assert main(["in.onnx", "out.onnx", "--target-params", "0.6", "--save-plan", "p.json", *quick]) == 0
    assert main(["in.onnx", "again.onnx", "--plan", "p.json", *quick]) == 0
    assert (folder / "out.onnx").read_bytes() == (folder / "again.onnx").read_bytes()


def test_branches_without_residuals() -> None:
    result = run(branches(), target_macs=0.5)
    assert shares(result)[0] <= 0.51
