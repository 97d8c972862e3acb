"""Flags are declared once: what follows from a declaration, and that every option has one."""

from __future__ import annotations

import argparse
import doctest
from dataclasses import dataclass, fields
from typing import Any

import pytest

from ucpe_onnx import UsageError, bench, cli, flags, inspect, pdp
from ucpe_onnx.flags import Range, add_flags, check_values, documented, flag, flag_name, flagged, given, python_only
from ucpe_onnx.options import Options
from ucpe_onnx.train.options import TrainOptions

MESSAGES = {"--verbose", "--quiet", "--debug", "--help"}

CLI_ONLY = {
    *("--version", "--config"),
    *("--save-plan", "--report", "--json", "--save-external-data"),  # Python's users write what they want themselves
}

PDP_ONLY = {
    *("--data", "--labels", "--val-data", "--trained", "--emit", "--allow-slower", "--checkpoint", "--json"),
    "--config",
}


def actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """By the long flag; ``--no-compensate`` is its twin's."""
    long = {action: [s for s in action.option_strings if s.startswith("--")] for action in parser._actions}
    return {names[0]: action for action, names in long.items() if names}


@pytest.mark.parametrize(
    ("parser", "options", "others"),
    [
        (cli.build_parser(), Options, CLI_ONLY),
        (pdp.build_parser(), TrainOptions, PDP_ONLY),
        (bench.build_parser(), bench.Rounds, {"--baseline", "--calibrate", "--json", "--config"}),
    ],
)
def test_the_flags_are_the_fields(parser: argparse.ArgumentParser, options: Any, others: set[str]) -> None:
    declared = {flag_name(options, name) for name in flagged(options)}
    shared = {flag_name(Options, name) for name in bench.SHARED} if options is bench.Rounds else set()
    assert set(actions(parser)) == declared | others | shared | MESSAGES
    assert not declared & (others | MESSAGES)


@pytest.mark.parametrize("options", [Options, TrainOptions, bench.Rounds])
def test_every_field_has_a_flag_or_a_reason_and_a_documentation(options: Any) -> None:
    for field in fields(options):
        assert set(field.metadata) in ({"flag"}, {"python"}), field.name
        assert f"\n    {field.name}: " in options.__doc__
    assert [field.name for field in fields(options) if field.name not in flagged(options)] == (
        ["dump_beside"] if options is Options else []
    )


@pytest.mark.parametrize(
    ("parser", "arguments", "options"),
    [
        (cli.build_parser(), ["in.onnx", "out.onnx"], Options),
        (pdp.build_parser(), ["in.onnx", "masks.npz"], TrainOptions),
        (bench.build_parser(), ["a.onnx"], bench.Rounds),
    ],
)
def test_a_command_line_without_flags_gives_the_defaults(
    parser: argparse.ArgumentParser, arguments: list[str], options: Any
) -> None:
    values = given(parser.parse_args(arguments), options)
    for name, value in values.items():
        default = getattr(options(), name)
        assert (tuple(value) if isinstance(value, list) else value or default) == default, name


@pytest.mark.parametrize(
    ("parser", "names"),
    [(bench.build_parser(), bench.SHARED), (inspect.build_parser(), ("input_shapes", "providers", "opt_level"))],
)
def test_what_commands_share_is_the_same_flag(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    ours, theirs = actions(cli.build_parser()), actions(parser)
    for name in names:
        one, other = ours[flag_name(Options, name)], theirs[flag_name(Options, name)]
        told = ("dest", "nargs", "default", "type", "choices", "metavar")
        assert [getattr(one, key) for key in told] == [getattr(other, key) for key in told]


@documented
@dataclass(frozen=True)
class Baking:
    """How to bake."""

    minutes: int = flag(30, "the oven", "time in it (default %(default)s)", metavar="N", valid=Range("!", least=1))
    rise: bool = flag(True, "the dough", "bake at once", name="--flat")
    shape: str = flag("loaf", "the dough", "its shape", more="a ring has a hole", choices=("loaf", "ring"), place=1)
    seeds: tuple[str, ...] = flag((), "the dough", "on top", choices=("poppy", "rye"), action="append")
    salt: float | None = flag(None, "the dough", "grams", type=float, convert=lambda grams: grams and grams / 1000)
    baker: object = python_only(None, "who bakes, an object")


def test_a_declaration_makes_flags() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, "the dough", Baking)
    assert [a.option_strings[0] for a in parser._actions[1:]] == ["--flat", "--seeds", "--salt", "--shape"]
    add_flags(parser, "the oven", Baking)
    assert "the oven:\n  --minutes N" in parser.format_help() and "(default 30)" in parser.format_help()
    line = ["--flat", "--shape", "ring", "--seeds", "rye", "--seeds", "poppy", "--minutes", "5", "--salt", "8"]
    assert Baking(**given(parser.parse_args(line), Baking)) == Baking(5, False, "ring", ["rye", "poppy"], 0.008)  # type: ignore[arg-type]
    assert given(parser.parse_args([]), Baking, ("seeds", "rise", "salt")) == {"seeds": [], "rise": True, "salt": None}
    with pytest.raises(SystemExit):
        parser.parse_args(["--minutes", "1.5"])


@pytest.mark.parametrize(
    ("baking", "error"),
    [
        (Baking(minutes=0), "--minutes: 0 !"),
        (Baking(minutes=None), "--minutes: None !"),  # type: ignore[arg-type]
        (Baking(shape="cube"), "--shape: unknown 'cube'; choose from loaf, ring"),
        (Baking(seeds=("rye", "oats")), "--seeds: unknown 'oats'; choose from poppy, rye"),
    ],
)
def test_a_declaration_checks_values(baking: Baking, error: str) -> None:
    check_values(Baking())
    with pytest.raises(UsageError) as raised:
        check_values(baking)
    assert str(raised.value) == error


def test_a_declaration_is_documentation() -> None:
    assert Baking.__doc__ == "\n".join(
        [
            "How to bake.",
            "",
            "Attributes:",
            "    minutes: time in it (default 30).",
            "    rise: bake at once.",
            "    shape: its shape; one of loaf, ring; a ring has a hole.",
            "    seeds: on top; one of poppy, rye.",
            "    salt: grams.",
            "    baker: who bakes, an object.",
        ]
    )


def test_ranges() -> None:
    open_below = Range("", above=0, most=1)
    assert [number in open_below for number in (0, 0.5, 1, 1.5, float("nan"), "1", None)] == [
        False,
        True,
        True,
        *[False] * 4,
    ]
    assert float("inf") in Range("", above=0) and float("inf") not in Range("", least=0, below=float("inf"))
    assert 3 in flags.whole(1, 3) and 2.0 not in flags.whole(1, 3) and 10**400 not in flags.whole(1, 3)


def test_the_example_in_the_module() -> None:
    assert doctest.testmod(flags).failed == 0
