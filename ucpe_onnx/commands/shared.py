"""What all commands share: common flags, checks of outputs, JSON output."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ucpe_onnx.errors import UsageError
from ucpe_onnx.flags import TakesFlags
from ucpe_onnx.model.writing import check_writable, write_text


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has."""
    group = parser.add_argument_group("messages")
    group.add_argument("-v", "--verbose", action="store_true", help="tell more")
    group.add_argument("-q", "--quiet", action="store_true", help="tell nothing but errors")
    group.add_argument("--debug", action="store_true", help="show tracebacks")


def add_json(to: TakesFlags, help: str) -> None:
    """Add the flag for the account that programs read; see :func:`write_json`."""
    to.add_argument("--json", metavar="FILE|-", help=help)


def add_config(to: TakesFlags, help: str) -> None:
    """Add the flag for a file of flags; see :func:`ucpe_onnx.commands.config.apply_config`."""
    to.add_argument("--config", type=Path, metavar="FILE.toml", help=help)


_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
"""Characters that turn the direction of what follows."""


def printable(text: str) -> str:
    """A text in which nothing steers the terminal: names in a model may hold escape sequences, bells, line ends."""
    if text.isprintable() and not _DIRECTIONS.intersection(text):
        return text
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in ("Cc", "Zl", "Zp") or each in _DIRECTIONS else each
        for each in text
    )


class Parser(argparse.ArgumentParser):
    """A parser whose messages hold nothing that steers the terminal, whatever the arguments are."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message("\n".join(map(printable, message.split("\n"))), file)


class _Console(Console):
    """Prints text from models as text. Whoever reads may leave: that is the caller's to handle, no reason to exit."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints names as they are, whatever brackets, colons or letters they hold."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse outputs that can't be written, or that would overwrite an input or each other, before any work.

    Args:
        outputs: files to write, by the flag that names them; None where it is not given.
        inputs: files to read, likewise.

    Raises:
        UsageError: names the file and the flags.
    """
    read = {_real(path): flag for flag, path in inputs.items() if path is not None}
    seen: dict[str, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        check_writable(path)
        if path.exists() and not path.is_file():  # several may go to /dev/null
            continue
        if source := read.get(_real(path)):
            raise UsageError(f"{path}: {flag} would overwrite {source}; give another path")
        if other := seen.get(_real(path)):
            raise UsageError(f"{path}: {flag} and {other} are the same file; give another path")
        seen[_real(path)] = flag


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def write_json(target: str, value: Any) -> None:
    """Write a value as JSON to a file, or to standard output for ``-``."""
    text = json.dumps(value, indent=2)
    if target == "-":
        print(text, flush=True)
    else:
        write_text(target, text + "\n")
