"""Outputs and options that make no sense, and defects of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from tests.bad_input.running import refused, snapshot
from tests.builders import Net
from tests.models_small import elementwise, write
from ucpe_onnx import __version__, inspect
from ucpe_onnx.cli import main
from ucpe_onnx.errors import ModelError

# Outputs


@pytest.mark.parametrize("flag", ["out", "--save-plan", "--report", "--json"])
def test_outputs_that_can_not_be_written(fails, folder, flag):
    (folder / "sub").mkdir()
    for path, word in (("none/o", "none is not a directory"), ("sub", "is a directory"), ("o" * 300, "too long")):
        outputs = [path] if flag == "out" else ["out.onnx", flag, path]
        error = fails("in.onnx", *outputs, code=2)
        assert path in error and word in error


@pytest.mark.parametrize("spelling", ["in.onnx", "./in.onnx", "sub/../in.onnx", "{folder}/in.onnx", "link.onnx"])
@pytest.mark.parametrize("flag", ["out.onnx", "--save-plan", "--report", "--json"])
def test_no_output_overwrites_the_model(fails, folder, flag, spelling):
    (folder / "sub").mkdir()
    (folder / "link.onnx").symlink_to("in.onnx")
    path = spelling.format(folder=folder)
    outputs = [path] if flag == "out.onnx" else ["out.onnx", flag, path]
    error = fails("in.onnx", *outputs, code=2)
    assert f"{flag} would overwrite in.onnx" in error
    error = fails("link.onnx", *outputs, code=2)
    assert f"{flag} would overwrite in.onnx" in error


def test_no_output_overwrites_another_input(fails, folder):
    for name in ("m.npz", "p.json", "d.npz", "c.toml"):
        (folder / name).write_bytes(b"")
    for flag, name in (("--masks", "m.npz"), ("--plan", "p.json"), ("--data", "d.npz"), ("--config", "c.toml")):
        assert f"out.onnx would overwrite {flag}" in fails("in.onnx", name, flag, name, code=2)


def test_outputs_must_differ(fails):
    assert "--save-plan and out.onnx are the same" in fails("in.onnx", "o", "--save-plan", "./o", code=2)
    assert "--json and --report are the same" in fails("in.onnx", "o", "--report", "r", "--json", "r", code=2)


def test_inspect_checks_its_output_too(fails):
    for target, word in (("in.onnx", "would overwrite in.onnx"), ("none/x.json", "none is not a directory")):
        assert word in fails("in.onnx", "--json", target, code=2, command=inspect.main)


# Usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ratio", "1"], ["--ratio", "1.0", "[0, 1)"]),
        (["--ratio", "-0.1"], ["--ratio", "[0, 1)"]),
        (["--ratio", "nan"], ["--ratio", "[0, 1)"]),
        (["--ratio-for", "fc=1.5"], ["--ratio-for fc", "[0, 1)"]),
        (["--ratio-for", "nope=0.5"], ["--ratio-for 'nope'", "no consumer"]),
        (["--ignore", "nope*"], ["--ignore 'nope*'", "no consumer", "inspect"]),
        (["--masks", "m.npz", "--plan", "p.json"], ["--masks and --plan"]),
        (["--masks", "m.npz", "--ignore", "fc"], ["--ignore and --masks"]),
        (["--plan", "p.json", "--ratio-for", "fc=0.1"], ["--ratio-for and --plan"]),
        (["--providers", "nope"], ["--providers", "'nope'", "CPUExecutionProvider"]),
        (["--rtol", "-1"], ["--rtol", "-1"]),
        (["--atol", "nan"], ["--atol", "nan"]),
        (["--atol", "inf"], ["--atol", "inf"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--seed", "99999999999"], ["--seed", "99999999999"]),
        (["--threads", "-1"], ["--threads", "-1"]),
        (["--threads", "99999999"], ["--threads", "99999999"]),
        (["--solver-seconds", "0"], ["--solver-seconds"]),
        (["--bench-seconds", "inf"], ["--bench-seconds"]),
        (["--input-shapes", "x"], ["--input-shapes", "'x'"]),
        (["--input-shapes", "z:[1]"], ["--input-shapes", "'z'", "x"]),
        (["--input-shapes", "x:[1,4,8,8]"], ["--input-shapes", "x:[1, 4, 8, 8]"]),
    ],
)
def test_options_that_make_no_sense(fails, arguments, words):
    error = refused(fails, *arguments, code=2)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["in.onnx, out.onnx"]),
        (["in.onnx"], ["out.onnx"]),
        (["in.onnx", "out.onnx", "more"], ["more"]),
        (["in.onnx", "out.onnx", "--nope"], ["--nope"]),
        (["in.onnx", "out.onnx", "--crit", "l1"], ["--crit"]),
        (["in.onnx", "out.onnx", "--ratio", "half"], ["--ratio", "'half'"]),
        (["in.onnx", "out.onnx", "--ratio-for", "fc"], ["--ratio-for", "'fc'"]),
        (["in.onnx", "out.onnx", "--ratio-for", "fc=lots"], ["--ratio-for", "'lots'"]),
        (["in.onnx", "out.onnx", "--criterion", "nope"], ["--criterion", "'nope'", "l1"]),
        (["in.onnx", "out.onnx", "--mode", "nope"], ["--mode", "'nope'", "auto"]),
        (["in.onnx", "out.onnx", "--scope", "nope"], ["--scope", "'nope'"]),
        (["in.onnx", "out.onnx", "--lowering", "nope"], ["--lowering", "'nope'"]),
        (["in.onnx", "out.onnx", "--opt-level", "nope"], ["--opt-level", "'nope'"]),
        (["in.onnx", "out.onnx", "--seed", "1.5"], ["--seed", "'1.5'"]),
    ],
)
def test_argparse_errors(fails, arguments, words):
    error = fails(*arguments, code=2, usage=True)
    assert all(word in error for word in words), error


# Debugging, and defects of ours


def test_debug_lets_the_traceback_through(folder):
    with pytest.raises(ModelError):
        main(["none.onnx", "out.onnx", "--debug"])
    with pytest.raises(ModelError):
        inspect.main(["none.onnx", "--debug"])


def test_a_defect_is_one_line_that_asks_for_a_report(folder, capfd, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("ucpe_onnx.run.opening.trace", broken)
    before = snapshot(folder)
    assert main(["in.onnx", "out.onnx"]) == 1
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1 and "internal error (KeyError" in err and "--debug" in err and out == ""
    assert f"in ucpe-onnx {__version__}, onnx {onnx.__version__}, onnxruntime {ort.__version__};" in err
    assert snapshot(folder) == before
    with pytest.raises(KeyError):
        main(["in.onnx", "out.onnx", "--debug"])


def test_a_defect_in_a_pass_leaves_nothing(folder, capfd, monkeypatch):
    """Whichever pass it is, and with drafts of the passes before it on the disk only where they were asked for."""

    def broken(self: object, draft: object) -> None:
        raise IndexError("list index out of range")

    for name in ("PruneWeights", "DeclareConstants"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ucpe_onnx.passes.{name}.run", broken)
            outputs = ["--report", "r.html", "--save-plan", "p.json", "--json", "j.json", "--save-external-data"]
            assert main(["in.onnx", "out.onnx", "--bench-seconds", "0", *outputs]) == 1
            err = capfd.readouterr().err
            assert len(err.splitlines()) == 1 and "internal error (IndexError" in err
            assert os.listdir(folder) == ["in.onnx"]


def test_lack_of_memory_is_no_defect(folder, capfd, monkeypatch):
    def large(*_: object) -> None:
        raise MemoryError("Unable to allocate 1. TiB")

    monkeypatch.setattr("ucpe_onnx.run.opening.trace", large)
    assert main(["in.onnx", "out.onnx"]) == 1
    assert capfd.readouterr().err == (
        "error: out of memory (Unable to allocate 1. TiB); nothing was written: free some\n"
    )


@pytest.mark.parametrize("step", ["render_html", "save_model", "write_json"])
def test_a_failure_while_writing_leaves_everything_as_it_was(folder, capfd, monkeypatch, step):
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"ucpe_onnx.cli.{step}", broken)
    (folder / "o").write_bytes(b"earlier")
    status = main(["in.onnx", "o", "--bench-seconds", "0", "-q", "--report", "r.html", "--json", "j.json"])
    err = capfd.readouterr().err
    assert status == 1 and "No space left" in err and len(err.splitlines()) == 1
    assert set(os.listdir(folder)) == {"in.onnx", "o"} and (folder / "o").read_bytes() == b"earlier"


# The real thing


def test_the_process_itself(folder):
    """Exit codes and streams as a shell sees them, native libraries included."""

    def run(*arguments: str, module: str = "ucpe_onnx") -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    write(elementwise(), folder / "plain.onnx")
    before = snapshot(folder)
    for arguments, code, module in (
        (["none.onnx", "out.onnx"], 1, "ucpe_onnx"),
        (["in.onnx", "in.onnx"], 2, "ucpe_onnx"),
        (["none.onnx"], 1, "ucpe_onnx.inspect"),
    ):
        done = run(*arguments, module=module)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
    assert run("in.onnx").returncode == 2
    done = run("none.onnx", "out.onnx", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "ModelError" in done.stderr
    assert snapshot(folder) == before
    done = run("in.onnx", "out.onnx", "--bench-seconds", "0", "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["written"] and (folder / "out.onnx").exists()


@pytest.mark.parametrize("read", [0, 10])
def test_a_reader_that_leaves_early_is_no_error_message(folder, read):
    net = Net()
    x = net.input()
    for index in range(150 if read else 1):  # more than a pipe holds, or less
        x = net.conv(x, 64, name=f"a_rather_long_name_of_a_convolution_{index}")
    write(net.output(x).model(), folder / "long.onnx")
    command = [sys.executable, "-m", "ucpe_onnx.inspect", "long.onnx", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(read)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("flag", ["--plan", "--masks", "--config"])
def test_pipes_that_may_never_end(fails, folder, flag) -> None:
    os.mkfifo(folder / "pipe")
    usage = flag == "--config"
    assert "pipe" in fails("in.onnx", "out.onnx", flag, "pipe", code=2 if usage else 1, usage=usage)
