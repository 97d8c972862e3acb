"""How far a command is, on standard error: a bar with the time left on a terminal, else a line a stage.

What takes no longer than a second shows no lines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ucpe_onnx.commands.shared import make_console
from ucpe_onnx.commands.supervisor import note_stage

_PAUSE = 0.1
"""Seconds between two drawings of a bar; no thread draws it, which would disturb timings."""

_SOON = 1.0
"""Seconds after which lines begin to appear: what is over by then needs no account, and an error stays one line."""

_SILENCE = 30.0
"""Seconds after which a long stage gets another line, where there is no terminal."""


class Tell(Protocol):
    """Told what a command does."""

    def __call__(self, stage: str, share: float | None = None, detail: str = "") -> None:
        """Show a stage as it begins, and as it goes on.

        Args:
            stage: its name.
            share: what is done of it, from 0 to 1; None: nobody can tell.
            detail: the latest figures.
        """


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Tell]:
    """Something to tell about progress; it shows nothing if quiet."""
    console = make_console(stderr=True)
    if quiet:
        yield _Noting(None)
    elif not console.is_terminal:
        lines = _Lines(console)
        try:
            yield _Noting(lines)
        finally:
            lines.close()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
            yield _Noting(_Bar(bar))


def stages_told(tell: Tell) -> _Stages:
    """For :func:`ucpe_onnx.prune`, which says "plan", or "collect 40%"."""
    return _Stages(tell)


class _Stages:
    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def __call__(self, text: str) -> None:
        stage, _, last = text.rpartition(" ")
        if stage and last.endswith("%"):
            self._tell(stage, float(last[:-1]) / 100)
        else:
            self._tell(text)


class _Noting:
    """Hands on what it is told, and notes the stage for whoever supervises the process."""

    def __init__(self, to: Tell | None) -> None:
        self._to = to

    def __call__(self, stage: str, share: float | None = None, detail: str = "") -> None:
        note_stage(stage)
        if self._to is not None:
            self._to(stage, share, detail)


class _Lines:
    """A line when a stage begins, and now and then while it lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._begun = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._held: list[str] | None = []
        self._timer = threading.Timer(_SOON, self._appear)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, stage: str, share: float | None = None, detail: str = "") -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._told < _SILENCE:
            return
        far = f" {share:.0%}" if share else ""
        more = f" ({detail})" if detail else ""
        self._stage, self._told = stage, now
        self._show(f"{now - self._begun:7.1f} s  {stage}{far}{more}")

    def close(self) -> None:
        """Nothing is shown any more of what was held back."""
        self._timer.cancel()

    def _show(self, line: str) -> None:
        with self._lock:
            if self._held is not None:
                self._held.append(line)
                return
        self._console.print(line, soft_wrap=True)

    def _appear(self) -> None:
        with self._lock:
            held, self._held = self._held or [], None
        for line in held:
            self._console.print(line, soft_wrap=True)


class _Bar:
    """One bar, which begins anew with every stage."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._stage = ""
        self._task: TaskID | None = None
        self._drawn = 0.0

    def __call__(self, stage: str, share: float | None = None, detail: str = "") -> None:
        begins = stage != self._stage
        if begins:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage, self._task = stage, self._bar.add_task(stage, total=None)
        assert self._task is not None, "a first stage begins"
        now = time.monotonic()
        if not begins and now - self._drawn < _PAUSE:
            return
        self._drawn = now
        total = None if share is None else 1.0
        self._bar.update(self._task, description=detail or stage, completed=min(share or 0.0, 1.0), total=total)
        self._bar.refresh()
