"""Commands run in a child process, so that somebody is left to say what has died.

Native libraries die of what they don't bear: onnxruntime of a malformed model, without a word. The parent imports none
of them. It starts its own command line once more, hands signals on, and waits; should the child die of a signal, it
says of which, and at what stage. That costs the start of an interpreter, about 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from types import FrameType

_STAGE_FILE = "UCPE_STAGE_FILE"
"""The environment variable with the number of the open file that the child notes its stage in."""

_notes: int | None = None
"""The open file that this process notes its stage in, if it is supervised."""

_WIDTH = 64
"""Bytes of a note."""

_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")
_HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP")

EXIT_CRASHED = 1

_PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when its parent dies."""


def supervise() -> None:
    """Go on in a child, in which this returns; the parent waits for it, and exits with its exit code."""
    global _notes  # noqa: PLW0603  # one file a process
    given = os.environ.pop(_STAGE_FILE, None)  # what this process starts has other files of that number
    if given is not None:
        _notes = int(given)
        os.set_inheritable(_notes, False)
        _end_with_the_parent()
        return
    if os.name != "posix":
        return
    with tempfile.TemporaryFile() as notes:
        environment = {**os.environ, _STAGE_FILE: str(notes.fileno())}
        command = [sys.executable, *sys.orig_argv[1:]]
        child = subprocess.Popen(command, env=environment, pass_fds=[notes.fileno()])

        def hand_on(number: int, frame: FrameType | None) -> None:
            child.send_signal(number)

        for number in (getattr(signal, name) for name in _HANDED_ON):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, hand_on)
        status = child.wait()
        if status < 0:
            print(f"error: {_said(-status, _noted(notes.fileno()))}", file=sys.stderr)
            status = EXIT_CRASHED if _is_crash(-status) else 128 - status
    sys.exit(status)


def _end_with_the_parent() -> None:
    """Whoever kills the parent means the job; Linux alone tells the child."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def note_stage(stage: str) -> None:
    """Note what the process does, for whoever has to say what it died of; nothing outside of :func:`supervise`."""
    if _notes is not None:
        with contextlib.suppress(OSError):
            os.pwrite(_notes, stage.encode(errors="replace")[:_WIDTH].ljust(_WIDTH), 0)


WRITTEN = "its files were written"
"""The note of a process that has done its work."""


def _noted(file: int) -> str:
    return os.pread(file, _WIDTH, 0).decode(errors="replace").strip() or "the start"


def _is_crash(number: int) -> bool:
    return number in [getattr(signal, name) for name in _CRASHES if hasattr(signal, name)]


def _said(number: int, stage: str) -> str:
    name = signal.Signals(number).name
    when = f"after {stage}" if stage == WRITTEN else f"at the stage {stage!r}; nothing was written"
    if _is_crash(number):
        return (
            f"the process died of {name} {when}: onnxruntime or another native library does not bear this model or its"
            " samples; try --opt-level basic, or another version of onnxruntime, and report it there"
        )
    reason = ", perhaps since the memory was full: free some" if number == signal.SIGKILL else ""
    return f"the process was ended by {name} {when}{reason}"
