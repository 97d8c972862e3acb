"""The command line's own work: exit codes, what is written when, what goes to which stream."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import fields

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.builders import Net
from tests.models_small import branches, elementwise, latency, sample, single_consumer, wide, write
from ucpe_onnx import inspect, prune
from ucpe_onnx.cli import build_parser, main
from ucpe_onnx.model.files import load_model
from ucpe_onnx.options import Options

ALL = ["--save-plan", "p.json", "--report", "r.html", "--json", "j.json"]
HALF = ["--mode", "constrained", "--ratio", "0.5"]  # removes channels whatever the blocks of the machine


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(branches(), tmp_path / "in.onnx")
    write(wide(), tmp_path / "wide.onnx")
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """Decide what the measurement finds; the last outcome repeats."""

    def decide(*ratios: float) -> None:
        left = list(ratios)
        monkeypatch.setattr(
            "ucpe_onnx.run.context.measure",
            lambda models, *_, **__: latency(left.pop(0) if len(left) > 1 else left[0], names=models),
        )

    return decide


def quick(*arguments: str) -> int:
    return main(["in.onnx", "out.onnx", "--bench-seconds", "0", *arguments])


def written(folder) -> set[str]:
    return set(os.listdir(folder)) - {"in.onnx", "wide.onnx"}


# Exit codes


def test_faster_is_written(folder, measured, capsys):
    measured(0.8)
    assert main(["wide.onnx", "out.onnx", *HALF, *ALL]) == 0
    assert written(folder) == {"out.onnx", "p.json", "r.html", "j.json"}
    account = json.loads((folder / "j.json").read_text())
    assert account["written"] is True and account["faster"] is True and account["source"] == "wide.onnx"
    out, err = capsys.readouterr()
    assert out.endswith("wrote out.onnx, r.html, p.json, j.json\n") and "x0.800 (0.790 to 0.810)" in out and err == ""
    onnx.checker.check_model(onnx.load("out.onnx"), full_check=True)


def test_what_has_lost_nothing_only_seems_faster(folder, measured, capsys):
    measured(0.8)
    assert main(["in.onnx", "out.onnx", "--ratio", "0", *ALL]) == 3
    assert written(folder) == {"p.json", "r.html", "j.json"}
    assert "nothing could be removed" in capsys.readouterr().err
    assert json.loads((folder / "j.json").read_text())["latency"] is None, "there was nothing to measure"


@pytest.mark.parametrize("ratio", [1.0, 1.2, 0.995])
def test_not_faster_is_not_written(folder, measured, capsys, ratio):
    measured(ratio)
    assert main(["wide.onnx", "out.onnx", *HALF, *ALL]) == 3
    assert written(folder) == {"p.json", "r.html", "j.json"}, "what was found out is kept"
    assert not json.loads((folder / "j.json").read_text())["written"]
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and f"x{ratio:.3f}" in err and "wide.onnx" in err
    assert "out.onnx is not written: raise --ratio, or pass --allow-slower" in err
    assert "wrote r.html, p.json, j.json" in out and "verified on" in out


def test_not_faster_leaves_an_earlier_output_alone(folder, measured):
    measured(1.2)
    (folder / "out.onnx").write_bytes(b"earlier")
    assert main(["in.onnx", "out.onnx", "-q"]) == 3
    assert (folder / "out.onnx").read_bytes() == b"earlier"


def test_a_busy_machine_is_undecided(folder, monkeypatch, capsys):
    """No factor anywhere, exit code 3, and what to do."""

    def busy(models, *_, **__):
        return latency(0.1, names=models).disbelieved("other programs interrupted 90 of 100 timings")

    monkeypatch.setattr("ucpe_onnx.run.context.measure", busy)
    assert main(["wide.onnx", "out.onnx", *HALF, *ALL]) == 3
    assert written(folder) == {"p.json", "r.html", "j.json"}
    out, err = capsys.readouterr()
    assert "busy: undecided" in out and "x0.1" not in out
    assert "wide.onnx: verified, but busy: undecided (other programs interrupted 90 of 100 timings)" in err
    assert "out.onnx is not written" in err and "--bench-seconds" in err
    page = (folder / "r.html").read_text()
    assert "busy: undecided" in page and "times as fast" not in page and "0.100" not in page
    assert json.loads((folder / "j.json").read_text())["latency"]["candidates"]["output"]["ratio"] is None


def test_more_time_saved_than_work_is_not_believed(folder, measured, capsys):
    measured(0.05)
    assert main(["wide.onnx", "out.onnx", *HALF, *ALL]) == 3
    assert "x0.050 was measured, but no less than" in capsys.readouterr().err


def test_allow_slower(folder, measured):
    measured(1.2)
    assert main(["in.onnx", "out.onnx", "--allow-slower", *ALL]) == 0
    assert written(folder) == {"out.onnx", "p.json", "r.html", "j.json"}
    account = json.loads((folder / "j.json").read_text())
    assert account["written"] is True and account["faster"] is False


def test_not_faster_is_still_told_on_standard_output(folder, measured, capsys):
    measured(1.2)
    assert main(["wide.onnx", "out.onnx", *HALF, "--json", "-"]) == 3
    account = json.loads(capsys.readouterr().out)
    assert account["written"] is False and account["latency"]["candidates"]["output"]["ratio"] == 1.2


def test_the_advice_fits_the_case(folder, measured, capsys):
    measured(1.0)
    write(single_consumer(), folder / "single.onnx")
    write(elementwise(), folder / "plain.onnx")
    np.savez(folder / "m.npz", fc=np.ones(8, bool))
    for arguments, advice in (
        (["single.onnx"], "no channel may be pruned, python -m ucpe_onnx.inspect single.onnx tells why"),
        (["plain.onnx"], "no channel may be pruned"),
        (["in.onnx", "--masks", "m.npz"], "prune more, or pass --allow-slower"),
    ):
        assert main([arguments[0], "out.onnx", *arguments[1:]]) == 3
        assert advice in capsys.readouterr().err


def test_without_a_measurement_the_output_is_written(folder, capsys):
    assert quick("--json", "j.json") == 0
    account = json.loads((folder / "j.json").read_text())
    assert account["written"] is True and account["latency"] is None and account["faster"] is False
    assert "latency" not in capsys.readouterr().out


def test_failed_verification_writes_nothing(folder, monkeypatch, capsys):
    def wrong(model, *_):
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        tensor = broken.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        return broken

    monkeypatch.setattr("ucpe_onnx.run.trials.emit", wrong)
    assert quick(*ALL) == 1
    out, err = capsys.readouterr()
    assert written(folder) == set() and out == "" and len(err.splitlines()) == 1
    assert "in.onnx: output 'y' differs by" in err and "bound" in err


def test_an_emitted_model_that_is_invalid_is_not_written(folder, monkeypatch, capsys):
    def invalid(model, *_):
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        del broken.graph.node[0]
        return broken

    monkeypatch.setattr("ucpe_onnx.run.trials.emit", invalid)
    assert quick() == 1
    assert written(folder) == set() and "the emitted model: onnx.checker refuses it" in capsys.readouterr().err


# Streams


def test_json_to_standard_output_is_alone_there(folder, capsys):
    assert quick("--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["written"] is True and "wrote out.onnx" in err and "parameters" in err


def test_quiet_says_nothing(folder, capsys):
    assert quick("-q") == 0
    assert capsys.readouterr() == ("", "")
    assert quick("-q", "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["segments"] and err == ""


def test_json_holds_what_the_summary_shows(folder, capsys):
    write(wide(), folder / "in.onnx")
    np.savez(folder / "d.npz", x=sample(8), labels=np.arange(8) % 4)
    assert quick("--json", "-", "--data", "d.npz", "--ratio", "0.5") == 0
    account = json.loads(capsys.readouterr().out)
    for when in ("before", "after"):
        assert set(account[when]) == {"parameters", "macs", "bytes", "nodes", "copies"}
        assert 0 <= account["accuracy"][when] <= 1
    assert account["after"]["parameters"] < account["before"]["parameters"]
    assert account["verification"]["passed"] is True and account["verification"]["feeds"] >= 4
    assert account["after"]["bytes"] == os.path.getsize("out.onnx")
    assert account["before"]["bytes"] == os.path.getsize("in.onnx")
    first = account["segments"][0]
    assert first["consumers"] == ["stem"] and first["frozen"] == 3 and first["reasons"] == ["graph input x"]
    assert {"load", "analyse", "score", "plan", "emit", "verify"} <= set(account["seconds"])


def test_verbose_lists_the_segments(folder, capsys):
    quick()
    assert "read by" not in capsys.readouterr().out
    quick("-v")
    assert "read by" in capsys.readouterr().out


def test_names_are_printed_as_they_are(folder, capsys):
    """Brackets are no markup, colons no emoji, and no letter is too much for the terminal's encoding."""
    names = ("[red]a", "[/b]", ":smile:", "ünïcödé 層")
    write(branches(names), folder / "in.onnx")
    assert quick("-v") == 0
    assert "[red]a" in capsys.readouterr().out
    assert inspect.main(["in.onnx"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_a_file_called_like_markup(folder, capsys):
    assert main(["in.onnx", "[bold]out.onnx", "--bench-seconds", "0"]) == 0
    assert "wrote [bold]out.onnx" in capsys.readouterr().out


# Outputs


def test_what_is_no_regular_file_is_written_to_and_stays(folder):
    """As with /dev/null, which several outputs may go to and which must not be replaced by a file."""
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(["in.onnx", "pipe", "--bench-seconds", "0", "-q", "--save-plan", "pipe", "--json", "pipe"]) == 0
    os.close(reader)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and written(folder) == {"pipe"}


def test_a_link_stays_a_link(folder):
    (folder / "real.onnx").write_bytes(b"old")
    (folder / "out.onnx").symlink_to("real.onnx")
    assert quick("-q") == 0
    assert (folder / "out.onnx").is_symlink() and onnx.load(folder / "real.onnx").graph.node
    assert written(folder) == {"out.onnx", "real.onnx"}


def test_outputs_are_replaced(folder):
    for name in ("out.onnx", "p.json", "r.html", "j.json"):
        (folder / name).write_text("x" * 100_000)
    assert quick("-q", *ALL) == 0
    json.loads((folder / "p.json").read_text())
    json.loads((folder / "j.json").read_text())
    assert (folder / "r.html").read_text().rstrip().endswith("</html>")


def test_weights_beside_the_output(folder):
    assert quick("-q") == 0
    whole = load_model("out.onnx")
    assert quick("-q", "--save-external-data") == 0
    assert written(folder) == {"out.onnx", "out.onnx.data"} and load_model("out.onnx") == whole
    assert main(["out.onnx", "again.onnx", "--bench-seconds", "0", "-q"]) == 0  # it is an input like any other


def test_the_weights_of_the_input_are_not_overwritten(folder, capsys):
    onnx.save_model(branches(), "in.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (folder / "out.onnx.data").read_bytes()
    assert quick("-q", "--json", "out.onnx.data") == 2
    assert "would overwrite the weights of in.onnx, out.onnx.data" in capsys.readouterr().err
    assert written(folder) == {"out.onnx.data"} and (folder / "out.onnx.data").read_bytes() == before
    for _ in range(2):
        assert quick("-q", "--save-external-data") == 0
        assert len(written(folder)) == 3 and (folder / "out.onnx.data").read_bytes() == before
        load_model("out.onnx")
    os.mkfifo(folder / "pipe")
    assert main(["in.onnx", "pipe", "--save-external-data"]) == 2
    assert "needs a regular file" in capsys.readouterr().err


# Plans and masks on the command line


def test_a_saved_plan_reproduces_the_file_bit_for_bit(folder):
    for arguments in (
        [],
        ["--mode", "unconstrained", "--lowering", "gather"],
        ["--criterion", "random", "--seed", "3"],
    ):
        assert quick("-q", "--ratio", "0.5", "--save-plan", "p.json", *arguments) == 0
        assert main(["in.onnx", "again.onnx", "-q", "--bench-seconds", "0", "--plan", "p.json", "--ratio", "0.1"]) == 0
        assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_masks_from_both_kinds_of_file_do_the_same(folder):
    kept = {"/b/Conv": [0, 3, 5, 6], "fc": [1, 2, 7], "/c/Conv": [15]}
    sizes = {"/b/Conv": 16, "fc": 8, "/c/Conv": 16}
    np.savez(folder / "m.npz", **{name: np.isin(np.arange(sizes[name]), k) for name, k in kept.items()})
    (folder / "m.json").write_text(json.dumps(kept))
    for kind in ("npz", "json"):
        assert main(["in.onnx", f"{kind}.onnx", "-q", "--bench-seconds", "0", "--masks", f"m.{kind}"]) == 0
    assert (folder / "npz.onnx").read_bytes() == (folder / "json.onnx").read_bytes()


# Flags


def test_every_flag_is_an_option_of_the_python_function():
    """All that the command line does can be reached from Python: the rest only says where results go."""
    results = {"input", "output", "save_plan", "report", "json", "config", "verbose", "quiet", "debug"}
    results.add("save_external_data")
    args = vars(build_parser().parse_args(["in.onnx", "out.onnx"]))
    assert set(args) - results == {field.name for field in fields(Options)} - {"dump_beside"}  # out.onnx
    defaults = {field.name: field.default for field in fields(Options)}
    for name in set(args) - results - {"input_shapes"}:
        value = tuple(args[name]) if isinstance(args[name], list) else args[name]
        assert value == defaults[name], name


def test_every_flag_reaches_the_options(folder, monkeypatch):
    seen = []

    def spy(model, options, **_):
        seen.append((model, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("ucpe_onnx.cli.prune", spy)
    flags = (
        "--ratio 0.5 --criterion l1 --scope global --mode constrained --masks m.npz --plan p.json --ignore a*"
        " --ignore b --ratio-for c=0.25 --lowering union --data d.npz --test-data t.npz --compensate"
        " --input-shapes x:[1,3,8,8] --providers cpu"
        " --threads 2 --opt-level basic --seed 7 --rtol 0.1 --atol 0.2 --solver-seconds 1.5 --bench-seconds 0.5"
        " --max-ratio 0.6 --save-stats s.npz --target-latency 0.7 --target-macs 0.7 --target-params 0.7"
        " --max-accuracy-drop 1 --steps 2 --sensitivity"
        " --verify-each --dump-after prune-weights --measure --calibrate --allow-slower"
    )
    assert main(["in.onnx", "out.onnx", *flags.split()]) == 130
    (model, options), default = seen[0], Options()
    assert str(model) == "in.onnx"
    assert [f.name for f in fields(Options) if getattr(options, f.name) == getattr(default, f.name)] == []
    assert (options.ratio_for, list(options.ignore)) == ([("c", 0.25)], ["a*", "b"])
    assert options.input_shapes == {"x": (1, 3, 8, 8)}
    assert (options.dump_after, str(options.dump_beside)) == (["prune-weights"], "out.onnx")


def test_help_and_version(capsys):
    for arguments, text in ((["--help"], "exit codes"), (["--version"], "ucpe-onnx")):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 0 and text in capsys.readouterr().out


def test_interruption_is_one_line(folder, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ucpe_onnx.run.opening.trace", interrupt)
    assert quick() == 130
    assert capsys.readouterr() == ("", "error: interrupted; nothing was written\n") and written(folder) == set()


def test_repeated_and_missing_node_names(folder):
    """The public rule, from the listing through a mask file to the output: <op_type>_<index in graph order>."""
    net = Net()
    a = net.conv(net.input(), 16)
    b = net.conv(a, 16, name="twin")
    c = net.conv(b, 16, name="twin")
    write(net.output(net.conv(c, 4, name="own")).model(), folder / "in.onnx")
    names = ["Conv_0", "Conv_1", "Conv_2", "own"]
    assert [c["name"] for c in inspect.listing("in.onnx")["consumers"]] == names
    np.savez(folder / "m.npz", Conv_1=np.arange(16) < 8, own=np.arange(16) >= 8)
    assert quick("-q", "--masks", "m.npz", "--save-plan", "p.json") == 0
    assert list(json.loads((folder / "p.json").read_text())["consumers"]) == names
    assert [n.name for n in onnx.load("out.onnx").graph.node if n.op_type == "Conv"] == names


def test_what_libraries_print_does_not_reach_standard_output(folder, capfd, monkeypatch):
    def chatty(*arguments, **options):
        os.write(1, b"Warning: from a native library\n")
        return prune(*arguments, **options)

    monkeypatch.setattr("ucpe_onnx.cli.prune", chatty)
    assert quick("--json", "-", "-q") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["written"] and "native library" in err
