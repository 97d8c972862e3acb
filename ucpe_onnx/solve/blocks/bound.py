"""A lower bound that needs no search: everybody reads what it keeps, rounded up, and nobody pays for the others.

What duplicated readers alone keep need not be made. That is the one thing that couples the readers, so all sets of
duplicated readers are gone through at once: arrays here have one entry for each of them. If they are too many, making a
channel is charged in equal shares to those that keep it, at the lowest price for any width: however many of them are
duplicated, the others' shares are no more than its price.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.solve.blocks.layout import BlockPrices, FloatArray
from ucpe_onnx.solve.blocks.problem import APART, BLOCKWISE, REORDERED, WHOLE

IntArray = npt.NDArray[np.int64]

_MAX_DUPLICATED = 12
"""With more readers that can be duplicated, making is charged in shares."""


def lower_bound(prices: BlockPrices) -> float:
    """Microseconds that no layout goes below."""
    able = [index for index, reader in enumerate(prices.problem.readers) if reader.takes(APART)]
    if len(able) > _MAX_DUPLICATED:
        return _shared_bound(prices, able)
    chosen = np.array(list(product((False, True), repeat=len(able))), dtype=np.bool_)
    units = np.array(
        [_required_units(prices, group, able, chosen) for group in range(len(prices.made))], dtype=np.int64
    )
    units = units.reshape(-1, len(chosen))
    made = [cheapest_made(prices, group)[0][widths] for group, widths in enumerate(units)]
    charged = [np.where(chosen[:, able.index(r)], np.inf, 0.0) if r in able else 0.0 for r in range(len(prices.kept))]
    free = [np.where(chosen[:, able.index(r)], 0.0, np.inf) if r in able else np.inf for r in range(len(prices.kept))]
    return float((sum(made) + _reading(prices, units, charged, free)).min())


def _shared_bound(prices: BlockPrices, able: Sequence[int]) -> float:
    """The bound with making charged to the readers."""
    problem = prices.problem
    price = []
    for group in range(len(problem.groups)):
        costs = cheapest_made(prices, group)[0][1:]
        each = costs / (problem.width_multiple * np.arange(1, costs.size + 1))
        price.append(float(each.min()) if each.size else 0.0)
    made = 0.0
    charged = [0.0] * len(problem.readers)
    for slots in problem.classes:
        us = price[slots.group] * slots.count
        if slots.fixed or not slots.readers <= set(able):
            made += us
        else:
            for reader in slots.readers:
                charged[reader] += us / len(slots.readers)
    units = np.zeros((len(problem.groups), 1), dtype=np.int64)
    free = [0.0 if reader in able else np.inf for reader in range(len(problem.readers))]
    return made + float(_reading(prices, units, charged, free)[0])


def cheapest_made(prices: BlockPrices, group: int) -> tuple[FloatArray, int]:
    """What it costs at least to make so many units or more, in any number of blocks.

    Args:
        prices: The prices.
        group: The group.

    Returns:
        The costs, shape (units + 1,), and the most blocks that are worth while for the sake of the producers alone.
    """
    made = prices.made[group]
    best, parts = made.copy(), np.ones(made.size, dtype=np.int64)
    if prices.most(group) > 1:
        further = prices.problem.groups[group].block_us
        for units in range(2, made.size):
            split = made[1:units] + best[units - 1 : 0 : -1] + further
            first = int(split.argmin())
            if split[first] < best[units] * (1 - 1e-12):
                best[units], parts[units] = split[first], parts[units - 1 - first] + 1
    return at_least(best), int(parts.max())


def at_least(costs: FloatArray) -> FloatArray:
    """The least of the costs from each width on."""
    return np.minimum.accumulate(costs[::-1])[::-1]


def _reading(prices: BlockPrices, units: IntArray, charged: Sequence[Any], free: Sequence[Any]) -> FloatArray:
    """A bound on what reading costs in all.

    Args:
        prices: The prices.
        units: Of each group that are made at least, shape (groups, sets).
        charged: For each reader what it pays beyond its own cost unless it is duplicated; infinite if it must be.
        free: For each reader what it pays beyond its own cost if it is duplicated; infinite if it isn't.
    """
    problem = prices.problem
    total = np.zeros(units.shape[1])
    for index, tensor in enumerate(problem.tensors):
        present = units[list(tensor.groups)]
        whole_us = np.where((present > 0).sum(axis=0) > 1, tensor.whole_us, 0.0)
        cases = [whole_us * tensor.whole, whole_us, whole_us + tensor.reorder_us]
        for reader in prices.readers_of[index]:
            offers = _offers(prices, reader, present.sum(axis=0))
            apart = min(prices.apart(reader).values(), default=np.inf)
            for case in range(len(cases)):
                own = np.minimum.reduce(offers[: case + 1]) + charged[reader]
                cases[case] = cases[case] + np.minimum(own, apart + free[reader])
        total += np.minimum.reduce(cases)
    return total


def _required_units(prices: BlockPrices, group: int, able: Sequence[int], chosen: npt.NDArray[np.bool_]) -> IntArray:
    """Units that have to be made for each set of duplicated readers, shape (sets,)."""
    channels = np.zeros(len(chosen), dtype=np.int64)
    for member in prices.members[group]:
        slots = prices.problem.classes[member]
        if slots.fixed or not slots.readers <= set(able):
            channels += slots.count
        else:
            keepers = [place for place, reader in enumerate(able) if reader in slots.readers]
            channels += slots.count * ~chosen[:, keepers].all(axis=1)
    required: IntArray = -(-channels // prices.problem.width_multiple)
    return required


def _offers(prices: BlockPrices, index: int, present: IntArray) -> list[FloatArray]:
    """The least that a reader costs if it reads blocks, the whole, or a selection, where so many units are present."""
    read = at_least(prices.read[index])
    kept = [prices.units(count) for count in prices.kept[index] if count]
    least = sum(kept)
    whole = read[np.maximum(present, least)]
    blocks, joined, reordered = (np.full(present.shape, np.inf) for _ in range(3))
    for kind, price in prices.problem.readers[index].prices.items():
        if kind in BLOCKWISE:
            width = least * prices.problem.width_multiple
            us = min(price.us(read[least], len(kept), width, ragged) for ragged in (False, True))
            blocks = np.minimum(blocks, us)
        elif kind in REORDERED:
            reordered = np.minimum(reordered, whole if price.flat_us is None else price.flat_us)
        elif kind in WHOLE:
            joined = np.minimum(joined, whole if price.flat_us is None else price.flat_us)
    return [blocks, joined, reordered]
