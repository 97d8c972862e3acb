"""The stages of a run: announced as they begin, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ucpe_onnx.model.offload import trim_memory


class Stages:
    """Announces stages and keeps their times.

    Args:
        announce: called with the name of each stage as it begins, and with the share that is done of a long one.

    Attributes:
        seconds: time by stage.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self.seconds: dict[str, float] = {}

    def tell(self, name: str, share: float) -> None:
        """Announce how much of a stage is done."""
        self._announce(f"{name} {share:.0%}")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A stage, as a ``with`` block."""
        self._announce(name)
        start = time.perf_counter()
        yield
        trim_memory()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)
