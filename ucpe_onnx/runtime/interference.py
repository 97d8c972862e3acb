"""Whether other programs had the cores while something was timed.

A timing that is interrupted tells how busy the machine is, not how fast a model is; and the longer a model takes, the
more often it is interrupted, so that interruptions make differences look larger than they are. Linux keeps for every
thread how long it has waited for a core although it could have run: what a timing adds to that was taken from it.
Elsewhere the number of involuntary context switches says whether anything was taken at all.

Source: https://docs.kernel.org/scheduler/sched-stats.html, ``/proc/<pid>/schedstat``: time spent on the cpu, time spent
waiting on a runqueue (both in nanoseconds), and timeslices run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Waited: TypeAlias = "Callable[[], float]"
"""Seconds that this process' threads have waited for a core so far; only differences mean anything."""

INTERRUPTED = 0.02
"""A timing is interrupted if its threads have waited for a core for this share of it."""

_TASKS = "/proc/self/task"
_A_SWITCH = 1e-3
"""Seconds that an involuntary context switch counts for where nothing tells how long the wait was."""


class WaitingThreads:
    """The waiting times of the threads that there are now; files stay open, since this is read around every timing."""

    def __init__(self) -> None:
        self._files: list[int] = []
        for task in os.listdir(_TASKS):
            with suppress(OSError):  # a thread that has just ended
                self._files.append(os.open(f"{_TASKS}/{task}/schedstat", os.O_RDONLY))

    def __call__(self) -> float:
        """Seconds that these threads have waited so far."""
        total = 0
        for file in self._files:
            with suppress(OSError, IndexError, ValueError):
                total += int(os.pread(file, 128, 0).split()[1])
        return total * 1e-9

    def __del__(self) -> None:
        for file in self._files:
            with suppress(OSError):
                os.close(file)


def waiting() -> Waited:
    """What tells how long the threads that there are now have waited; constant where nothing does."""
    try:
        found = WaitingThreads()
        if found._files and found() > 0:
            return found
    except OSError:
        pass
    return _by_switches if resource is not None else lambda: 0.0


def _by_switches() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw * _A_SWITCH
