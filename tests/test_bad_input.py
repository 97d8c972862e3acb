"""Whatever a user gives that can't work ends with one line on stderr, the right exit code, and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.builders import Net
from tests.models_small import branches, elementwise, sample, write
from ucpe_onnx import inspect, prune
from ucpe_onnx.cli import main
from ucpe_onnx.errors import ModelError

Files = dict[str, bytes]
Fails = Callable[..., str]


def snapshot(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


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


def refused(fails: Fails, *arguments: object, **options: object) -> str:
    """The error of the main job on the good model."""
    return fails("in.onnx", "out.onnx", "--bench-seconds", 0, *arguments, **options)


# The model


def wrong_checker() -> bytes:
    model = branches()
    model.graph.node[0].op_type = "Convolve"
    return model.SerializeToString()


BAD_MODELS = {
    "empty": (b"", "is empty"),
    "text": (b"hello world\n", "not an ONNX model"),
    "truncated": (branches().SerializeToString()[:700], "not an ONNX model, or truncated"),
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


# Masks and plans


def npz(path: Path, **masks: np.ndarray) -> str:
    np.savez(path, **{name.replace("__", "/"): mask for name, mask in masks.items()})
    return str(path)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"nope": np.ones(3, bool)}, ["'nope'", "no such consumer", "inspect"]),
        ({"__b__Conv": np.ones(5, bool)}, ["'/b/Conv'", "(5,)", "16"]),
        ({"__b__Conv": np.zeros(16, bool)}, ["'/b/Conv'", "keeps nothing"]),
        ({"__b__Conv": np.ones(16, np.float32)}, ["'/b/Conv'", "float32"]),
        ({"__b__Conv": np.ones((2, 8), bool)}, ["'/b/Conv'", "(2, 8)"]),
    ],
)
def test_masks_that_do_not_fit(fails, folder, masks, words):
    error = refused(fails, "--masks", npz(folder / "m.npz", **masks))
    assert all(word in error for word in ["m.npz", *words]), error


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not a .json mask file"),
        ("[1]", "expected an object"),
        ('{"/b/Conv": 3}', "expected a list"),
        ('{"/b/Conv": [16]}', "index 16"),
        ('{"/b/Conv": [-1]}', "index -1"),
        ('{"/b/Conv": [0.5]}', "list of channel indices"),
        ('{"/b/Conv": []}', "keeps nothing"),
        ('{"/b/Conv": ["0"]}', "list of channel indices"),
    ],
)
def test_json_masks_that_do_not_fit(fails, folder, text, word):
    (folder / "m.json").write_text(text)
    error = refused(fails, "--masks", "m.json")
    assert "m.json" in error and word in error


def test_files_that_hold_no_masks(fails, folder):
    (folder / "m.npz").write_bytes(b"PK\x03\x04 not really")
    assert "m.npz: not an .npz mask file" in refused(fails, "--masks", "m.npz")
    assert "in.npz: no such file" in refused(fails, "--masks", "in.npz")
    assert "in.onnx: not an .npz mask file" in refused(fails, "--masks", "in.onnx")


def plan_file(folder: Path) -> dict:
    prune(str(folder / "in.onnx"), mode="unconstrained", bench_seconds=0).plan.save(folder / "plan.json")
    return json.loads((folder / "plan.json").read_text())


def test_plan_of_another_model(fails, folder):
    plan_file(folder)
    write(branches(("/a/Conv", "/b/Conv", "/c/Conv", "other")), folder / "in.onnx")
    error = refused(fails, "--plan", "plan.json")
    assert "plan.json" in error and "another model" in error


def test_plan_that_names_other_consumers(fails, folder):
    raw = plan_file(folder)
    write(branches(("/a/Conv", "/b/Conv", "/c/Conv", "other")), folder / "in.onnx")
    (folder / "plan.json").write_text(json.dumps({**raw, "source_sha256": ""}))
    assert "on consumer 'fc'" in refused(fails, "--plan", "plan.json")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a plan"),
        (b"{}", "not a plan"),
        (b"\xff\xfe", "not a plan"),
        (b'{"format": "ucpe-plan/2"}', "ucpe-plan/1"),
        (b'{"format": "ucpe-plan/1"}', "'consumers' is missing"),
        (b'{"format": "ucpe-plan/1", "consumers": [], "segments": []}', "not a valid plan"),
        (b'{"format": "ucpe-plan/1", "consumers": {"a": {}}, "segments": []}', "'keep' is missing"),
    ],
)
def test_corrupted_plan(fails, folder, content, word):
    (folder / "plan.json").write_bytes(content)
    error = refused(fails, "--plan", "plan.json")
    assert "plan.json" in error and word in error
    assert "none.json: no such file" in refused(fails, "--plan", "none.json")


def contradictions() -> dict[str, Callable[[dict], object]]:
    """What to change in a plan, by a word of the message that it must lead to."""

    def consumer(raw: dict) -> dict:
        return raw["consumers"]["/b/Conv"]

    def segment(raw: dict) -> dict:
        return raw["segments"][consumer(raw)["segment"]]

    def reorder(raw: dict) -> None:
        segment(raw)["order"].reverse()

    return {
        "keeps nothing": lambda raw: consumer(raw)["keep"].clear(),
        "index 99 is outside": lambda raw: consumer(raw)["keep"].append(99),
        "index -1 is outside": lambda raw: consumer(raw)["keep"].insert(0, -1),
        "ascending": lambda raw: consumer(raw)["keep"].reverse(),
        "each once": lambda raw: consumer(raw)["keep"].append(consumer(raw)["keep"][-1]),
        "read must hold": lambda raw: consumer(raw)["read"].append(-1),
        "in emitted order": lambda raw: consumer(raw)["read"].reverse(),
        "reads": lambda raw: consumer(raw)["read"].pop(),
        "the kept channels": lambda raw: consumer(raw)["read"].remove(consumer(raw)["keep"][3]),
        "slots differ": lambda raw: consumer(raw)["slots"].reverse(),
        "channels, segment or": lambda raw: consumer(raw).update(segment=0),
        "channels, segment": lambda raw: consumer(raw).update(channels=17),
        "repeats a slot": lambda raw: segment(raw)["order"].append(segment(raw)["order"][0]),
        "does not exist": lambda raw: segment(raw)["order"].append(10**30),
        "blocks and order differ": reorder,
        "disagrees with the model on the segments": lambda raw: raw["segments"].pop(),
        "unknown lowering 'magic'": lambda raw: segment(raw)["lowerings"].update({"/b/Conv": "magic"}),
        "does not read this": lambda raw: segment(raw)["lowerings"].update({"fc": "union"}),
        "contradicts the": lambda raw: segment(raw)["lowerings"].update({"/b/Conv": "gather"}),
        "disagrees with the model on consumer": lambda raw: raw["consumers"].pop("/b/Conv"),
        "frozen": lambda raw: [raw["segments"][0][key].clear() for key in ("order", "blocks")],
        "frozen slots must keep their order": lambda raw: raw["segments"][0].update(
            order=[1, 0, 2], blocks=[[1, 0, 2]]
        ),
        "keeps none of the slots": lambda raw: [segment(raw)[key].clear() for key in ("order", "blocks")],
    }


@pytest.mark.parametrize("word", contradictions())
def test_plan_that_contradicts_the_model(fails, folder, word):
    raw = plan_file(folder)
    contradictions()[word](raw)
    (folder / "plan.json").write_text(json.dumps(raw))
    error = refused(fails, "--plan", "plan.json")
    assert "plan.json: " in error and word in error


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

    monkeypatch.setattr("ucpe_onnx.pipeline.trace", broken)
    before = snapshot(folder)
    assert main(["in.onnx", "out.onnx"]) == 1
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1 and "internal error (KeyError" in err and "--debug" in err and out == ""
    assert snapshot(folder) == before
    with pytest.raises(KeyError):
        main(["in.onnx", "out.onnx", "--debug"])


@pytest.mark.parametrize("step", ["render_html", "save_model", "write_json"])
def test_a_failure_while_writing_leaves_no_partial_file(folder, capfd, monkeypatch, step):
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"ucpe_onnx.cli.{step}", broken)
    status = main(["in.onnx", "o", "--bench-seconds", "0", "-q", "--report", "r.html", "--json", "j.json"])
    err = capfd.readouterr().err
    assert status == 1 and "No space left" in err and len(err.splitlines()) == 1
    left = set(os.listdir(folder))
    assert left == ({"in.onnx", "o", "r.html"} if step == "write_json" else {"in.onnx"})


# The real thing


def test_the_process_itself(folder):
    """Exit codes and streams as a shell sees them, native libraries included."""

    def run(*arguments: str, module: str = "ucpe_onnx") -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[1]
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(read)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1
