"""The Python function: its stages, its candidates, what it verifies on and what it reports."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.builders import Net
from tests.models_small import apart, branches, elementwise, latency, sample, wide
from ucpe_onnx import DataError, prune
from ucpe_onnx.run import context, trials
from ucpe_onnx.runtime.verify import verify


@pytest.fixture
def measured(monkeypatch):
    """Decide what each measurement finds, in their order: a ratio for all candidates, or one for each."""

    def decide(*ratios: float | tuple[float, ...]) -> None:
        left = list(ratios)

        def measure(models, *_, **__):
            found = left.pop(0)
            return latency(*(found if isinstance(found, tuple) else (found,)), names=models)

        monkeypatch.setattr(context, "measure", measure)

    return decide


# Candidates


def test_auto_stops_at_the_first_candidate_that_is_faster(measured):
    measured(0.9)
    result = prune(wide())
    assert result.report.mode == "unconstrained" and result.report.faster


def test_auto_tries_constrained_if_unconstrained_is_not_faster(measured):
    measured(1.1, 0.9)
    result = prune(wide(), ratio=0.5)
    assert result.report.mode == "constrained" and result.report.faster and result.report.speed.ratio == 0.9
    alone = prune(wide(), ratio=0.5, mode="constrained", bench_seconds=0)
    assert result.plan.masks().keys() == alone.plan.masks().keys()
    assert all((result.plan.masks()[name] == mask).all() for name, mask in alone.plan.masks().items())


@pytest.mark.parametrize(("ratios", "mode"), [((1.1, 1.2), "unconstrained"), ((1.2, 1.1), "constrained")])
def test_auto_returns_the_least_slow_if_none_is_faster(measured, ratios, mode):
    measured(*ratios)
    report = prune(wide()).report
    assert (report.mode, report.faster, report.speed.ratio) == (mode, False, 1.1)


@pytest.mark.parametrize("options", [{"mode": "unconstrained"}, {"mode": "constrained"}, {"masks": {"left": [0]}}])
def test_what_was_asked_for_has_no_second_candidate(measured, options):
    measured(1.1)  # a second measurement would find nothing to pop
    assert not prune(wide(), **options).report.faster


@pytest.mark.parametrize(("found", "layout"), [((0.8, 0.7), "simple"), ((0.8, 0.9), "auto"), ((0.8, 0.799), "auto")])
def test_the_simple_layout_wins_only_if_it_is_clearly_faster(measured, found, layout):
    """Two consumers that share nothing: two blocks against a copy for each."""
    measured(found)
    report = prune(apart(), masks={"b": list(range(32)), "c": list(range(32, 64))}).report
    assert (report.layout == "auto") == (layout == "auto")
    assert report.speed.ratio == found[layout == "simple"]
    assert set(report.latency.candidates) >= {"input", "output"} and len(report.latency.candidates) == 4


def test_with_allow_slower_the_masks_in_the_input_layout_win_if_nothing_else_is_fast(measured):
    measured(1.3, 1.0)
    result = prune(wide(), masks={"left": [0]}, allow_slower=True)
    assert result.report.layout == "input layout" and result.report.speed.ratio == 1.0
    assert {name: np.flatnonzero(mask).tolist() for name, mask in result.plan.masks().items()} == {"left": [0]}
    assert result.report.after.parameters == result.report.before.parameters


def test_with_allow_slower_what_was_asked_for_stays_if_it_is_the_fastest(measured):
    measured(1.1, 1.2)
    result = prune(wide(), masks={"left": [0]}, allow_slower=True)
    assert result.report.layout != "input layout" and result.report.speed.ratio == 1.1


# Stages


def test_stages_are_announced_in_order_and_timed():
    stages = []
    result = prune(wide(), bench_seconds=0, progress=stages.append)
    assert stages == ["load", "analyse", "score", "plan", "emit", "verify", "measure", "report"]
    assert set(result.report.seconds) == set(stages) and all(s >= 0 for s in result.report.seconds.values())


# Verification


def fed(monkeypatch) -> list:
    """The feeds that a run verifies on."""
    seen: list = []

    def spy(emitted, reference, feeds, *rest, **options):
        seen.extend(feeds)
        return verify(emitted, reference, seen, *rest, **options)

    monkeypatch.setattr(trials, "verify", spy)
    return seen


def test_verified_on_random_inputs_and_on_the_data(monkeypatch):
    seen = fed(monkeypatch)
    prune(branches(), bench_seconds=0)
    assert [len(feed["x"]) for feed in seen] == [1, 1, 1, 2, 3], "the batch is open"
    assert not any(np.array_equal(a["x"], b["x"]) for a, b in pairwise(seen))
    del seen[:]
    data = sample(100)
    prune(branches(), data={"x": data}, compensate=False, bench_seconds=0)
    assert [len(feed["x"]) for feed in seen] == [1, 1, 1, 2, 3, 32, 32]
    np.testing.assert_array_equal(seen[0]["x"], data[:1])
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in seen[5:]]), data[:64])


def test_random_inputs_that_the_model_does_not_run_on_are_left_out(monkeypatch):
    """An input that is a position, a length or a shape takes few values: the user's data has them."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 16, name="a")
    b = net.op("Flatten", net.op("GlobalAveragePool", net.conv(a, 16, name="b")))
    net.input("shape", (2,), TensorProto.INT64)
    net.ops("Reshape", b, "shape", allowzero=1, outputs=["y"], shapes=[("n", "m")])
    model = net.output("y").model()
    data = {"x": sample(2)[:1, :, :4, :4], "shape": np.array([4, 4])}
    seen = fed(monkeypatch)
    result = prune(model, data=[data], masks={"b": [0, 1, 2]}, compensate=False, bench_seconds=0)
    assert result.report.verification.passed and len(seen) == 2
    assert all(feed["shape"].tolist() == [4, 4] for feed in seen)


