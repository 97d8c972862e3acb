"""What becomes of a constant of which the emitted graph needs a part: as data, and carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.slots import IntArray

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Edit:
    """What one use of a constant needs.

    Attributes:
        zeros: (axis, input channels, groups) to set to zero first, by their original places.
        takes: the positions to take along an axis, in emitted order.
        columns: for a grouped convolution the positions to take along axis 1, for each group.
    """

    zeros: tuple[int, tuple[int, ...], int] | None = None
    takes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    columns: tuple[tuple[int, ...], ...] = ()

    def moved(self, axes: Sequence[int]) -> Edit | None:
        """The same edit of a constant whose axes have other numbers; None for what goes by groups.

        Args:
            axes: the number there of each axis.
        """
        if self.columns or (self.zeros is not None and self.zeros[2] > 1):
            return None
        zeros = None if self.zeros is None else (axes[self.zeros[0]], *self.zeros[1:])
        return Edit(zeros, tuple(sorted((axes[axis], positions) for axis, positions in self.takes)))

    def apply(self, value: Array, zero: Array) -> Array:
        """The edited copy of a constant in which ``zero`` stands for zero."""
        if self.zeros is not None:
            value = _zeroed(value, zero, *self.zeros)
        for axis, positions in self.takes:
            value = np.take(value, np.asarray(positions, dtype=np.int64), axis=axis)
        if self.columns:
            by_group = value.reshape(len(self.columns), -1, *value.shape[1:])
            parts = [np.take(part, at, axis=1) for part, at in zip(by_group, self.columns, strict=True)]
            value = np.concatenate(parts)
        return np.ascontiguousarray(value)


def by_group(layout: IntArray, channels: int, groups: int) -> tuple[tuple[int, ...], ...]:
    """The emitted positions of each group, counted from the group's first; all groups keep equally many."""
    return tuple(tuple(part.tolist()) for part in (layout % (channels // groups)).reshape(groups, -1))


def _zeroed(
    value: npt.NDArray[np.generic], zero: npt.NDArray[np.generic], axis: int, channels: tuple[int, ...], groups: int
) -> npt.NDArray[np.generic]:
    """A copy in which what reads the given channels stands for zero."""
    copy = np.array(value)
    zeros = np.broadcast_to(zero, value.shape)
    if groups == 1 or axis == 0:
        np.moveaxis(copy, axis, 0)[list(channels)] = np.moveaxis(zeros, axis, 0)[list(channels)]
        return copy
    columns = value.shape[1]
    rows = copy.reshape(groups, -1, *value.shape[1:])  # (groups, C_out/groups, C_in/groups, k...), a view
    fill = zeros.reshape(rows.shape)
    for channel in channels:
        rows[channel // columns, :, channel % columns] = fill[channel // columns, :, channel % columns]
    return copy
