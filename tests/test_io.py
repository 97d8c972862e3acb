"""Model files in and out."""

from __future__ import annotations

import os
import stat

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.models_small import branches
from ucpe_onnx import ModelError, UcpeError, UsageError, io
from ucpe_onnx.io import check_model, check_writable, load_model, partial_file, save_model, write_text


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
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 100)
    model = branches()
    before = model.SerializeToString()
    sizes = set()
    for _ in range(2):  # onnx would append to weights that are there already
        save_model(model, tmp_path / "m.onnx")
        sizes.add(os.path.getsize(tmp_path / "m.onnx.data"))
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"] and len(sizes) == 1
    assert os.path.getsize(tmp_path / "m.onnx") < len(before)
    assert model.SerializeToString() == before
    assert_same(load_model(tmp_path / "m.onnx"), branches())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    for limit in (io.PROTOBUF_LIMIT, 100):
        monkeypatch.setattr(io, "PROTOBUF_LIMIT", limit)
        (tmp_path / "m.onnx").write_bytes(b"old")

        def broken(proto, path, *_, **__):
            with open(path, "wb") as stream:
                stream.write(b"half")
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(onnx, "save_model", broken)
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
