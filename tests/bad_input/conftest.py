"""A folder with a good model in it, and a run that must fail well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bad_input.running import Fails, snapshot
from tests.models_small import branches, write
from ucpe_onnx.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a good model in it."""
    monkeypatch.chdir(tmp_path)
    write(branches(), tmp_path / "in.onnx")
    return tmp_path


@pytest.fixture
def fails(folder, capfd) -> Fails:
    """Run the command line and return its one line of error; what the run must not do is checked here."""

    def run(*arguments: str, code: int = 1, command: Callable[[list[str]], int] = main, usage: bool = False) -> str:
        before = snapshot(folder)
        try:
            status = command([str(a) for a in arguments])
        except SystemExit as exit_:
            status = exit_.code
        out, err = capfd.readouterr()
        assert status == code, err
        lines = err.splitlines()
        if usage:
            assert lines.pop(0).startswith("usage: python -m ucpe_onnx")
        assert len(lines) == 1 and "error: " in lines[0] and "internal" not in err and "Traceback" not in err, err
        assert out == "" and snapshot(folder) == before
        return lines[0]

    return run
