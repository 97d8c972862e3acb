"""Files appear together or not at all, whatever happens on the way, and what is there always fits together."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.models_small import branches
from ucpe_onnx.errors import UcpeError, UsageError
from ucpe_onnx.model import folders, writing
from ucpe_onnx.model.files import load_model, save_model
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.model.writing import all_or_nothing, check_writable, partial_file, write_text, written_files


def scaled(factor: float) -> onnx.ModelProto:
    """A model whose weights tell which one it is."""
    model = branches()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    return model


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted_at(monkeypatch: pytest.MonkeyPatch, number: int, how: type[BaseException]) -> None:
    """Let renaming number ``number`` of a file to its place fail."""
    real, calls = os.replace, count()

    def replace(source: Path, target: Path) -> None:
        if not str(source).endswith(".old") and next(calls) == number:
            raise how()
        real(source, target)

    monkeypatch.setattr(writing.os, "replace", replace)


@pytest.mark.parametrize("how", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interruption_between_two_files_leaves_everything_as_it_was(tmp_path, monkeypatch, earlier, number, how):
    def write(factor: float) -> None:
        with all_or_nothing():
            save_model(scaled(factor), tmp_path / "m.onnx", external_data=True)
            write_text(tmp_path / "plan.json", f"plan {factor}")
            write_text(tmp_path / "report.html", f"report {factor}")

    if earlier:
        write(1)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        interrupted_at(patch, number, how)
        with pytest.raises(UcpeError if how is OSError else how):
            write(2)
    assert content(tmp_path) == before
    write(3)
    assert len(content(tmp_path)) == 4
    weights = {t.name: numpy_helper.to_array(t) for t in load_model(tmp_path / "m.onnx").graph.initializer}
    for tensor in scaled(3).graph.initializer:
        assert np.array_equal(weights[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.parametrize("number", range(4))
def test_a_killed_process_leaves_a_model_that_fits_its_weights(tmp_path, number):
    """Nobody can clean up then, but a graph never gets the weights of another."""
    save_model(scaled(1), tmp_path / "m.onnx", external_data=True)
    script = f"""
        import os
        from itertools import count
        from pathlib import Path
        from tests.model.test_writing import scaled
        from ucpe_onnx.model import writing
        from ucpe_onnx.model.files import save_model
        real, calls = os.replace, count()
        def replace(source, target):
            if next(calls) == {number}:
                os.kill(os.getpid(), 9)
            real(source, target)
        writing.os.replace = replace
        with writing.all_or_nothing():
            save_model(scaled(2), Path({str(tmp_path)!r}) / "m.onnx", external_data=True)
            writing.write_text(Path({str(tmp_path)!r}) / "plan.json", "plan")
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=root, check=False)
    assert done.returncode == (-signal.SIGKILL if number < 3 else 0)
    found = {t.name: numpy_helper.to_array(t) for t in load_model(tmp_path / "m.onnx").graph.initializer}
    for tensor in scaled(1 if number < 3 else 2).graph.initializer:
        assert np.array_equal(found[tensor.name], numpy_helper.to_array(tensor))


def test_weights_that_another_model_reads_stay(tmp_path):
    save_model(scaled(1), tmp_path / "m.onnx", external_data=True)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "m.onnx").read_bytes())
    save_model(scaled(2), tmp_path / "m.onnx", external_data=True)
    for name, factor in (("copy", 1), ("m", 2)):
        found = load_model(tmp_path / f"{name}.onnx").graph.initializer[0]
        assert np.array_equal(numpy_helper.to_array(found), numpy_helper.to_array(scaled(factor).graph.initializer[0]))


def test_mode_and_owner_of_a_replaced_file_stay(tmp_path):
    file = tmp_path / "f"
    file.write_text("old")
    file.chmod(0o640)
    if os.getuid() == 0:
        os.chown(file, 1234, 2345)
    write_text(file, "new")
    found = file.stat()
    assert file.read_text() == "new" and stat.S_IMODE(found.st_mode) == 0o640
    assert os.getuid() or (found.st_uid, found.st_gid) == (1234, 2345)


def test_names_of_255_bytes_can_be_written(tmp_path):
    file = tmp_path / ("n" * 255)
    check_writable(file)
    write_text(file, "text")
    assert file.read_text() == "text" and file in written_files()
    with pytest.raises(UsageError, match="File name too long"):
        check_writable(tmp_path / ("n" * 256))


def test_a_name_in_the_way_of_a_later_file(tmp_path):
    """As a bind mount is, which can't be renamed to."""
    write_text(tmp_path / "a", "old")
    with pytest.raises(UcpeError, match="b: can't be written"), all_or_nothing():
        write_text(tmp_path / "a", "new")
        with partial_file(tmp_path / "b") as partial:
            partial.write_text("new")
        (tmp_path / "b").mkdir()
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_folders_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    script = (
        "import os; from ucpe_onnx.model.folders import TemporaryFolder; f = TemporaryFolder(); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (left,) = tmp_path.glob("ucpe-*")
    foreign = tmp_path / "ucpe-of-somebody-else"
    foreign.mkdir()
    with TemporaryFolder() as one:
        assert not left.exists()
        with TemporaryFolder() as other:
            assert set(tmp_path.glob("ucpe-*")) == {foreign, Path(one), Path(other)}
    assert set(tmp_path.glob("ucpe-*")) == {foreign}
