"""How commands end, and what they say meanwhile: signals, streams that are closed or full, terminals and none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import ucpe_onnx
from tests.builders import Net
from ucpe_onnx.cli import main
from ucpe_onnx.commands import progress
from ucpe_onnx.commands.guard import Terminated, guarded
from ucpe_onnx.commands.progress import shown_progress, stages_told

ROOT = Path(__file__).parents[2]
QUICK = ("in.onnx", "out.onnx", "--bench-seconds", "0")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small model, and an empty one for temporary files."""
    net = Net()
    x = net.conv(net.input(), 16)
    onnx.save(net.output(net.conv(net.op("Relu", x), 8)).model(), tmp_path / "in.onnx")
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def command(*arguments, module="ucpe_onnx"):
    return [sys.executable, "-m", module, *arguments]


# Signals

SLOW = """
import time
import numpy as np

def samples():
    for index in range(1000):
        if index == 3:
            open("begun", "w").close()
        if index > 3:
            time.sleep(0.05)
        yield {"x": np.random.default_rng(index).standard_normal((1, 8, 4, 4)).astype(np.float32)}
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_clean_up(folder, name):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    (folder / "loader.py").write_text(SLOW)
    before = sorted(os.listdir(folder))
    with subprocess.Popen(command(*QUICK, "--data", "loader:samples"), stderr=subprocess.PIPE, text=True) as process:
        while not Path("begun").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        err = process.communicate(timeout=60)[1]
    how = "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert err.splitlines()[-1] == f"error: {how}; nothing was written"
    assert process.returncode == 128 + getattr(signal, name)
    Path("begun").unlink()
    left = [name for name in os.listdir("tmp") if name.startswith("ucpe")]
    assert left == [] and sorted(set(os.listdir(folder)) - {"__pycache__"}) == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert guarded(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0, debug=False) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_cleaning_up_is_not_broken_off(capsys):
    """Whoever ends a process often does it twice."""
    cleaned = []

    def job():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert guarded(job, debug=False) == 128 + signal.SIGTERM and cleaned == [True]
    assert capsys.readouterr().err == "error: ended by SIGTERM; nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) is before and issubclass(Terminated, BaseException)


# Streams


def test_what_is_written_is_not_denied(folder):
    for arguments in ([], ["-q", "--json", "-"]):
        Path("out.onnx").unlink(missing_ok=True)
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command(*QUICK, *arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 1 and Path("out.onnx").exists()
        (line,) = done.stderr.splitlines()[-1:]
        assert line == f"error: standard output: No space left on device; {folder}/out.onnx is written"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_may_be_closed(folder, closed):
    text = " ".join([*command(*QUICK, "--json", "j.json"), closed])
    assert subprocess.run(text, shell=True, check=False).returncode == 0
    onnx.checker.check_model("out.onnx")
    assert json.loads(Path("j.json").read_text())["written"]


def test_nobody_reads(folder):
    with subprocess.Popen(command(*QUICK), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert "error" not in process.stderr.read() and process.wait() == 1
    assert Path("out.onnx").exists()


def test_a_loader_that_leaves(folder, capsys):
    for name, text in {
        "at_import": "import sys\nsys.exit(0)",
        "when_called": "import sys\ndef samples():\n    sys.exit('enough')",
        "on_the_way": (
            "import sys, numpy\ndef samples():\n    yield {'x': numpy.ones((1, 8, 4, 4), 'f')}\n    sys.exit(0)"
        ),
    }.items():
        Path(f"{name}.py").write_text(text)
        assert main([*QUICK, "--data", f"{name}:samples"]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {name}:samples: ") and "SystemExit" in err and len(err.splitlines()) == 1
    assert not Path("out.onnx").exists()


# Death

CRASH = """
import os, signal

def samples():
    os.kill(os.getpid(), signal.{signal})
    yield {{}}
