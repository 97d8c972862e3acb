"""Slots: an equivalence relation over (tensor, axis, index), kept as integers and solved in one go."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]
TensorKey: TypeAlias = "str | tuple[int, int]"
"""An activation by its name, or one use of a constant: (node index, input index).

Uses of a constant are kept apart because two nodes that share an initializer may need different slices of it."""
AxisKey: TypeAlias = tuple[TensorKey, int]


def components(count: int, left: IntArray, right: IntArray) -> IntArray:
    """Connected components of an undirected graph, without a Python loop over edges.

    Every round hooks the root of each edge's larger side below the smaller side's root, then compresses all paths;
    at least half of the roots that still have an unmerged neighbour vanish, so the rounds are logarithmic.

    Args:
        count: number of vertices.
        left: one end of each edge, shape (edges,).
        right: the other end, shape (edges,).

    Returns:
        For each vertex the smallest vertex of its component, shape (count,).
    """
    root = np.arange(count, dtype=np.int64)
    while left.size:
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            break
        left, right = left[apart], right[apart]
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(above := root[root], root):
            root = above
    return root


class SlotTable:
    """Hands out integer ids to the positions of tensor axes and records which ids are the same slot."""

    def __init__(self) -> None:
        self._ids: dict[AxisKey, IntArray] = {}
        self._count = 0
        self._left: list[IntArray] = []
        self._right: list[IntArray] = []
        self._frozen: list[tuple[IntArray, str]] = []

    def __contains__(self, axis: object) -> bool:
        return axis in self._ids

    def add(self, axis: AxisKey, size: int) -> IntArray:
        """Return the ids of an axis of ``size`` positions, making them on first use."""
        ids = self._ids.get(axis)
        if ids is None:
            ids = np.arange(self._count, self._count + size, dtype=np.int64)
            self._ids[axis] = ids
            self._count += size
        return ids

    def join(self, left: IntArray, right: IntArray) -> None:
        """Record that ``left[i]`` and ``right[i]`` are the same slot, for every i."""
        self._left.append(left)
        self._right.append(right)

    def freeze(self, ids: IntArray, reason: str) -> None:
        """Record that slots must stay, and why."""
        self._frozen.append((ids, reason))

    def resolve(self) -> Slots:
        """Solve the recorded equivalences."""
        empty = np.empty(0, dtype=np.int64)
        root = components(self._count, np.concatenate([empty, *self._left]), np.concatenate([empty, *self._right]))
        _, label = np.unique(root, return_inverse=True)
        label = label.astype(np.int64).reshape(-1)
        axes = {axis: label[ids] for axis, ids in self._ids.items()}
        reasons: list[tuple[IntArray, str]] = [(np.unique(label[ids]), reason) for ids, reason in self._frozen]
        return Slots(int(label.max(initial=-1)) + 1, axes, reasons)


class Slots:
    """The solved relation: a class number per position of every axis, and the frozen classes with their reasons.

    Attributes:
        count: number of slot classes in the graph.
        axes: for each axis the slot class of each position, shape (size,).
        reasons: (classes, why they are frozen), in the order of discovery.
        frozen: True for a frozen class, shape (count,).
    """

    def __init__(self, count: int, axes: dict[AxisKey, IntArray], reasons: list[tuple[IntArray, str]]) -> None:
        self.count = count
        self.axes = axes
        self.reasons = reasons
        self.frozen = np.zeros(count, dtype=bool)
        for classes, _ in reasons:
            self.frozen[classes] = True

    def first_reasons(self) -> IntArray:
        """For each class the index of the first of the reasons that freeze it, -1 for one that is free."""
        first = np.full(self.count, -1, dtype=np.int64)
        for index in reversed(range(len(self.reasons))):
            first[self.reasons[index][0]] = index
        return first

    def freeze(self, classes: IntArray, reason: str) -> None:
        """Freeze further classes after the relation was solved."""
        if classes.size:
            self.reasons.append((np.unique(classes), reason))
            self.frozen[classes] = True
