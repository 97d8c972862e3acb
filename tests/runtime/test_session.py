from dataclasses import FrozenInstanceError

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.runtime.builders import linear, make_model, node, two_inputs, unary, value
from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.runtime import session as module
from ucpe_onnx.runtime.session import (
    OPT_LEVELS,
    RunOptions,
    as_session,
    make_session,
    ort_message,
    resolve_providers,
    run,
)
from ucpe_onnx.samples.inputs import input_specs

X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and "ONNXRuntimeError" not in text and "onnxruntime_src" not in text
    return text


@pytest.mark.parametrize("level", OPT_LEVELS)
def test_every_level_runs(level):
    session = make_session(linear(np.eye(3, dtype=np.float32)), RunOptions(opt_level=level, threads=1))
    np.testing.assert_array_equal(run(session, X)[0], X["x"])


def test_model_may_be_bytes_a_path_a_proto_or_a_session(tmp_path):
    model = unary("Neg")
    onnx.save(model, tmp_path / "m.onnx")
    for form in (model, model.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx"), make_session(model)):
        np.testing.assert_array_equal(run(as_session(form), X)[0], -X["x"])


def test_optimized_graph_is_written(tmp_path):
    path = tmp_path / "optimized.onnx"
    model = make_model([node("Identity", "x", "t"), node("Neg", "t")], [value("x", [2, 3])], [value("y", [2, 3])])
    make_session(model, RunOptions(opt_level="basic"), path)
    assert [n.op_type for n in onnx.load(path).graph.node] == ["Neg"]


def test_model_above_the_limit_goes_through_a_file_and_stays_whole(monkeypatch):
    model = linear(np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32))
    before = model.SerializeToString()
    expected = run(make_session(model), X)[0]
    monkeypatch.setattr(module, "PROTOBUF_LIMIT", 100)
    np.testing.assert_array_equal(run(make_session(model), X)[0], expected)
    assert model.SerializeToString() == before


def test_full_disk_is_a_model_error(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "PROTOBUF_LIMIT", 1)
    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(ModelError, match=r"No space left.*free disk space"):
        make_session(unary())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (unary("Nope"), "tiny: onnxruntime can't load it: This is an invalid model.*No Op registered for Nope"),
        (b"garbage", "the model: onnxruntime can't load it: Failed to load model because protobuf parsing failed"),
        ("/no/where.onnx", "/no/where.onnx: no such file; give the path"),
    ],
)
def test_what_cannot_be_loaded(model, expected):
    with pytest.raises(ModelError, match=expected) as error:
        make_session(model)
    one_line(error)


def test_unsupported_version_is_told_without_onnxruntimes_own_source_lines():
    model = unary()
    model.ir_version = 99
    with pytest.raises(
        ModelError, match=r"big\.onnx: onnxruntime can't load it: Unsupported model IR version"
    ) as error:
        make_session(model, where="big.onnx")
    one_line(error)


def test_failing_run_is_one_line_and_prints_nothing(capfd):
    session = make_session(two_inputs(["a", "b"], ["c", "d"], "MatMul"))
    feed = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 3), np.float32)}
    with pytest.raises(ModelError, match=r"m.onnx: onnxruntime can't run it: .*MatMul") as error:
        run(session, feed, where="m.onnx")
    one_line(error)
    assert capfd.readouterr() == ("", "")


def test_ort_message_is_short():
    assert ort_message(RuntimeError("x" * 1000)) == "x" * 297 + "..."
    assert ort_message(RuntimeError()) == "RuntimeError"
    located = "[ONNXRuntimeError] : 1 : FAIL : /src/core/a.cc:4 void ns::F(const std::map<a, b>&, int) const Bad (x) y"
    assert ort_message(RuntimeError(located)) == "Bad (x) y"
    assert ort_message(RuntimeError("running op. Status: conv.cc:59 Wrong thing (x) in y")).endswith(
        "Status: Wrong thing (x) in y"
    )


def test_provider_spellings():
    assert resolve_providers(["cpu", "CPU", "CPUExecutionProvider"]) == ("CPUExecutionProvider",)


def test_unknown_provider_names_those_available():
    with pytest.raises(UsageError, match=r"no 'npu'; it has .*CPUExecutionProvider"):
        make_session(unary(), RunOptions(providers=("npu",)))
    with pytest.raises(UsageError, match="none given"):
        resolve_providers([])


def test_provider_that_does_not_start_is_not_ignored(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])

    class Fallen:
        def __init__(self, *args, **kwargs):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(ModelError, match="could not start CUDAExecutionProvider and fell back to CPU"):
        make_session(unary(), RunOptions(providers=("cuda", "cpu")))


def test_threads_reach_a_provider_that_ignores_the_setting_of_the_session(monkeypatch):
    asked = []

    class Recorder:
        def __init__(self, model, settings, providers, **_):
            asked[:] = providers

        def get_providers(self):
            return [name for name, _ in asked]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OpenVINOExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Recorder)
    for threads, options in ((0, {}), (3, {"num_of_threads": "3"})):
        make_session(unary(), RunOptions(("openvino", "cpu"), threads))
        assert asked == [("OpenVINOExecutionProvider", options), ("CPUExecutionProvider", {})]


def test_options_are_frozen_and_checked():
    with pytest.raises(FrozenInstanceError):
        RunOptions().threads = 2
    with pytest.raises(UsageError, match="--opt-level: unknown level 'max'; choose from disable, basic"):
        RunOptions(opt_level="max")
    with pytest.raises(UsageError, match="--threads: -1 is negative"):
        RunOptions(threads=-1)


def test_input_specs_leave_initializers_out_and_keep_names_of_axes():
    model = make_model(
        [node("MatMul", "x w")],
        [value("x", ["N", None, -1, 3]), value("w", [3, 2]), value("r", None, TensorProto.INT64)],
        [value("y", None)],
        {"w": np.ones((3, 2), np.float32)},
    )
    x, r = input_specs(model)
    assert (x.name, x.dtype, x.shape, x.kind) == ("x", np.float32, ("N", None, None, 3), "float tensor")
    assert (r.name, r.dtype, r.shape) == ("r", np.int64, None)


def test_inputs_that_numpy_cannot_hold_have_no_dtype():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model = make_model([], [value("h", [1], TensorProto.BFLOAT16), sequence], [])
    assert [(spec.dtype, spec.kind) for spec in input_specs(model)] == [(None, "bfloat16 tensor"), (None, "sequence")]
