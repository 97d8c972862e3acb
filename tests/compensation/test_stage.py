"""Compensation in a whole run: when it happens, what the plan keeps of it, what is verified, what the user is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.builders import Array, Masked, Net, assert_equal_outputs, run
from tests.models_small import write
from ucpe_onnx import DataError, MaskError, Result, masked_model, prune
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.cli import main
from ucpe_onnx.compensation import stage
from ucpe_onnx.compensation.sequential import LayerFit
from ucpe_onnx.compensation.stage import CompensationOutcome, compensated_plan
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.new_weights import NewWeight, with_weights
from ucpe_onnx.options import Options
from ucpe_onnx.plan import Plan
from ucpe_onnx.run import trials
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.samples.dataset import load_data
from ucpe_onnx.samples.inputs import input_specs

MASKS = {"left": range(14), "right": range(10, 24), "fc": range(6)}


def classifier(batch: int | str = "n", *, normalised: bool = False) -> onnx.ModelProto:
    """A stem of 24 channels that two layers read, whose sum of 8 channels a Gemm reads; from 4 to 8 of each can go."""
    net = Net()
    a = net.conv(net.input("x", (batch, 3, 6, 6)), 24, 3, name="stem", bias=not normalised)
    a = net.op("Relu", net.batch_norm(a) if normalised else a)
    total = net.op("Add", net.conv(a, 8, 3, name="left"), net.conv(a, 8, name="right"))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", total)))
    weight, bias = net.weight(net.normal(4, 8)), net.weight(net.normal(4))
    net.ops("Gemm", pooled, weight, bias, transB=1, name="fc", outputs=["y"])
    return net.output("y").model()


def images(count: int = 60, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)


def pruned(model: onnx.ModelProto, **options: Any) -> Result:
    return prune(model, **{"masks": {n: list(k) for n, k in MASKS.items()}, "bench_seconds": 0, "threads": 1} | options)


def distance(model: onnx.ModelProto, other: onnx.ModelProto, x: Array) -> float:
    return float(np.square(run(model, {"x": x})[0] - run(other, {"x": x})[0]).mean())


def reference(model: onnx.ModelProto, result: Result) -> onnx.ModelProto:
    return masked_model(with_weights(model, result.plan.weights), result.plan.masks())


def values(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# When


def test_with_data_by_default():
    model, x, other = classifier(), images(), images(40, seed=1)
    result = pruned(model, data={"x": x})
    done = result.report.compensation
    assert done is not None and done.taken and done.samples == 60 and not done.note
    assert done.plain is not None and done.compensated is not None and done.compensated < 0.5 * done.plain
    assert [fit.name for fit in done.layers] == ["left", "right", "fc"]
    assert_equal_outputs(result.model, reference(model, result), {"x": other})
    plain = masked_model(model, result.plan.masks())
    assert distance(model, result.model, other) < 0.6 * distance(model, plain, other)
    assert distance(result.model, plain, x) > 0  # another model than without


def test_not_unless_asked_for():
    model = classifier()
    for options in ({"data": {"x": images()}, "compensate": False}, {}):
        result = pruned(model, **options)
        assert result.report.compensation is None and not result.plan.weights
        assert "weights" not in result.plan.to_dict()
        Masked(model, result.plan.masks(), {"x": images(4)}).check(result.model)


def test_not_where_nothing_goes():
    result = pruned(classifier(), data={"x": images()}, masks={})
    assert result.report.compensation is None and not result.plan.weights


def test_without_data_batch_normalisations_tell():
    model = classifier(normalised=True)
    result = pruned(model, compensate=True)
    done = result.report.compensation
    assert done is not None and done.taken and done.samples == 0 and "2 biases" in done.note
    assert "give --data" in done.note and len(result.plan.weights) == 2
    assert_equal_outputs(result.model, reference(model, result), {"x": images(4)})


def test_without_data_and_normalisations_nothing_can_be_done():
    result = pruned(classifier(), compensate=True)
    done = result.report.compensation
    assert done is not None and not done.taken and not result.plan.weights
    assert done.note.startswith("not compensated: without --data")


@pytest.mark.parametrize("mode", ["unconstrained", "constrained"])
@pytest.mark.parametrize("lowering", ["auto", "union", "gather", "slice", "partial"])
def test_any_mode_and_lowering(mode, lowering):
    model = classifier()
    result = pruned(model, data={"x": images(40)}, masks=None, ratio=0.4, mode=mode, lowering=lowering)
    assert result.plan.weights and result.report.verification.passed
    assert_equal_outputs(result.model, reference(model, result), {"x": images(8, seed=2)})


def test_what_is_verified(monkeypatch):
    """The reference holds the plan's weights and masks, on the user's samples too."""
    seen = []
    verify = trials.verify

    def spy(emitted, reference, feeds, *arguments, **options):
        kept = list(feeds)
        seen.append((values(reference), kept))
        return verify(emitted, reference, kept, *arguments, **options)

    monkeypatch.setattr(trials, "verify", spy)
    model = classifier()
    result = pruned(model, data={"x": images(40)})
    wanted = values(reference(model, result))
    assert seen[-1][0].keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(seen[-1][0][name], value)
    assert [len(feed["x"]) for feed in seen[-1][1]] == [1, 1, 1, 2, 3, 32, 8]


def test_the_report_is_of_the_model_that_is_returned():
    data = {"x": images(40), "labels": np.arange(40) % 4}
    account = pruned(classifier(), data=data).report.to_dict()
    json.dumps(account, allow_nan=False)
    found = account["compensation"]
    assert found["samples"] == 40 and found["taken"] is True and found["left"] == {}
    assert [set(layer) for layer in found["layers"]] == [{"name", "ridge", "before", "after"}] * 3
    assert 0 <= account["accuracy"]["after"] <= 1


def test_infinite_errors_are_none_in_json():
    done = CompensationOutcome(3, float("inf"), 0.5, True, (LayerFit("a", None, float("nan"), 1.0),), {"b": "why"})
    assert done.to_dict() == {
        "samples": 3,
        "plain": None,
        "repaired": 0.5,
        "taken": True,
        "layers": [{"name": "a", "ridge": None, "before": None, "after": 1.0}],
        "left": {"b": "why"},
        "note": "",
    }


# Whether it is taken


def staged(model: onnx.ModelProto, x: Any = None) -> tuple[Plan, CompensationOutcome]:
    plan = pruned(model).plan
    data = load_data({"x": images(40)} if x is None else x, input_specs(model))
    return compensated_plan(model, trace(model), plan, data, RunOptions(threads=1))


def test_what_makes_outputs_worse_is_not_taken(monkeypatch):
    monkeypatch.setattr(stage, "output_errors", lambda *_: {"plain": 0.1, "fitted": 0.2})
    plan, done = staged(classifier())
    assert not plan.weights and not done.taken and "would not bring the outputs nearer" in done.note


def test_outputs_that_tell_nothing_leave_it_to_the_layers(monkeypatch):
    monkeypatch.setattr(stage, "output_errors", lambda *_: {"plain": float("nan"), "fitted": float("nan")})
    plan, done = staged(classifier())
    assert plan.weights and done.taken and done.plain is done.compensated is None


def test_a_model_that_cant_be_taken_apart_is_pruned_all_the_same(monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ModelError("a part of the model can't be run by itself: so be it")

    monkeypatch.setattr(stage, "compensate", fail)
    result = pruned(classifier(), data={"x": images(8)})
    done = result.report.compensation
    assert done is not None and done.note.startswith("not compensated: a part of the model") and not done.taken
    assert result.report.verification.passed


def test_layers_that_are_all_left_say_why():
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("n", 3, 6, 6)), 8, 3, name="a"))
    weight = net.weight(net.normal(8, 8, 1, 1))
    b = net.conv_with(net.op("Relu", net.conv_with(a, weight, name="b")), weight, name="c")
    result = pruned(net.output(b).model(), masks={"b": [0, 1, 2]}, data={"x": images(8)})
    done = result.report.compensation
    assert done is not None and done.note == "not compensated: b: its weight is shared"


# Plans


def test_a_plan_repeats_it_bit_for_bit(tmp_path):
    model = write(classifier(), tmp_path / "in.onnx")
    first = pruned(model, data={"x": images(40)})
    first.plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == first.plan and first.plan.weights
    for plan, options in ((first.plan, {}), (tmp_path / "p.json", {"data": {"x": images(8, seed=3)}})):
        again = prune(model, plan=plan, bench_seconds=0, threads=1, **options)
        assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)
        assert again.plan.weights == first.plan.weights


def test_it_repeats_itself():
    model = classifier()
    first, again = (pruned(model, data={"x": images(40)}).plan.weights for _ in range(2))
    assert first == again


@pytest.fixture
def planned(tmp_path, monkeypatch) -> tuple[Path, dict[str, Any]]:
    """A folder with a model and samples, and its plan as data."""
    monkeypatch.chdir(tmp_path)
    write(classifier(), tmp_path / "in.onnx")
    np.savez(tmp_path / "d.npz", x=images(16))
    result = pruned(tmp_path / "in.onnx", data={"x": images(16)})
    return tmp_path, json.loads(json.dumps(result.plan.to_dict()))


def damaged(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    name = next(iter(raw["weights"]))
    return {**raw, "weights": {**raw["weights"], name: {**raw["weights"][name], **changes}}}


def test_damaged_weights_are_told(planned, capsys):
    folder, raw = planned
    without = {k: {"shape": v["shape"]} for k, v in raw["weights"].items()}
    for bad in (
        damaged(raw, shape=[1]),
        damaged(raw, float32="!"),
        damaged(raw, float32=None),
        {**raw, "weights": without},
        {**raw, "weights": [1]},
        {**raw, "weights": {"w": 3}},
    ):
        with pytest.raises(MaskError, match="not a valid plan"):
            Plan.from_dict(bad)
        (folder / "p.json").write_text(json.dumps(bad), encoding="utf-8")
        assert main(["in.onnx", "out.onnx", "--plan", "p.json", "--bench-seconds", "0"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: p.json: not a valid plan") and error.count("\n") == 1
    assert sorted(os.listdir(folder)) == ["d.npz", "in.onnx", "p.json"]


def test_weights_of_another_model_are_told(planned, capsys):
    folder, raw = planned
    weight = NewWeight.of(np.zeros((2, 2))).to_dict()
    for weights in ({"nothing": weight}, {next(iter(raw["weights"])): weight}):
        (folder / "p.json").write_text(json.dumps({**raw, "weights": weights}), encoding="utf-8")
        assert main(["in.onnx", "out.onnx", "--plan", "p.json", "--bench-seconds", "0"]) == 1
        error = capsys.readouterr().err
        assert "don't fit: the model has no such float32 initializer" in error and error.count("\n") == 1
    assert sorted(os.listdir(folder)) == ["d.npz", "in.onnx", "p.json"]


# Samples


def test_one_sample():
    model = classifier()
    result = pruned(model, data={"x": images(1)})
    done = result.report.compensation
    assert done is not None and done.samples == 1 and "1 sample, too few to hold any out" in done.note
    assert_equal_outputs(result.model, reference(model, result), {"x": images(4)})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_samples(value):
    model = classifier()
    result = pruned(model, data={"x": np.full((8, 3, 6, 6), value, np.float32)})
    assert_equal_outputs(result.model, reference(model, result), {"x": images(4)})


@pytest.mark.parametrize("count", [3, 20])
def test_a_fixed_batch_that_samples_do_not_fill(count):
    model = classifier(8)
    result = pruned(model, data={"x": images(count)})
    done = result.report.compensation
    assert done is not None and done.samples == count and done.taken
    assert_equal_outputs(result.model, reference(model, result), {"x": images(8)})


def test_feeds_of_several_inputs_that_share_no_axis():
    net = Net()
    factor, x = net.input("factor", (1,)), net.input("x", ("n", 6))
    y = net.op("Relu", net.gemm(net.op("Mul", x, factor), 16, name="a"))
    net.ops("Gemm", y, net.weight(net.normal(16, 4)), net.weight(net.normal(4)), name="b", outputs=["y"])
    model = net.output("y").model()
    random = np.random.default_rng(0)
    feeds = [
        {"factor": np.array([2.0], np.float32), "x": random.standard_normal((20, 6)).astype(np.float32)}
        for _ in range(6)
    ]
    result = pruned(model, data=feeds, masks={"b": list(range(12))})
    done = result.report.compensation
    assert done is not None and done.taken and done.samples == 6
    assert_equal_outputs(result.model, reference(model, result), feeds[0])


def test_nan_names_the_data_and_nothing_is_written(planned, capsys):
    folder, _ = planned
    x = images(40)
    x[35, 1, 2, 3] = np.nan
    np.savez(folder / "nan.npz", x=x)
    before = sorted(os.listdir(folder))
    arguments = ["--data", "nan.npz", "--mode", "unconstrained", "--save-plan", "p.json", "--bench-seconds", "0"]
    assert main(["in.onnx", "out.onnx", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "input 'x' is NaN or infinite on sample 35 of nan.npz" in error
    assert "leave that sample out" in error and sorted(os.listdir(folder)) == before


def test_infinities_within_the_network_name_the_tensor():
    x = images(40)
    x[35] = np.inf
    with pytest.raises(DataError, match=r"tensor '\w+' is NaN or infinite on sample 35 of the data"):
        pruned(classifier(), data={"x": x})


def test_labels_do_not_matter_to_the_fit():
    model, x = classifier(), images(40)
    without = pruned(model, data={"x": x})
    assert without.report.accuracy is None
    for labels in (np.arange(40) % 4, np.zeros(40, np.int64)):
        found = pruned(model, data={"x": x, "labels": labels})
        assert found.plan.weights == without.plan.weights
        assert found.report.accuracy is not None
    for labels in (np.full(40, 99), np.full(40, -1)):
        with pytest.raises(DataError, match="but the model knows classes 0 to 3"):
            pruned(model, data={"x": x, "labels": labels})


def test_accuracy_is_of_the_test_data():
    model, x, other = classifier(), images(40), images(24, seed=1)
    labels = run(model, {"x": other})[0].argmax(axis=1)
    found = pruned(model, data={"x": x}, test_data={"x": other, "labels": labels})
    accuracy = found.report.accuracy
    assert accuracy is not None and accuracy["before"] == 1.0
    assert accuracy["after"] == np.mean(run(found.model, {"x": other})[0].argmax(axis=1) == labels)


def test_models_with_only_classes_as_output():
    net = Net()
    y = net.op("Relu", net.gemm(net.input("x", ("n", 6)), 16, name="a"))
    y = net.op("Gemm", y, net.weight(net.normal(16, 4)), net.weight(net.normal(4)), name="b")
    net.ops("ArgMax", y, axis=1, keepdims=0, outputs=["y"], elem_type=TensorProto.INT64, shapes=[("n",)])
    model = net.output("y").model()
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    done = pruned(model, data={"x": x}, masks={"b": list(range(9))}).report.compensation
    assert done is not None and done.plain is not None and done.compensated is not None
    assert done.taken == (done.compensated < done.plain)


def test_a_model_with_external_data(tmp_path, monkeypatch):
    """Offloaded weights are replaced like others."""
    monkeypatch.setattr("ucpe_onnx.model.offload.LEAST_MODEL", 0)
    monkeypatch.setattr("ucpe_onnx.model.offload.LEAST_TENSOR", 64)
    model = classifier()
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        str(tmp_path / "in.onnx"),
        save_as_external_data=True,
        location="weights",
        size_threshold=64,
    )
    result = pruned(tmp_path / "in.onnx", data={"x": images(40)})
    assert result.plan.weights == pruned(model, data={"x": images(40)}).plan.weights
    assert_equal_outputs(result.model, reference(model, result), {"x": images(4)})


def test_options_are_kept_in_the_plan():
    assert Options().compensate is None
    recorded = pruned(classifier(), data={"x": images(8)}, compensate=True).plan.options
    assert recorded["compensate"] is True
