"""Flags from a TOML file: keys are the long flags without dashes in front; the command line wins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ucpe_onnx.model.limits import excess_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


def apply_config(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line, taking what it leaves out from the file that ``--config`` names.

    A flag that may be repeated is given as a list, ``ratio-for`` as a table too; the command line's come after these.
    Unknown keys and wrong values are usage errors.
    """
    args = parser.parse_args(arguments)
    config: Path | None = args.config
    if config is None:
        return args
    if config.exists() and not config.is_file() and not config.is_dir():  # a pipe or a device may never end
        parser.error(f"--config {config}: is no regular file")
    if config.is_file() and (excess := excess_of(config)):
        parser.error(f"--config {config}: {excess}")
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {config}: can't be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        parser.error(f"--config {config}: is not TOML ({error})")
    flags = {a.option_strings[-1][2:]: a for a in parser._actions if a.option_strings and a.dest in vars(args)}
    del flags["config"]
    for key, value in table.items():
        action = flags.get(key.replace("_", "-"))
        if action is None:
            parser.error(f"--config {config}: unknown key {key!r}; keys are long flags, such as ratio or save-plan")
        try:
            parser.set_defaults(**{action.dest: _converted(action, value)})
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"--config {config}: {key}: {error}")
    return parser.parse_args(arguments)


def _converted(action: argparse.Action, value: Any) -> Any:
    if isinstance(action.const, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false")
        return value
    if not isinstance(action.default, list):
        return _single(action, value)
    if isinstance(value, dict):
        value = [f"{name}={inner}" for name, inner in value.items()]
    return [_single(action, inner) for inner in (value if isinstance(value, list) else [value])]


def _single(action: argparse.Action, value: Any) -> Any:
    """Convert and check what argparse would have converted and checked."""
    if action.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = action.type if action.type in (float, int) else str
    if type(value) is not wanted:
        raise ValueError(f"{value!r} is not a {'string' if wanted is str else 'number'}")
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"unknown {value!r}; choose from {', '.join(action.choices)}")
    convert: Any = action.type
    return value if convert is None else convert(value)
