"""How a command ends: an error is one line and an exit code, a signal cleans up, and no message denies what is written.

``SIGTERM`` and ``SIGHUP`` unwind the stack as ``SIGINT`` does, so that partial files and temporary folders go.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ucpe_onnx.commands.shared import printable
from ucpe_onnx.errors import EXIT_FAILED, UcpeError
from ucpe_onnx.model.writing import written_files
from ucpe_onnx.version import __version__

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_PATIENCE = 5.0
"""Seconds after a signal in which others are ignored, since they would break off the cleaning up."""

_DEEP = "it is nested too deeply; if no file is, please report it with the output of the same command and --debug"


class Terminated(BaseException):
    """The process was told to end; not an error that anything on the way should handle.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def guarded(job: Callable[[], int], *, debug: bool) -> int:
    """Run a job; an error becomes one line on stderr and its exit code.

    Args:
        job: returns the exit code of a run that ended well.
        debug: let the traceback through.
    """
    _open_standard_streams()
    already = len(written_files())
    try:
        with _signals_unwind():
            status = job()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return _ended(f"interrupted; {_standing(already)}", 128 + signal.SIGINT)
    except Terminated as error:
        return _ended(f"ended by {error}; {_standing(already)}", 128 + error.number)
    except BrokenPipeError:  # whoever read stdout has left
        _silence_stdout()
        return EXIT_FAILED
    except (Exception, SystemExit) as error:
        if debug:
            raise
        return _failed(error, _standing(already))


def _failed(error: BaseException, standing: str) -> int:
    if isinstance(error, UcpeError):
        return _ended(_one_line(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _ended(f"out of memory ({_one_line(error)}); {standing}: free some", EXIT_FAILED)
    if isinstance(error, RecursionError):
        return _ended(f"recursion without end in {_versions()}; {standing}: {_DEEP}", EXIT_FAILED)
    if isinstance(error, OSError) and error.strerror:
        _silence_stdout()  # Python would complain about what is left to print
        where = f"{error.filename}: " if error.filename else "standard output: "
        return _ended(f"{where}{error.strerror}; {standing}", EXIT_FAILED)
    # A defect of ours: say so instead of showing a traceback.
    return _ended(
        f"internal error ({type(error).__name__}: {_one_line(error)}) in {_versions()}; {standing}. Please report it"
        " with this line and the output of the same command and --debug",
        EXIT_FAILED,
    )


def _ended(message: str, status: int) -> int:
    with suppress(OSError):  # nobody listens any more
        print(f"error: {printable(message)}", file=sys.stderr)
    return status


def _standing(already: int) -> str:
    """What the command has written, the first ``already`` files being others' work."""
    written = written_files()[already:]
    if not written:
        return "nothing was written"
    return f"{', '.join(map(str, written))} {'is' if len(written) == 1 else 'are'} written"


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
def _signals_unwind() -> Iterator[None]:
    """Signals that end the process raise, once; those that a caller ignores stay ignored."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals there only
        yield
        return
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] < _PATIENCE:
            return
        first[:] = [time.monotonic()]
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _open_standard_streams() -> None:
    """Give streams that were closed before the start somewhere to go: the next file would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open for good


def _silence_stdout() -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def library_output_to_stderr() -> Iterator[None]:
    """Send what native libraries print to standard output (onnx's checker does) to standard error meanwhile.

    Standard output is for what the command itself has to say; with ``--json -`` a program reads it.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
