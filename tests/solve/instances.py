"""Builders of ordering problems, shared by the tests and the benchmark, and a brute-force solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ucpe_onnx.solve import OrderingProblem, Reader

Rng = np.random.Generator
Masks = Callable[[Rng, int], NDArray[np.bool_]]


def problem_of(*keeps: Sequence[int], slots: int) -> OrderingProblem:
    """One free group, readers called a, b, c, …"""
    readers = tuple(Reader("abcdefghijklmnop"[i], frozenset(keep), (0,)) for i, keep in enumerate(keeps))
    return OrderingProblem((tuple(range(slots)),), readers)


def groups_of(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Consecutive slots in groups of the given sizes."""
    ends = np.cumsum(sizes)
    return tuple(tuple(range(int(end) - size, int(end))) for size, end in zip(sizes, ends, strict=True))


def interval_family(rng: Rng, readers: int, sizes: Sequence[int]) -> OrderingProblem:
    """Every reader keeps an interval of its tensor under one hidden order, so that all can be served."""
    groups = groups_of(sizes)
    hidden = [rng.permutation(group) for group in groups]
    family = []
    for index in range(readers):
        sequence = rng.permutation(len(groups))[: rng.integers(1, len(groups) + 1)]
        tensor = np.concatenate([hidden[group] for group in sequence])
        low, high = sorted(rng.integers(0, len(tensor) + 1, size=2))
        family.append(_reader(index, tensor[low:high], sequence))
    return OrderingProblem(groups, tuple(family))


def noisy_intervals(rng: Rng, readers: int, slots: int, flips: int) -> OrderingProblem:
    """Intervals of a hidden order with a few slots flipped at random: many large conflicts."""
    hidden = rng.permutation(slots)
    family = []
    for index in range(readers):
        low, high = sorted(rng.integers(0, slots + 1, size=2))
        flipped = rng.choice(slots, size=int(rng.integers(0, flips + 1)), replace=False)
        family.append(_reader(index, set(hidden[low:high]) ^ set(flipped), (0,), float(rng.integers(1, 100))))
    return OrderingProblem(groups_of([slots]), tuple(family))


def circular_arcs(rng: Rng, readers: int, slots: int) -> OrderingProblem:
    """Arcs of a circle: what conflicts is a whole round, of any length."""
    family = []
    for index in range(readers):
        start, length = rng.integers(slots), rng.integers(slots // readers, 4 * slots // readers)
        arc = {(start + step) % slots for step in range(length)}
        family.append(_reader(index, arc, (0,), float(rng.integers(1, 100))))
    return OrderingProblem(groups_of([slots]), tuple(family))


def one_group(rng: Rng, readers: int, slots: int, masks: Masks) -> OrderingProblem:
    """A residual stage: all readers read the same slots."""
    family = tuple(_reader(i, np.flatnonzero(masks(rng, slots)), (0,), float(rng.random())) for i in range(readers))
    return OrderingProblem(groups_of([slots]), family)


def dense_block(rng: Rng, layers: int, growth: int, masks: Masks) -> OrderingProblem:
    """A densely connected block: reader i reads groups 0 to i, in order."""
    family = []
    for index in range(layers):
        keep = np.flatnonzero(masks(rng, growth * (index + 1)))
        family.append(_reader(index, keep, range(index + 1), float(rng.random())))
    return OrderingProblem(groups_of([growth] * layers), tuple(family))


def random_masks(ratio: float) -> Masks:
    """Keep each slot with probability `1 - ratio`."""
    return lambda rng, slots: rng.random(slots) >= ratio


def correlated_masks(ratio: float, noise: float, base_seed: int = 0) -> Masks:
    """Drop the share `ratio` with the lowest scores, which are a common norm per slot times a reader's own noise."""

    def masks(rng: Rng, slots: int) -> NDArray[np.bool_]:
        common = np.random.default_rng(base_seed).normal(size=slots)
        score = common + noise * rng.normal(size=slots)
        keep = np.ones(slots, dtype=bool)
        keep[np.argsort(score)[: int(ratio * slots)]] = False
        return keep

    return masks


def _reader(index: int, keep: object, sequence: object, weight: float = 1.0) -> Reader:
    kept = frozenset(int(slot) for slot in keep)  # type: ignore[attr-defined]
    return Reader(f"reader_{index}", kept, tuple(int(group) for group in sequence), weight)  # type: ignore[attr-defined]


def brute_force(problem: OrderingProblem) -> float:
    """The best objective over all orders of all groups, each reader's tensor laid out as a string of bits."""
    orders = [
        [group] if index in problem.fixed else list(permutations(group)) for index, group in enumerate(problem.groups)
    ]
    shape = [len(choices) for choices in orders]
    total = np.zeros(shape)
    for reader in problem.readers:
        tensor = np.zeros([1] * len(shape), dtype=np.int64)
        for group in reader.sequence:
            size = len(problem.groups[group])
            kept = np.isin(
                np.array(orders[group], dtype=np.int64).reshape(len(orders[group]), size), sorted(reader.keep)
            )
            bits = kept @ (1 << np.arange(size)[::-1]) if size else np.zeros(1, dtype=np.int64)
            axes = [len(bits) if axis == group else 1 for axis in range(len(shape))]
            tensor = (tensor << size) | bits.reshape(axes)
        contiguous = (tensor & (tensor + (tensor & -tensor))) == 0
        total = total + reader.weight * contiguous
    return float(total.max())
