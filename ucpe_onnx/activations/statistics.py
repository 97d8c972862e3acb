"""What consumers read on the user's samples, in numbers: per channel, and the second moments of their features."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.shrinkage import shrunk
from ucpe_onnx.errors import DataError, UcpeError
from ucpe_onnx.model.writing import partial_file

Array = npt.NDArray[Any]

FORMAT = "ucpe-statistics/1"

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, RecursionError)
"""What reading a file of another kind may raise."""
"""What a file of statistics says it is."""


@dataclass(frozen=True, eq=False)
class ConsumerStatistics:
    """What one consumer reads. All moments are means, in the units of the activations (squared, for second moments).

    Features are those of :class:`ucpe_onnx.activations.layers.Layer`: of each group of a layer, every channel at every
    tap of the window (F = C_in / groups * K), zero where the window reaches into the padding; or, where these were too
    many, every channel at the positions of the input map (F = C_in / groups).

    Attributes:
        samples: how many there were.
        values: how many values of each channel: samples times positions.
        mean: of each input channel, shape (C_in,), float64.
        energy: mean of the square, shape (C_in,), float64.
        gram: mean of f f' over rows of features, shape (groups, F, F), float64; None of a consumer that is no layer, or
            whose features were too many.
        feature_mean: mean of f, shape (groups, F), float64; None if there is no gram.
        rank: mean rank of the channel's feature map, shape (C_in,), float64; None if not asked for, or if what is read
            are no maps.
    """

    samples: int
    values: int
    mean: Array
    energy: Array
    gram: Array | None = None
    feature_mean: Array | None = None
    rank: Array | None = None

    @property
    def variance(self) -> Array:
        """Of each input channel, shape (C_in,): E[x^2] - E[x]^2, in double precision and not below 0."""
        return np.asarray(np.maximum(self.energy - np.square(self.mean), 0.0))

    @property
    def covariance(self) -> Array | None:
        """Of the features, shape (groups, F, F): E[f f'] - E[f] E[f]'; None if there is no gram."""
        if self.gram is None or self.feature_mean is None:
            return None
        return np.asarray(self.gram - self.feature_mean[:, :, None] * self.feature_mean[:, None, :])

    @property
    def safe_covariance(self) -> Array | None:
        """The covariance with correlations that so few samples may show by chance made smaller; None without a gram.

        Neighbouring positions of a map say much the same: for independent rows counts the geometric mean of samples
        and values.
        """
        covariance = self.covariance
        return None if covariance is None else shrunk(covariance, math.sqrt(self.samples * max(self.values, 1)))

    @property
    def safe_gram(self) -> Array | None:
        """E[f f'] with the safe covariance, shape (groups, F, F); None if there is no gram."""
        covariance = self.safe_covariance
        if covariance is None or self.feature_mean is None:
            return None
        return np.asarray(covariance + self.feature_mean[:, :, None] * self.feature_mean[:, None, :])


_NUMBERS = ("samples", "values")
_ARRAYS = tuple(field.name for field in fields(ConsumerStatistics) if field.name not in _NUMBERS)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the consumers of a model read on the user's samples.

    Attributes:
        consumers: by name.
        samples: how many samples there were.
    """

    consumers: Mapping[str, ConsumerStatistics]
    samples: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file at once; arrays that consumers share are written once.

        Raises:
            UcpeError: the file can't be written.
        """
        stored: dict[int, tuple[str, Array]] = {}
        consumers = {}
        for name, found in self.consumers.items():
            entry: dict[str, int | str | None] = {number: getattr(found, number) for number in _NUMBERS}
            for kind in _ARRAYS:
                array = getattr(found, kind)
                if array is not None:
                    stored.setdefault(id(array), (f"{kind}_{len(stored)}", array))
                entry[kind] = None if array is None else stored[id(array)][0]
            consumers[name] = entry
        header = json.dumps({"format": FORMAT, "samples": self.samples, "consumers": consumers})
        try:
            with partial_file(path) as partial, partial.open("wb") as stream:
                np.savez(stream, **{"header": np.array(header), **dict(stored.values())})  # type: ignore[arg-type]
        except OSError as error:
            raise UcpeError(f"{os.fspath(path)}: can't be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read a file that :meth:`save` has written.

        Raises:
            DataError: the file can't be read or holds something else.
        """
        file = Path(path)
        if not file.is_file():
            raise DataError(f"{file}: no such file; give statistics that were saved as .npz")
        try:
            with np.load(file, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is {header['format']!r}")
                arrays = {name: archive[name] for name in archive.files if name != "header"}
            consumers = {name: _consumer(entry, arrays) for name, entry in header["consumers"].items()}
            return cls(consumers, int(header["samples"]))
        except (*_UNREADABLE, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{file}: holds no statistics of format {FORMAT} ({reason}); collect them again") from error


def _consumer(entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> ConsumerStatistics:
    found: dict[str, Any] = {kind: None if entry[kind] is None else arrays[entry[kind]] for kind in _ARRAYS}
    return ConsumerStatistics(**{number: int(entry[number]) for number in _NUMBERS} | found)
