"""Arrays that a walk through a network keeps: in memory, and in files beyond a budget."""

from __future__ import annotations

import os
import tempfile
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.folders import TemporaryFolder

Array = npt.NDArray[Any]

BUDGET = 2**28
"""Bytes in memory; what comes later goes to files until there is room again."""


class Stored:
    """A handle of an array in a store.

    Attributes:
        shape: of the array.
        dtype: of the array.
    """

    __slots__ = ("_size", "array", "dtype", "path", "shape")

    def __init__(self, array: Array, path: str | None, size: int) -> None:
        self.array, self.path = (array if path is None else None), path
        self.shape, self.dtype, self._size = array.shape, array.dtype, size

    def drop(self) -> int:
        """Let go of the array; returns the bytes that it took of the budget."""
        if self.path is not None:
            os.unlink(self.path)
        size = 0 if self.array is None else self._size
        self.array = self.path = None
        return size


Chunks: TypeAlias = list[Stored]
"""A tensor on all samples, one array for each feed."""


class Store:
    """Keeps arrays, in a temporary folder once they are too many for memory. Use it in a ``with`` block.

    Args:
        budget: bytes to keep in memory.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._held = 0
        self._files = 0
        self._folder: TemporaryFolder | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @staticmethod
    def hold(array: Array) -> Stored:
        """Keep an array that is in memory anyway, and does not count."""
        return Stored(array, None, 0)

    def put(self, array: Array) -> Stored:
        """Keep an array.

        Raises:
            ModelError: it can't be written to a file.
        """
        if array.dtype.hasobject or self._held + array.nbytes <= self._budget:
            self._held += array.nbytes
            return Stored(array, None, array.nbytes)
        try:
            if self._folder is None:
                self._folder = TemporaryFolder()
            self._files += 1
            path = os.path.join(self._folder.name, f"{self._files}.npy")
            np.save(path, array)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise ModelError(
                f"{tempfile.gettempdir()}: activations can't be written ({reason}); free disk space, or give less data"
            ) from error
        return Stored(array, path, 0)

    def get(self, stored: Stored) -> Array:
        """The array."""
        if stored.array is not None:
            return stored.array
        assert stored.path is not None, "dropped arrays are not asked for"
        loaded: Array = np.load(stored.path)
        return loaded

    def drop(self, chunks: Chunks) -> None:
        """Let go of arrays."""
        for stored in chunks:
            self._held -= stored.drop()
