"""Calls in a process of their own: a native crash or a hang costs one call, not the whole run."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


class DiedError(Exception):
    """The call ended its process, or took too long; the message says which."""


class Isolated:
    """A function that runs in another process, which is replaced when a call ends it.

    Args:
        function: a module-level function of one argument; argument and result are pickled.
        seconds: longest time for one call.
    """

    def __init__(self, function: Callable[[Any], Any], seconds: float) -> None:
        self.function, self.seconds = function, seconds
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, argument: object) -> Any:
        """Call the function.

        Raises:
            DiedError: the process ended or was ended. The function has to catch its own exceptions: they end it too.
        """
        if self._process is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send(argument)
        if not self._pipe.poll(self.seconds):
            self.close()
            raise DiedError(f"no answer within {self.seconds:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise DiedError(f"the process ended with {code}") from None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit onnxruntime's threads, half dead
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.function, theirs), daemon=True)
        self._process.start()
        theirs.close()


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # what native libraries print
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        pipe.send(function(argument))