def test_tolerances_are_passed_on():
    def bound(**tolerances):
        return prune(wide(), bench_seconds=0, **tolerances).report.verification.worst.worst.bound

    assert bound(rtol=0, atol=7) == 7
    assert bound(rtol=0.5, atol=0) == pytest.approx(2 * bound(rtol=0.25, atol=0))


# Report


def test_the_report_counts():
    report = prune(wide(), mode="constrained", ratio=0.5, bench_seconds=0).report
    assert report.kept == pytest.approx((3 + 3 * 32) / (3 + 3 * 64))
    assert [s.frozen for s in report.segments] == [3, 0, 0, 5]
    assert [(s.slots, s.emitted) for s in report.segments] == [(3, 3), (64, 32), (64, 32), (5, 5)]
    assert report.segments[1].producers == ("stem", "right") and report.segments[1].consumers == ("left", "head")
    weights = 3 * 32 * 9 + 2 * 32 * 32 + 32 * 5 + 3 * 32 + 5
    assert report.after.parameters == weights and report.copies_added() == {}
    assert report.after.macs == 64 * (3 * 32 * 9 + 2 * 32 * 32 + 32 * 5)


def test_copies_are_counted():
    masks = {"left": list(range(0, 64, 2)), "head": list(range(1, 64, 2))}
    report = prune(wide(), masks=masks, lowering="gather", bench_seconds=0).report
    assert sum(report.copies_added().values()) == report.after.nodes - report.before.nodes > 0


def test_accuracy_before_and_after():
    data = 10 * sample(40)
    logits = onnx_outputs(wide(), data)
    labels = logits.argmax(1)
    masks = {name: [0] for name in ("left", "right", "head")}
    accuracy = prune(wide(), data={"x": data, "labels": labels}, masks=masks, bench_seconds=0).report.accuracy
    assert accuracy["before"] == 1.0 > accuracy["after"]
    assert prune(wide(), data={"x": data}, bench_seconds=0).report.accuracy is None


def onnx_outputs(model: onnx.ModelProto, data: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": row[None]})[0].reshape(1, -1) for row in data])


def test_labels_that_do_not_fit_fail_before_any_work():
    stages = []
    data = {"x": sample(2), "labels": np.array([0.5, 1.5])}
    with pytest.raises(DataError, match="class id per sample"):
        prune(wide(), data=data, bench_seconds=0, progress=stages.append)
    assert stages == ["load"]


# Models at the edge


def test_a_model_without_consumers_comes_back_as_it_was():
    model = elementwise()
    result = prune(model, bench_seconds=0)
    assert result.plan.consumers == {} and result.report.kept == 1.0
    assert [n.op_type for n in result.model.graph.node] == ["Relu"]


def test_a_model_without_inputs():
    net = Net()
    x = net.constant(np.ones((1, 8, 2, 2), np.float32))
    noise = net.op("RandomUniformLike", x, seed=1.0)
    a = net.conv(net.op("Mul", noise, net.weight(np.zeros((1, 8, 2, 2)))), 16, name="a")
    model = net.output(net.conv(a, 4, name="b")).model()
    assert prune(model, masks={"b": [0, 5]}, bench_seconds=0).report.verification.passed


def test_symbolic_dimensions_and_metadata_survive():
    model = branches()
    helper.set_model_props(model, {"author": "someone"})
    model.doc_string = "text"
    result = prune(model, ratio=0.5, mode="unconstrained", bench_seconds=0).model
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert (result.metadata_props[0].value, result.doc_string) == ("someone", "text")
    assert list(result.opset_import) == list(model.opset_import) and result.ir_version == model.ir_version


def test_progress_and_objects_as_data():
    class Reader:
        def __init__(self):
            self.left = 2

        def get_next(self):
            self.left -= 1
            return {"x": sample(1)} if self.left >= 0 else None

    result = prune(branches(), data=Reader(), bench_seconds=0)
    assert result.report.verification.feeds == 7 and result.plan.options["data"] == "<Reader>"
