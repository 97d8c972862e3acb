"""Second moments of what a layer reads and of what it ought to make, accumulated batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Moments:
    """Sums over rows of features f, with a 1 at the end, and of targets t, for each group of a layer.

    Attributes:
        gram: sum of f f', shape (groups, features + 1, features + 1).
        cross: sum of t f', shape (groups, targets, features + 1).
        energy: sum of t squared, shape (groups, targets).
        rows: how many rows there were.
    """

    gram: Array
    cross: Array
    energy: Array
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, features: int, targets: int) -> Moments:
        """No rows yet."""
        size = features + 1
        return cls(np.zeros((groups, size, size)), np.zeros((groups, targets, size)), np.zeros((groups, targets)))

    def add(self, features: Array, targets: Array) -> None:
        """Add rows.

        Args:
            features: shape (groups, rows, features), float32.
            targets: shape (groups, rows, targets), float32.
        """
        count = features.shape[1]
        if not count:
            return
        # Products in single precision, sums over batches in double: batches are small enough for that.
        self.gram[:, :-1, :-1] += np.matmul(features.swapaxes(1, 2), features)
        total = features.sum(axis=1, dtype=np.float64)
        self.gram[:, -1, :-1] += total
        self.gram[:, :-1, -1] += total
        self.gram[:, -1, -1] += count
        self.cross[:, :, :-1] += np.matmul(targets.swapaxes(1, 2), features)
        self.cross[:, :, -1] += targets.sum(axis=1, dtype=np.float64)
        self.energy += np.square(targets, dtype=np.float64).sum(axis=1)
        self.rows += count

    def plus(self, other: Moments) -> Moments:
        """The moments of the rows of both."""
        return Moments(
            self.gram + other.gram, self.cross + other.cross, self.energy + other.energy, self.rows + other.rows
        )

    def error(self, matrices: Array) -> float:
        """Mean over rows of |t - W f|^2, summed over groups.

        Args:
            matrices: W, shape (groups, targets, features + 1), with the bias in the last column.
        """
        inner = float(np.sum(np.matmul(matrices, self.gram) * matrices) - 2.0 * np.sum(matrices * self.cross))
        return max(inner + float(self.energy.sum()), 0.0) / max(self.rows, 1)

    @property
    def variance(self) -> float:
        """Mean over rows of the targets' squared distance from their mean, summed over groups."""
        rows = max(self.rows, 1)
        return max(float(self.energy.sum() - np.square(self.cross[:, :, -1]).sum() / rows), 0.0) / rows