"""


@pytest.mark.parametrize(("name", "status"), [("SIGSEGV", 1), ("SIGABRT", 1), ("SIGKILL", 137)])
def test_a_process_that_dies_is_told_of(folder, name, status):
    """As onnxruntime does on some malformed models: nobody else is left to say so."""
    (folder / "crash.py").write_text(CRASH.format(signal=name))
    done = subprocess.run(
        command(*QUICK, "--data", "crash:samples"), capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == status and not Path("out.onnx").exists()
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error"))
    how = f"was ended by {name}" if name == "SIGKILL" else f"died of {name}"
    assert line.startswith(f"error: the process {how} at the stage 'load'; nothing was written")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the child")
def test_who_kills_the_parent_ends_the_job(folder):
    (folder / "loader.py").write_text(SLOW)
    with subprocess.Popen(command(*QUICK, "--data", "loader:samples"), stderr=subprocess.PIPE, text=True) as process:
        while not Path("begun").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.kill()
        assert "ended by SIGTERM; nothing was written" in process.stderr.read()  # of the child, which holds it open
    assert not Path("out.onnx").exists()


NESTED = """
import os, subprocess, sys

def samples():
    import numpy as np
    assert "UCPE_STAGE_FILE" not in os.environ
    inner = [sys.executable, "-m", "ucpe_onnx", "in.onnx", "inner.onnx", "--bench-seconds", "0", "-q"]
    subprocess.run(inner, check=True)
    yield {"x": np.ones((1, 8, 4, 4), np.float32)}
"""


def test_a_job_within_a_job_writes_into_no_file_of_the_others(folder):
    (folder / "nested.py").write_text(NESTED)
    done = subprocess.run(
        command(*QUICK, "-q", "--data", "nested:samples"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("in.onnx", "inner.onnx", "out.onnx"):
        onnx.checker.check_model(name)


def test_doors_are_supervised_and_pass_everything_on(folder):
    for module, arguments in (("ucpe_onnx", ["--version"]), ("ucpe_onnx.inspect", ["in.onnx"])):
        done = subprocess.run(command(*arguments, module=module), capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout and not done.stderr
    done = subprocess.run(command("none.onnx", "out.onnx"), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no such file" in done.stderr


def test_the_package_is_imported_piece_by_piece():
    """The parent that waits holds none of what the child needs."""
    script = "import sys, ucpe_onnx; assert not {'onnx', 'onnxruntime', 'ortools'} & set(sys.modules); ucpe_onnx.prune"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert set(ucpe_onnx.__all__) <= set(dir(ucpe_onnx)) and all(hasattr(ucpe_onnx, n) for n in ucpe_onnx.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = ucpe_onnx.nothing_like_it


# Progress


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SOON", 0.05)
    with shown_progress(quiet=False) as tell:
        tell("load")
        assert capsys.readouterr().err == "", "an error right at the start is to be the only line"
        time.sleep(0.3)
        told = stages_told(tell)
        for text in ("plan", "collect", "collect 10%", "collect 20%"):
            told(text)
        monkeypatch.setattr(progress, "_SILENCE", 0.0)
        told("collect 30%")
        tell("train", 0.5, "epoch 3")
    told = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["load", "plan", "collect", "collect 30%", "train 50% (epoch 3)"]


def test_a_bar_with_time_left_on_a_terminal(folder):
    pty = pytest.importorskip("pty")
    (folder / "loader.py").write_text(SLOW.replace("range(1000)", "range(30)"))
    ours, theirs = pty.openpty()
    arguments = command(*QUICK, "--data", "loader:samples", "--no-compensate")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not block:
                break
            shown += block
        assert process.wait() == 0
    os.close(ours)
    text = shown.decode(errors="replace")
    assert "measure" not in text or "left:" in text
    assert "collect" in text or "verify" in text
    assert "left:" in text and "%" in text


def test_quiet_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SOON", 0.0)
    with shown_progress(quiet=True) as tell:
        tell("load", np.pi)
    assert capsys.readouterr().err == ""
