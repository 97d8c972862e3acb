"""Dropping blocks of a linear map's inputs one by one, the cheapest first, with the others refitted each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_PANEL = 64
"""Columns of updates that wait until they are carried out as one product."""


def eliminate(
    gram: Array, outer: Array, units: Array, removable: Array, first: Sequence[int] = ()
) -> tuple[list[int], list[float]]:
    """Greedy Optimal Brain Surgeon elimination of blocks of features.

    Of a map ``y = W f`` with second moments G = E[f f'] and H = G^-1, dropping block u costs
    ``min E|W f - W~ f|^2 = tr(W_u (H_uu)^-1 W_u')`` over all W~ that do not read u. The cheapest block goes; then
    ``W -= W_u (H_uu)^-1 H_u:`` is the refitted map, ``H -= H_:u (H_uu)^-1 H_u:`` the inverse of what is left of G, and
    so on. W is followed through S = W' W alone. Takes O(F^3) in all.

    Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1993,
    section 3; Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, equations (5) and (6) for blocks.

    Args:
        gram: G, positive definite, shape (F, F).
        outer: W' W, shape (F, F).
        units: the features of each block, each feature in at most one, shape (blocks, width); -1 fills up shorter ones.
        removable: whether a block may be dropped, shape (blocks,).
        first: blocks that go before all others, in this order.

    Returns:
        The blocks in order of removal, and what each removal adds to E|W f - W~ f|^2.
    """
    places, features = np.flatnonzero(units.reshape(-1) >= 0), units[units >= 0]
    size = units.size
    if places.size == size:
        gram, outer = gram[np.ix_(features, features)], outer[np.ix_(features, features)]
    else:  # what fills up a block has weights of zero and nothing to do with the others, so that it costs nothing
        real, read = np.ix_(places, places), np.ix_(features, features)
        filled_gram, filled_outer = np.eye(size), np.zeros((size, size))
        filled_gram[real], filled_outer[real] = gram[read], outer[read]
        gram, outer = filled_gram, filled_outer
    left = _Left(np.linalg.inv(gram), outer, units.shape[1], removable)
    steps = [left.remove(block) for block in first]
    steps += [left.remove() for _ in range(int(np.count_nonzero(removable)) - len(first))]
    return [block for block, _ in steps], [cost for _, cost in steps]


class _Left:
    """H and S of the blocks that are left, with the latest updates still to be carried out.

    Now H is ``inverse - V V'`` and S is ``outer - Z V' - V Z'``: a removal appends columns to V and Z, and only looks
    at its own block's columns and at all blocks on the diagonal, which are kept up to date.
    """

    def __init__(self, inverse: Array, outer: Array, width: int, removable: Array) -> None:
        self._inverse, self._outer, self._width = inverse, outer, width
        self._blocks = np.arange(len(removable))
        self._gone = np.zeros(len(removable), dtype=np.bool_)
        self._removable = removable.copy()
        self._inverse_blocks, self._outer_blocks = (_diagonal(matrix, width) for matrix in (inverse, outer))
        self._start_panel()

    def _start_panel(self) -> None:
        shape = (len(self._inverse), max(_PANEL, 4 * self._width))
        self._v, self._z, self._used = np.empty(shape), np.empty(shape), 0

    def remove(self, block: int | None = None) -> tuple[int, float]:
        """Remove a block, the cheapest one if none is named; returns it and what that costs."""
        width = self._width
        allowed = self._removable if block is None else self._blocks == block
        costs = np.where(allowed, _traces(self._inverse_blocks, self._outer_blocks), np.inf)
        chosen = int(np.argmin(costs))
        at = slice(chosen * width, (chosen + 1) * width)
        v, z = self._v[:, : self._used], self._z[:, : self._used]
        inverse = self._inverse[:, at] - v @ v[at].T
        outer = self._outer[:, at] - z @ v[at].T - v @ z[at].T
        root = np.linalg.inv(np.linalg.cholesky(inverse[at])).T  # root root' = (H_uu)^-1
        new_v = inverse @ root
        new_z = outer @ root - new_v @ (root.T @ outer[at] @ root) / 2.0
        self._v[:, self._used : self._used + width], self._z[:, self._used : self._used + width] = new_v, new_z
        self._used += width
        rows_v, rows_z = (rows.reshape(-1, width, width) for rows in (new_v, new_z))
        self._inverse_blocks -= rows_v @ rows_v.swapaxes(1, 2)
        crossed = rows_z @ rows_v.swapaxes(1, 2)
        self._outer_blocks -= crossed + crossed.swapaxes(1, 2)
        self._inverse_blocks[chosen], self._outer_blocks[chosen] = np.eye(width), 0.0
        self._removable[chosen], self._gone[chosen] = False, True
        removed = int(self._blocks[chosen])
        if self._used + width > self._v.shape[1]:
            self._carry_out()
        return removed, max(float(costs[chosen]), 0.0)

    def _carry_out(self) -> None:
        """Apply the updates to the matrices, of which only what is left stays."""
        stay = ~self._gone
        rows = np.flatnonzero(np.repeat(stay, self._width))
        v, z = self._v[rows, : self._used], self._z[rows, : self._used]
        crossed = z @ v.T
        self._inverse = self._inverse[np.ix_(rows, rows)] - v @ v.T
        self._outer = self._outer[np.ix_(rows, rows)] - crossed - crossed.T
        self._blocks, self._gone, self._removable = self._blocks[stay], self._gone[stay], self._removable[stay]
        self._inverse_blocks, self._outer_blocks = self._inverse_blocks[stay], self._outer_blocks[stay]
        self._start_panel()


def _diagonal(matrix: Array, width: int) -> Array:
    """A copy of the blocks on the diagonal, shape (blocks, width, width)."""
    count = len(matrix) // width
    return np.array(matrix.reshape(count, width, count, width)[np.arange(count), :, np.arange(count)])


def _traces(inverse: Array, outer: Array) -> Array:
    """tr(H_uu^-1 S_uu) of each block."""
    if inverse.shape[-1] == 1:  # a division is all it is, and there may be thousands
        return np.asarray((outer / inverse)[:, 0, 0])
    return np.asarray(np.trace(np.linalg.solve(inverse, outer), axis1=1, axis2=2))
