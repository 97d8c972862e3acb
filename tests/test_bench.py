"""The comparison of models: what it accepts, what it tells, what it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.models_small import wide, write
from tests.runtime.builders import make_model, node, unary, value
from ucpe_onnx import bench
from ucpe_onnx.bench import main
from ucpe_onnx.commands.bench_inputs import model_names
from ucpe_onnx.runtime.latency import CandidateLatency, LatencyReport

QUICK = ["--seconds", "0.02", "--rounds", "6", "--warmup", "1", "--threads", "1"]
ONCE = [*QUICK, "--reloads", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(unary("Relu"), tmp_path / "a.onnx")
    write(unary("Neg"), tmp_path / "b.onnx")
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """Decide what the measurement finds, and see what it was asked; ratios are given for all models but the first."""
    asked = {}

    def decide(*ratios: float):
        def fake(candidates, feeds, options, **rest):
            asked.update(rest, candidates=candidates, feeds=feeds, options=options)
            entries = [CandidateLatency(r, 1.1 * r, 1.2 * r, r, r - 0.01, r + 0.01) for r in ratios]
            first = CandidateLatency(1.0, 1.1, 1.2, 1.0, 1.0, 1.0)
            names = sorted(candidates, key=lambda name: name != rest["baseline"])
            found = dict(zip(names, [first, *entries], strict=True))
            return LatencyReport(rest["baseline"], {n: found[n] for n in candidates}, 30, 1, 3.0, rest["reloads"])

        monkeypatch.setattr(bench, "measure", fake)
        return asked

    return decide


def data_set(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, array in enumerate(arrays):
        (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())


def rows(count: int, fill: float = 0.0) -> np.ndarray:
    return np.full((count, 3), fill, np.float32)


def error_of(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main([*arguments, *ONCE])
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    return code, err


# What it tells


def test_table(folder, measured, capsys):
    write(unary("Abs"), folder / "c.onnx")
    write(unary("Sign"), folder / "d.onnx")
    asked = measured(0.8, 1.25, 0.995)
    assert main(["a.onnx", "b.onnx", "c.onnx", "d.onnx", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    lines = {line.split()[1]: line for line in out.splitlines() if ".onnx" in line}
    assert "1.000" in lines["a.onnx"] and "baseline" in lines["a.onnx"] and "x" not in lines["a.onnx"].split("onnx")[1]
    for text in ("0.800", "0.880", "0.960", "x0.800 (0.790 to 0.810)", "faster"):
        assert text in lines["b.onnx"]
    assert "slower" in lines["c.onnx"] and "undecided" in lines["d.onnx"]
    assert (
        "30 interleaved rounds over 10 loads of the models" in out and "1 thread," in out and "random, x [1,3]" in out
    )
    assert err == "" and max(map(len, out.splitlines())) <= 80
    assert {asked[key] for key in ("seconds", "warmup", "min_rounds", "reloads", "seed")} == {3.0, 2, 6, 10, 0}
    assert asked["options"].threads == 1


def test_json(folder, capsys):
    assert main(["a.onnx", "b.onnx", "--json", "out.json", "-q", *QUICK, "--seconds", "1", "--reloads", "6"]) == 0
    assert capsys.readouterr() == ("", "")
    found = json.loads((folder / "out.json").read_text())
    assert found["baseline"] == "a.onnx" and list(found["candidates"]) == ["a.onnx", "b.onnx"]
    entry = found["candidates"]["b.onnx"]
    assert {"file", "median_ms", "p90_ms", "p99_ms", "ratio", "low", "high", "verdict"} < set(entry)
    assert 0 < entry["low"] <= entry["ratio"] <= entry["high"] and found["candidates"]["a.onnx"]["ratio"] == 1
    assert found["loads"] >= 6 and found["rounds"] >= 6 and found["inputs"] == {"x": "[1,3]"}
    assert found["threads"] == 1 and found["data"] is None


def test_json_on_standard_output_leaves_the_table_to_standard_error(folder, measured, capsys):
    measured(0.8)
    assert main(["a.onnx", "b.onnx", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["candidates"]["b.onnx"]["verdict"] == "faster" and "x0.800" in err


def test_one_model_alone_and_one_twice(folder, capsys):
    assert main(["a.onnx", *ONCE]) == 0
    out = capsys.readouterr().out
    assert "baseline" in out and " rounds, all in one load" in out
    assert main(["a.onnx", "./a.onnx", "--json", "-", "-q", *ONCE]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"]
    assert list(found) == ["a.onnx", "a.onnx #2"] and 0.1 < found["a.onnx #2"]["ratio"] < 10


def test_names_tell_models_apart():
    def names(*paths: str) -> list[str]:
        return list(model_names([Path(path) for path in paths]))

    assert names("x/a.onnx", "y/b.onnx") == ["a.onnx", "b.onnx"]
    assert names("old/model.onnx", "new/model.onnx", "b.onnx") == ["old/model.onnx", "new/model.onnx", "b.onnx"]
    assert names("1/v/m.onnx", "2/v/m.onnx") == ["1/v/m.onnx", "2/v/m.onnx"]
    assert names("m.onnx", "d/m.onnx", "m.onnx")[1:] == ["d/m.onnx", f"{names('m.onnx', 'd/m.onnx')[0]} #2"]


def test_baseline(folder, measured, capsys):
    asked = measured(0.8)
    for given in ("b.onnx", "b", str(folder / "b.onnx")):
        assert main(["a.onnx", str(folder / "b.onnx"), "--baseline", given]) == 0
        assert asked["baseline"] == "b.onnx"
    assert main(["a.onnx", str(folder / "b.onnx"), "-v"]) == 0
    assert f"b.onnx is {folder}/b.onnx" in capsys.readouterr().out.replace("\n", "")
    assert error_of(capsys, "a.onnx", "b.onnx", "--baseline", "c") == (
        2,
        "error: --baseline: 'c' is none of the models; choose from a.onnx, b.onnx\n",
    )
    write(unary("Abs"), folder / "a.model.onnx")
    (folder / "d").mkdir()
    write(unary("Abs"), folder / "d" / "a.onnx")
    code, err = error_of(capsys, "a.onnx", "d/a.onnx", "--baseline", "a")
    assert code == 2 and "'a' fits several models" in err


# What it feeds


def test_data_of_every_form(folder, measured, capsys):
    asked = measured(0.9)
    np.savez("x.npz", x=np.stack([np.full(3, i, np.float32) for i in range(40)]))
    data_set(folder / "sets" / "test_data_set_0", rows(2, 1))
    data_set(folder / "sets" / "test_data_set_10", rows(1, 3))
    data_set(folder / "sets" / "test_data_set_9", rows(2, 2))
    Path("loader.py").write_text(
        "import numpy as np\ndef two(): return [{'x': np.ones((n, 3), 'f')} for n in (4, 5)]\n"
    )
    for data, shapes in (
        ("x.npz", [(1, 3)] * 32),
        ("sets", [(2, 3), (2, 3), (1, 3)]),
        ("loader:two", [(4, 3), (5, 3)]),
    ):
        assert main(["a.onnx", "b.onnx", "--data", data]) == 0
        assert [feed["x"].shape for feed in asked["feeds"]] == shapes
        assert f"{len(shapes)} from {data}" in " ".join(capsys.readouterr().out.split())
    assert main(["a.onnx", "b.onnx", "--data", "sets/test_data_set_9"]) == 0
    assert [feed["x"][0, 0] for feed in asked["feeds"]] == [2]


def test_data_sets_beside_the_first_model(folder, measured, capsys):
    asked = measured(0.9)
    write(unary("Relu"), folder / "b.onnx")
    code, err = error_of(capsys, "a.onnx", "b.onnx", "--data", "beside")
    assert code == 1 and "no test_data_set_N/input_M.pb beside a.onnx" in err
    data_set(folder / "test_data_set_0", rows(1, 7))
    data_set(folder / "test_data_set_1", rows(1, 8))
    assert main(["a.onnx", "b.onnx"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "beside a.onnx lie 2 test_data_set_N: --data beside measures with them" in out and "random" in out
    assert main(["a.onnx", "b.onnx", "--data", "beside"]) == 0
    assert [feed["x"][0, 0] for feed in asked["feeds"]] == [7, 8]
    assert "measures with them" not in capsys.readouterr().out


def test_inputs_in_another_order_are_the_same_inputs(folder, measured):
    """Data sets count inputs in the order of the first model."""
    asked = measured(0.9)
    one, two = value("one", ("N", 3)), value("two", ("N", 2))
    nodes = [node("Concat", "one two", axis=1)]
    write(make_model(nodes, [one, two], [value("y", ("N", 5))]), folder / "a.onnx")
    write(make_model(nodes, [value("two", (1, 2)), one], [value("y", ("N", 5))]), folder / "b.onnx")
    data_set(folder / "test_data_set_0", rows(1), np.ones((1, 2), np.float32))
    assert main(["a.onnx", "b.onnx", "--data", "beside"]) == 0
    assert {name: array.shape for name, array in asked["feeds"][0].items()} == {"one": (1, 3), "two": (1, 2)}


def test_a_length_that_one_model_fixes_holds_for_all(folder, measured):
    asked = measured(0.9)
    write(unary("Neg", (5, 3)), folder / "b.onnx")
    assert main(["a.onnx", "b.onnx"]) == 0
    assert asked["feeds"][0]["x"].shape == (5, 3)


def test_input_shapes(folder, measured, capsys):
    asked = measured(0.9)
    assert main(["a.onnx", "b.onnx", "--input-shapes", "x:[7,3]"]) == 0
    assert asked["feeds"][0]["x"].shape == (7, 3)
    code, err = error_of(capsys, "a.onnx", "b.onnx", "--input-shapes", "x:[7,4]")
    assert code == 2 and "does not fit the declared shape [N,3]" in err


# What it refuses


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (unary("Neg", ("N", 4)), "'x' has the shape [N,4], that of a.onnx [N,3]"),
        (unary("Neg", ("N", 3, 1)), "'x' has the shape [N,3,1], that of a.onnx [N,3]"),
        (unary("Neg", ("N", 3), TensorProto.FLOAT16), "'x' is a float16 tensor, that of a.onnx a float tensor"),
        (make_model([node("Neg", "z")], [value("z", (1, 3))], [value("y", (1, 3))]), "'x' is missing, which a.onnx"),
        (
            make_model([node("Add", "x z")], [value("x", (1, 3)), value("z", (1, 3))], [value("y", (1, 3))]),
            "'z' is none of a.onnx's",
        ),
    ],
    ids=["length", "rank", "type", "other name", "one more"],
)
def test_other_inputs(folder, capsys, model, problem):
    write(model, folder / "b.onnx")
    code, err = error_of(capsys, "a.onnx", "b.onnx")
    assert code == 1 and err.startswith(f"error: b.onnx: input {problem}")


def test_a_model_that_does_not_run_on_what_the_others_take(folder, capsys):
    """The graph declares no more than that there are two axes; a Reshape inside wants three rows."""
    shape = numpy_helper.from_array(np.array([9], np.int64), "s")
    model = make_model([node("Reshape", "x s")], [value("x", ("N", "M"))], [value("y", (9,))])
    model.graph.initializer.append(shape)
    write(model, folder / "b.onnx")
    code, err = error_of(capsys, "a.onnx", "b.onnx", "--input-shapes", "x:[1,3]")
    assert code == 1 and err.startswith("error: b.onnx: onnxruntime can't run it: ")


def test_files_that_are_no_models(folder, capsys):
    (folder / "junk.onnx").write_bytes(b"\xff" * 64)
    for name in ("missing.onnx", "junk.onnx"):
        code, err = error_of(capsys, "a.onnx", name)
        assert code == 1 and name in err


@pytest.mark.parametrize(
    "flags",
    [
        ["--seconds", "0"],
        ["--seconds", "inf"],
        ["--seconds", "nan"],
        ["--rounds", "1"],
        ["--warmup", "0"],
        ["--reloads", "3"],
        ["--threads", "-1"],
        ["--seed", "-1"],
        ["--providers", "abacus"],
        ["--input-shapes", "x=1"],
    ],
)
def test_flags_that_make_no_sense(folder, capsys, flags):
    assert main(["a.onnx", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and flags[0] in err


def test_usage(folder, capsys):
    for arguments in ([], ["--json", "-"], ["a.onnx", "--calibrate"], ["a.onnx", "--second", "1"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
    assert error_of(capsys, "a.onnx", "--json", "a.onnx")[0] == 2
    assert onnx.load("a.onnx").graph.node


def test_debug_shows_the_traceback(folder):
    with pytest.raises(Exception, match=r"missing\.onnx"):
        main(["missing.onnx", "--debug"])


# Around it


def test_flags_from_a_file(folder, measured):
    asked = measured(0.9)
    Path("c.toml").write_text('seconds = 1\nreloads = 6\nthreads = 2\nbaseline = "b"\n')
    assert main(["a.onnx", "b.onnx", "--config", "c.toml", "--reloads", "8"]) == 0
    assert (asked["seconds"], asked["reloads"], asked["baseline"]) == (1.0, 8, "b.onnx")
    assert asked["options"].threads == 2


def test_progress_is_for_terminals(folder, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for quiet in ([], ["-q"]):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        assert main(["a.onnx", "b.onnx", *ONCE, *quiet]) == 0
        assert ("measure" in sys.stderr.getvalue()) is not bool(quiet)


def test_calibrate(folder, monkeypatch, capsys):
    class Rates:
        def describe(self):
            return [("1x1 convolution", "130 GFLOP/s")]

        def to_dict(self):
            return {"block": 16}

    asked = []
    monkeypatch.setattr(bench, "calibrate", lambda options, **rest: asked.append((options, rest)) or Rates())
    assert main(["--calibrate", "--threads", "2", "--json", "rates.json"]) == 0
    assert "1x1 convolution" in capsys.readouterr().out and json.loads(Path("rates.json").read_text()) == {"block": 16}
    assert main(["--calibrate", "int8", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert [(options.threads, rest["precision"]) for options, rest in asked] == [(2, "float32"), (0, "int8")]


def test_models_of_the_main_job(folder, capsys):
    """A convolutional model and itself, on the shapes that the main job would take."""
    write(wide(), folder / "w.onnx")
    assert main(["w.onnx", "w.onnx", *QUICK, "--reloads", "6"]) == 0
    assert "x [1,3,8,8]" in capsys.readouterr().out
