"""Model files in and out."""

from __future__ import annotations

import os
import stat

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from tests.builders import Net, feeds_for, run
from tests.models_small import branches
from ucpe_onnx import ModelError, UcpeError, UsageError
from ucpe_onnx.model import files
from ucpe_onnx.model.files import check_model, load_model, save_model
from ucpe_onnx.model.writing import all_or_nothing, check_writable, partial_file, write_text


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def assert_same(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    assert [n.SerializeToString() for n in a.graph.node] == [n.SerializeToString() for n in b.graph.node]
    assert values(a).keys() == values(b).keys()
    assert all((values(a)[name] == value).all() for name, value in values(b).items())


def test_save_and_load(tmp_path):
    save_model(branches(), tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx").SerializeToString() == branches().SerializeToString()
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("name", ["m.json", "m.textproto", "m.onnxtxt", "m"])
def test_the_suffix_does_not_change_the_format(tmp_path, name):
    save_model(branches(), tmp_path / name)
    assert_same(load_model(tmp_path / name), branches())


def test_text_in_a_file_called_json_is_no_model(tmp_path):
    (tmp_path / "masks.json").write_text('{"a": [1, 2]}')
    with pytest.raises(ModelError, match=r"masks\.json"):
        load_model(tmp_path / "masks.json")


def test_external_data_is_read(tmp_path):
    onnx.save_model(
        branches(), str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    model = load_model(tmp_path / "m.onnx")
    assert_same(model, branches())
    check_model(model, "m")


def test_truncated_external_data(tmp_path):
    from ucpe_onnx import prune

    onnx.save_model(
        branches(), str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(UcpeError) as error:
        prune(tmp_path / "m.onnx", bench_seconds=0)
    assert "\n" not in str(error.value)


def test_above_protobufs_limit_weights_get_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PROTOBUF_LIMIT", 100)
    model = branches()
    before = model.SerializeToString()
    sizes = set()
    for _ in range(2):  # onnx would append to weights that are there already
        save_model(model, tmp_path / "m.onnx")
        (weights,) = tmp_path.glob("m.onnx.*")
        sizes.add(os.path.getsize(weights))
    assert len(sizes) == 1
    assert os.path.getsize(tmp_path / "m.onnx") < len(before)
    assert model.SerializeToString() == before
    assert_same(load_model(tmp_path / "m.onnx"), branches())


def test_external_data_on_request(tmp_path):
    """Large weights move, in whatever field they are stored; the rest, and everything else, stays."""
    model = branches()
    typed = next(t for t in model.graph.initializer if list(t.dims) == [8, 16, 3, 3])
    value = numpy_helper.to_array(typed)
    typed.ClearField("raw_data")
    typed.float_data.extend(value.ravel().tolist())
    typed.doc_string = "kernel"
    save_model(model, tmp_path / "m.onnx", external_data=True)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    light = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    outside = [t for t in light.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert [list(t.dims) for t in outside] == [[16, 3, 3, 3], [8, 16, 3, 3]]
    assert os.path.getsize(tmp_path / "m.onnx.data") == 4 * sum(int(np.prod(t.dims)) for t in outside)
    for loaded in (load_model(tmp_path / "m.onnx"), onnx.load(tmp_path / "m.onnx")):
        assert_same(loaded, model)
        assert "kernel" in [t.doc_string for t in loaded.graph.initializer]
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    feeds = feeds_for(model)
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, feeds)[0], run(model, feeds)[0])


def test_large_tensors_begin_at_a_page(tmp_path):
    model = branches()
    for name, size in (("odd", 301), ("large", 2**18), ("next", 2**18)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(size, 3, np.float32), name))
    save_model(model, tmp_path / "m.onnx", external_data=True)
    light = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    offsets = {t.name: int(e.value) for t in light.graph.initializer for e in t.external_data if e.key == "offset"}
    assert offsets["large"] % 4096 == 0 and offsets["next"] == offsets["large"] + 2**20
    assert_same(load_model(tmp_path / "m.onnx"), model)


def test_external_data_of_a_model_without_large_weights(tmp_path):
    net = Net()
    model = net.output(net.conv(net.input("x", (1, 3, 4, 4)), 2)).model()
    save_model(model, tmp_path / "m.onnx", external_data=True)
    assert os.listdir(tmp_path) == ["m.onnx"] and load_model(tmp_path / "m.onnx") == model


def test_all_or_nothing(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), all_or_nothing():
        write_text(tmp_path / "a", "new")
        save_model(branches(), tmp_path / "m.onnx", external_data=True)
        raise RuntimeError
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with all_or_nothing():
        write_text(tmp_path / "a", "new")
        save_model(branches(), tmp_path / "m.onnx", external_data=True)
        assert (tmp_path / "a").read_text() == "old" and not (tmp_path / "m.onnx").exists()
    assert sorted(os.listdir(tmp_path)) == ["a", "m.onnx", "m.onnx.data"] and (tmp_path / "a").read_text() == "new"
    with pytest.raises(UcpeError, match="b: can't be written"), all_or_nothing():
        write_text(tmp_path / "b", "new")
        (tmp_path / "b").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "m.onnx", "m.onnx.data"]


def test_the_checker_sees_models_that_are_too_large_for_it(monkeypatch):
    """Without their large weights, of which it only needs the shapes."""
    model = branches()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(5000, np.float32), "large"))
    monkeypatch.setattr(files, "PROTOBUF_LIMIT", 20_000)
    check_model(model, "m")
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="nowhere"):
        check_model(model, "m")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    for limit in (files.PROTOBUF_LIMIT, 100):
        monkeypatch.setattr(files, "PROTOBUF_LIMIT", limit)
        (tmp_path / "m.onnx").write_bytes(b"old")

        def broken(model, write):
            write(b"half")
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_model", broken)
            with pytest.raises(ModelError, match=r"m\.onnx: can't be written .*No space left"):
                save_model(branches(), tmp_path / "m.onnx")
        assert os.listdir(tmp_path) == ["m.onnx"] and (tmp_path / "m.onnx").read_bytes() == b"old"


def test_partial_file(tmp_path):
    target = tmp_path / "f"
    with partial_file(target) as partial:
        partial.write_text("new")
        assert not target.exists() and partial.parent == tmp_path
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError), partial_file(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["f"]


def test_a_pipe_is_written_to_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_writable(tmp_path / "pipe")
    with partial_file(tmp_path / "pipe") as path, open(path, "w") as stream:
        stream.write("text")
        stream.flush()
        assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_check_writable_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    (tmp_path / "old").write_text("x")
    check_writable(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "x" and os.listdir(tmp_path) == ["old"]
    for path in (tmp_path, tmp_path / "none" / "f", tmp_path / "old" / "f", tmp_path / ("f" * 300)):
        with pytest.raises(UsageError):
            check_writable(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        check_writable(tmp_path / "f")
    tmp_path.chmod(0o700)


def test_write_text_says_what_it_could_not_write(tmp_path):
    with pytest.raises(UcpeError, match="f: can't be written"):
        write_text(tmp_path / "none" / "f", "text")


def test_checker_messages_are_one_line():
    model = branches()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError) as error:
        check_model(model, "some.onnx")
    assert "\n" not in str(error.value) and str(error.value).startswith("some.onnx: onnx.checker refuses it: ")
    model = branches()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7  # full check: shapes are inferred too
    with pytest.raises(ModelError, match=r"some\.onnx"):
        check_model(model, "some.onnx")
