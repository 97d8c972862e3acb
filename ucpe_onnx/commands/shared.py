"""What all commands share: common flags, one-line errors, exit codes, JSON output."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ucpe_onnx.errors import EXIT_FAILED, UcpeError, UsageError
from ucpe_onnx.flags import TakesFlags
from ucpe_onnx.model.writing import check_writable, write_text
from ucpe_onnx.version import __version__


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


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints names as they are, whatever brackets, colons or letters they hold."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


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


def guarded(job: Callable[[], int], *, debug: bool) -> int:
    """Run a job; an error becomes one line on stderr and its exit code.

    Args:
        job: returns the exit code of a run that ended well.
        debug: let the traceback through.
    """
    try:
        return job()
    except UcpeError as error:
        if debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read stdout has left; Python would complain when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except MemoryError as error:
        if debug:
            raise
        print(f"error: out of memory ({_one_line(error)}); nothing was written: free some", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:  # a defect of ours: say so instead of showing a traceback
        if debug:
            raise
        print(
            f"error: internal error ({type(error).__name__}: {_one_line(error)}) in {_versions()}; nothing was written."
            " Please report it with this line and the output of the same command and --debug",
            file=sys.stderr,
        )
        return EXIT_FAILED


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def _versions() -> str:
    """What a report of a defect needs to name."""
    found = [f"ucpe-onnx {__version__}"]
    for package in ("onnx", "onnxruntime"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:  # a build of another name, such as onnxruntime-gpu
            found.append(f"{package} of unknown version")
    return ", ".join(found)


@contextmanager
def library_output_to_stderr() -> Iterator[None]:
    """Send what native libraries print to standard output (onnx's checker does) to standard error meanwhile.

    Standard output is for what the command itself has to say; with ``--json -`` a program reads it.
    """
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # closed: nothing can be printed there
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def write_json(target: str, value: Any) -> None:
    """Write a value as JSON to a file, or to standard output for ``-``."""
    text = json.dumps(value, indent=2)
    if target == "-":
        print(text, flush=True)
    else:
        write_text(target, text + "\n")
