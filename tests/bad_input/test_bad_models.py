"""Models and data that can't work end with one line on stderr, the right exit code, and nothing written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.bad_input.running import refused
from tests.models_small import branches, sample, write
from ucpe_onnx import inspect, prune
from ucpe_onnx.cli import main
from ucpe_onnx.errors import ModelError

# The model


def wrong_checker() -> bytes:
    model = branches()
    model.graph.node[0].op_type = "Convolve"
    return model.SerializeToString()


BAD_MODELS = {
    "empty": (b"", "is empty"),
    "text": (b"hello world\n", "not an ONNX model"),
    "truncated": (branches().SerializeToString()[:700], "not an ONNX model, truncated"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no ONNX graph"),
    "checker": (wrong_checker(), "onnx.checker refuses it"),
}


@pytest.mark.parametrize("command", [main, inspect.main])
@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_file_that_is_no_model(fails, folder, kind, command):
    content, message = BAD_MODELS[kind]
    (folder / "bad.onnx").write_bytes(content)
    error = fails("bad.onnx", *(["out.onnx"] if command is main else []), command=command)
    assert message in error and "bad.onnx" in error


@pytest.mark.parametrize("command", [main, inspect.main])
def test_a_path_that_is_no_file(fails, folder, command):
    (folder / "sub").mkdir()
    rest = ["out.onnx"] if command is main else []
    for path, message in (
        ("none.onnx", "no such file"),
        ("sub", "is a directory"),
        ("in.onnx/x", "Not a directory"),
        ("x" * 300, "too long"),
    ):
        error = fails(path, *rest, command=command)
        assert path in error and message in error


def test_a_model_with_nan_weights_names_node_and_weight(fails, folder):
    model = branches()
    tensor = model.graph.initializer[0]
    value = numpy_helper.to_array(tensor).copy()
    value.flat[5] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    write(model, folder / "nan.onnx")
    error = fails("nan.onnx", "out.onnx")
    assert "NaN" in error and "/a/Conv" in error and repr(tensor.name) in error


def test_missing_external_data_is_named(fails, folder):
    onnx.save_model(
        branches(), str(folder / "ext.onnx"), save_as_external_data=True, location="ext.bin", size_threshold=0
    )
    (folder / "ext.bin").unlink()
    error = fails("ext.onnx", "out.onnx")
    assert "ext.onnx: external data can't be read" in error and "ext.bin" in error


def test_a_proto_without_its_external_data_is_refused(folder):
    onnx.save_model(
        branches(), str(folder / "ext.onnx"), save_as_external_data=True, location="ext.bin", size_threshold=0
    )
    with pytest.raises(ModelError, match="lies in another file"):
        prune(onnx.load(str(folder / "ext.onnx"), load_external_data=False))
    assert prune(str(folder / "ext.onnx"), bench_seconds=0).report.verification.passed


def test_a_model_that_onnxruntime_can_not_run(fails, folder):
    model = branches()
    model.graph.node.append(helper.make_node("Foo", ["y"], ["z"], domain="nobody.knows"))
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 4]))
    write(model, folder / "custom.onnx")
    error = fails("custom.onnx", "out.onnx")
    assert "custom.onnx: onnxruntime can't load it" in error and "Foo" in error


# Data


def test_data_that_does_not_fit(fails, folder):
    for arrays, words in (
        ({"z": sample()}, ["'z'", "rename it to 'x'"]),
        ({"x": sample()[:, :2]}, ["'x'", "(4, 2, 8, 8)", "3"]),
        ({"x": sample(dtype=np.float64)}, ["'x'", "float64", "float32"]),
        ({"x": sample(), "z": sample()}, ["'z'", "remove"]),
        ({"x": sample(), "labels": np.zeros(3, int)}, ["labels", "3"]),
        ({"x": sample(0)}, ["no samples"]),
    ):
        np.savez(folder / "d.npz", **arrays)
        error = refused(fails, "--data", "d.npz")
        assert all(word in error for word in ["d.npz", *words]), error


def test_data_that_can_not_be_read(fails, folder):
    (folder / "sub").mkdir()
    (folder / "bad.npz").write_bytes(b"nothing")
    for data, word in (
        ("none.npz", "no such file"),
        ("bad.npz", "not a readable .npz"),
        ("sub", "test_data_set_N"),
        ("in.onnx", "can't read"),
        ("no_such_module:make", "can't import"),
        ("os:no_such_function", "no_such_function"),
    ):
        error = refused(fails, "--data", data)
        assert data in error and word in error
