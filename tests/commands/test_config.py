"""Flags from a TOML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ucpe_onnx.cli import build_parser
from ucpe_onnx.commands.config import apply_config


@pytest.fixture
def parse(tmp_path):
    def run(text: str, *arguments: str):
        (tmp_path / "c.toml").write_text(text, encoding="utf-8")
        return apply_config(build_parser(), ["in.onnx", "out.onnx", "--config", str(tmp_path / "c.toml"), *arguments])

    return run


def test_values_of_every_kind(parse):
    args = parse(
        """
        ratio = 0.5
        criterion = "l1"
        seed = 7
        bench-seconds = 1          # a whole number is a number
        allow_slower = true        # underscores do as well
        verbose = false
        save-plan = "plan.json"
        data = "samples.npz"
        ignore = ["a*", "b"]
        providers = "cpu"
        """
    )
    assert (args.ratio, args.criterion, args.seed, args.bench_seconds) == (0.5, "l1", 7, 1.0)
    assert (args.allow_slower, args.verbose) == (True, False)
    assert (args.save_plan, args.data) == (Path("plan.json"), "samples.npz")
    assert (args.ignore, args.providers) == (["a*", "b"], ["cpu"])
    assert (args.input, args.output) == (Path("in.onnx"), Path("out.onnx"))


def test_what_the_file_leaves_out_keeps_its_default(parse):
    args, plain = parse("seed = 3"), build_parser().parse_args(["in.onnx", "out.onnx"])
    assert {k for k, v in vars(args).items() if v != vars(plain)[k]} == {"seed", "config"}


def test_the_command_line_wins(parse):
    text = 'ratio = 0.5\nproviders = ["cuda", "cpu"]\nmode = "constrained"\n'
    args = parse(text, "--ratio", "0.1", "--providers", "cpu")
    assert (args.ratio, args.providers, args.mode) == (0.1, ["cpu"], "constrained")


def test_a_list_does_not_take_the_positionals(tmp_path):
    (tmp_path / "c.toml").write_text('providers = ["cpu"]')
    args = apply_config(build_parser(), ["--config", str(tmp_path / "c.toml"), "in.onnx", "out.onnx"])
    assert (args.input, args.output, args.providers) == (Path("in.onnx"), Path("out.onnx"), ["cpu"])


def test_repeatable_flags_come_before_the_command_lines(parse):
    """The last match counts, so the command line's ratio wins."""
    args = parse('ignore = "a"\n[ratio-for]\n"b=c*" = 0.5\nd = 0', "--ratio-for", "d=0.1", "--ignore", "e")
    assert args.ratio_for == [("b=c*", 0.5), ("d", 0.0), ("d", 0.1)]
    assert args.ignore == ["a", "e"]
    assert parse('ratio-for = ["d=0.5"]').ratio_for == [("d", 0.5)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rato = 0.5", ["unknown key 'rato'"]),
        ("config = 'other.toml'", ["unknown key 'config'"]),
        ("help = true", ["unknown key 'help'"]),
        ("input = 'x.onnx'", ["unknown key 'input'"]),
        ("[prune]\nratio = 0.5", ["unknown key 'prune'"]),
        ("ratio = '0.5'", ["ratio", "'0.5'", "not a number"]),
        ("ratio = true", ["ratio", "not a number"]),
        ("ratio = [0.5]", ["ratio", "not a number"]),
        ("seed = 1.5", ["seed", "1.5"]),
        ("report = 5", ["report", "not a string"]),
        ("data = 5", ["data", "not a string"]),
        ("ignore = [1]", ["ignore", "not a string"]),
        ("verbose = 1", ["verbose", "not true or false"]),
        ("mode = 'fast'", ["mode", "'fast'", "constrained"]),
        ("[ratio-for]\na = 'lots'", ["ratio-for", "'lots'"]),
        ("ratio-for = ['a']", ["ratio-for", "PATTERN=RATIO"]),
        ("ratio 0.5", ["is not TOML"]),
    ],
)
def test_wrong_files_are_usage_errors(parse, capsys, text, words):
    with pytest.raises(SystemExit) as error:
        parse(text)
    assert error.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ") and all(word in line for word in ["c.toml", *words]), line


def test_a_file_that_can_not_be_read(tmp_path, capsys):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, word in (("none.toml", "No such file"), ("", "Is a directory"), ("binary", "is not TOML")):
        with pytest.raises(SystemExit) as error:
            apply_config(build_parser(), ["in.onnx", "out.onnx", "--config", str(tmp_path / name)])
        assert error.value.code == 2 and word in capsys.readouterr().err
