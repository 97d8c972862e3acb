import json
import weakref

import numpy as np
import pytest

from tests.runtime.builders import FakeSession, giving, linear, make_model, node, unary, value
from ucpe_onnx.errors import DataError, ModelError, VerificationError
from ucpe_onnx.runtime.session import RunOptions, make_session
from ucpe_onnx.runtime.verify import verify

WEIGHT = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
FEEDS = [{"x": np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)} for seed in range(3)]


def test_equal_models_pass():
    result = verify(linear(WEIGHT), make_session(linear(WEIGHT)), iter(FEEDS), RunOptions(opt_level="basic"))
    assert result.passed and result.feeds == 3 and [check.name for check in result.outputs] == ["y"]
    result.raise_if_failed("out.onnx")


def test_tolerances_reach_the_comparison():
    nearly = linear(WEIGHT + np.float32(1e-3))
    assert not verify(nearly, linear(WEIGHT), FEEDS).passed
    assert verify(nearly, linear(WEIGHT), FEEDS, rtol=1e-2, atol=1e-2).passed


def test_failure_names_output_error_bound_and_feed():
    feeds = [{"x": np.float32([[scale]])} for scale in (1, 1, 5, 1)]
    emitted = FakeSession(lambda feed: [feed["x"], np.where(feed["x"] > 4, 6, feed["x"]).astype("f")], ["good", "bad"])
    reference = FakeSession(lambda feed: [feed["x"], feed["x"]], ["good", "bad"])
    result = verify(emitted, reference, feeds)
    assert [check.worst.passed for check in result.outputs] == [True, False]
    with pytest.raises(VerificationError) as error:
        result.raise_if_failed("out.onnx")
    text = str(error.value)
    assert text.startswith("out.onnx: output 'bad' differs by 1, more than the bound 0.0005, on feed 2;")
    assert "--rtol/--atol" in text and "\n" not in text


def test_failure_without_an_error_gives_the_reason_and_no_tolerance():
    with pytest.raises(
        VerificationError, match=r"output 'y0' has NaN or .* on feed 0; .*: don't use the emitted model$"
    ):
        verify(giving(np.float32([np.nan])), giving(np.float32([1])), FEEDS).raise_if_failed("out.onnx")


def test_result_is_json():
    failed = verify(giving(np.float32([1]), np.int64([1])), giving(np.float32([1]), np.int64([2])), FEEDS).to_dict()
    assert json.loads(json.dumps(failed, allow_nan=False)) == failed
    assert failed["passed"] is False and failed["feeds"] == 3
    assert failed["outputs"][0] == {"name": "y0", "passed": True, "error": 0, "bound": 1e-4, "problem": "", "feed": 0}
    assert failed["outputs"][1]["error"] is None and "not equal" in failed["outputs"][1]["problem"]


def test_sequence_outputs_of_onnxruntime():
    model = make_model([node("SplitToSequence", "x", "s", axis=0), node("Identity", "s")], [value("x", [2, 3])], [])
    model.graph.output.add(name="y").type.sequence_type.elem_type.tensor_type.elem_type = 1
    assert verify(model, model, FEEDS).passed


def test_outputs_must_keep_names_and_order():
    first, second = FakeSession(lambda feed: [], ["a", "b"]), FakeSession(lambda feed: [], ["b", "a"])
    with pytest.raises(VerificationError, match=r"has the outputs \['a', 'b'\], the reference model \['b', 'a'\]"):
        verify(first, second, FEEDS)


def test_no_feeds_prove_nothing():
    with pytest.raises(DataError, match="nothing to verify on: there are no feeds"):
        verify(unary(), unary(), [])


def test_who_fails_to_run_decides_about_the_error():
    wrong = [{"x": np.ones((2, 7), np.float32)}]
    with pytest.raises(ModelError, match="the reference model, feed 0: onnxruntime can't run it"):
        verify(linear(WEIGHT), linear(WEIGHT), wrong)
    reference = FakeSession(lambda feed: [feed["x"]])
    with pytest.raises(
        VerificationError, match=r"the emitted model, feed 0: onnxruntime can't .*; the reference model runs"
    ):
        verify(linear(WEIGHT), reference, wrong)
    with pytest.raises(ModelError, match="the emitted model: onnxruntime can't load it"):
        verify(unary("Nope"), unary(), FEEDS)


def chaotic_at(monkeypatch, threshold):
    """Let references load as sessions whose outputs depend on the optimisation level above a threshold."""

    def load(model, options=None, *, where=None):
        if isinstance(model, FakeSession):
            return model
        noise = 1.0 if options is not None and options.opt_level == "disable" else 0.0
        return FakeSession(lambda feed: [feed["x"] + np.float32(noise) * (feed["x"] > threshold)], ["y"])

    monkeypatch.setattr("ucpe_onnx.runtime.verify.as_session", load)


def test_feeds_on_which_the_reference_differs_from_itself_are_left_out(monkeypatch):
    chaotic_at(monkeypatch, threshold=4)
    feeds = [{"x": np.float32([[scale]])} for scale in (1, 5, 2)]
    emitted = FakeSession(lambda feed: [feed["x"] + 2 * (feed["x"] > 4).astype("f")], ["y"])
    result = verify(emitted, "reference.onnx", feeds)
    assert result.passed and (result.feeds, result.chaotic) == (2, 1)
    wrong = FakeSession(lambda feed: [feed["x"] + (feed["x"] > 1).astype("f")], ["y"])
    result = verify(wrong, "reference.onnx", feeds)
    assert not result.passed and result.worst.feed == 2


def test_a_reference_that_never_reproduces_itself_proves_nothing(monkeypatch):
    chaotic_at(monkeypatch, threshold=0)
    emitted = FakeSession(lambda feed: [feed["x"] + 2], ["y"])
    with pytest.raises(VerificationError, match="give --data"):
        verify(emitted, "reference.onnx", [{"x": np.float32([[1]])}])


def test_models_that_agree_as_they_are_written_pass(monkeypatch):
    """The optimiser computes the reference in another way than the emitted model, as it does with quantised graphs."""
    chaotic_at(monkeypatch, threshold=0)
    emitted = FakeSession(lambda feed: [feed["x"] + 1], ["y"])
    result = verify(emitted, "reference.onnx", [{"x": np.float32([[1]])}])
    assert result.passed and (result.feeds, result.chaotic) == (1, 0)


def test_no_more_than_two_sessions_are_in_memory_at_once(monkeypatch):
    live = weakref.WeakSet()
    counts = []

    def load(model, options=None, *, where=None):
        noise = np.float32(model == "reference" and options.opt_level == "disable")
        session = FakeSession(lambda feed: [feed["x"] + noise + np.float32(model == "emitted")])
        live.add(session)
        counts.append(len(live))
        return session

    monkeypatch.setattr("ucpe_onnx.runtime.verify.as_session", load)
    assert verify("emitted", "reference", FEEDS, RunOptions()).passed
    assert counts == [1, 2, 1, 1]


def test_feeds_with_undefined_results_are_left_out():
    reference = FakeSession(lambda feed: [np.log(feed["x"])])
    emitted = FakeSession(lambda feed: [np.log(np.abs(feed["x"]))])
    feeds = [{"x": np.float32([[value]])} for value in (1, -1)]
    with np.errstate(invalid="ignore"):
        result = verify(emitted, reference, feeds)
        assert result.passed and (result.feeds, result.chaotic) == (1, 1)
        with pytest.raises(VerificationError, match="not finite"):
            verify(emitted, reference, feeds[1:])
