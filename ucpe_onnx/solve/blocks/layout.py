"""Layouts while they are being searched for: blocks as they are priced, filled up, and turned into a solution.

Sets of readers are bit masks: bit r is reader r. Widths are in units of the problem's `width_multiple`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.solve.blocks.problem import (
    APART,
    BLOCKWISE,
    REORDERED,
    WHOLE,
    Block,
    BlockProblem,
    BlockReader,
    Choice,
)

FloatArray = npt.NDArray[np.float64]

_REMEMBERED = 1_000_000
"""Blocks of priced tensors that are kept in mind: some hundred megabytes at most."""

Part = dict[int, int]
"""Channels of a block before it is filled up, by class."""


@dataclass(frozen=True)
class Piece:
    """A block as far as its price is concerned.

    Attributes:
        mask: the readers that keep a channel of it.
        width: in channels.
        units: the same, rounded up.
    """

    mask: int
    width: int
    units: int


@dataclass(frozen=True)
class Priced:
    """What a layout costs with the best kind for each reader."""

    us: float
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class BlockPrices:
    """Knows the prices of one problem, in the form that a search asks for them."""

    problem: BlockProblem
    _weights: dict[int, float] = field(default_factory=dict, repr=False)
    _tensors: dict[tuple[Any, ...], tuple[float, list[str]]] = field(default_factory=dict, repr=False)

    @cached_property
    def masks(self) -> list[int]:
        """For each class the readers that keep it."""
        return [sum(1 << reader for reader in slots.readers) for slots in self.problem.classes]

    @cached_property
    def members(self) -> list[list[int]]:
        """For each group its classes."""
        found: list[list[int]] = [[] for _ in self.problem.groups]
        for index, slots in enumerate(self.problem.classes):
            found[slots.group].append(index)
        return found

    @cached_property
    def totals(self) -> list[int]:
        """For each group all channels that it could emit."""
        return [
            group.spare + sum(self.problem.classes[member].count for member in members)
            for group, members in zip(self.problem.groups, self.members, strict=True)
        ]

    @cached_property
    def made(self) -> list[FloatArray]:
        """For each group the cost of its producers by units; nothing for a block that isn't there."""
        costs = []
        for group, total in zip(self.problem.groups, self.totals, strict=True):
            units = self.units(total) + 1
            cost = np.zeros(units)
            for table in group.made:
                cost += _extended(table.us, units)
            cost[0] = 0.0
            costs.append(cost)
        return costs

    @cached_property
    def read(self) -> list[FloatArray]:
        """For each reader the cost of reading by units."""
        return [_extended(reader.cost.us, self.span(reader) + 1) for reader in self.problem.readers]

    @cached_property
    def _made_lists(self) -> list[list[float]]:
        return [array.tolist() for array in self.made]

    @cached_property
    def _read_lists(self) -> list[list[float]]:
        return [array.tolist() for array in self.read]

    @cached_property
    def readers_of(self) -> list[list[int]]:
        """For each tensor its readers."""
        found: list[list[int]] = [[] for _ in self.problem.tensors]
        for index, reader in enumerate(self.problem.readers):
            found[reader.tensor].append(index)
        return found

    @cached_property
    def _reading(self) -> list[int]:
        """For each tensor its readers as a bit mask."""
        return [sum(1 << reader for reader in readers) for readers in self.readers_of]

    @cached_property
    def kept(self) -> list[list[int]]:
        """For each reader how many channels it keeps of each group."""
        counts = [[0] * len(self.problem.groups) for _ in self.problem.readers]
        for slots in self.problem.classes:
            for reader in slots.readers:
                counts[reader][slots.group] += slots.count
        return counts

    @cached_property
    def rates(self) -> list[float]:
        """For each reader what a unit that it reads costs, on average."""
        return [float(read[-1] - read[0]) / max(1, read.size - 1) for read in self.read]

    def weight(self, mask: int) -> float:
        """What a unit costs some readers together."""
        known = self._weights.get(mask)
        if known is None:
            known = self._weights[mask] = sum(rate for reader, rate in enumerate(self.rates) if mask >> reader & 1)
        return known

    def units(self, channels: int) -> int:
        """Channels in units, rounded up."""
        return -(-channels // self.problem.width_multiple)

    @property
    def least(self) -> int:
        """Units of the narrowest block among others."""
        return self.units(self.problem.minimum)

    def most(self, group: int) -> int:
        """How many blocks a group may have, by its width as well."""
        if not self.problem.groups[group].splittable:
            return 1
        return max(1, min(self.problem.max_blocks, self.totals[group] // (self.least * self.problem.width_multiple)))

    def span(self, reader: BlockReader) -> int:
        """Units of everything that a reader's tensor may hold."""
        return sum(self.units(self.totals[group]) for group in self.problem.tensors[reader.tensor].groups)

    def width(self, group: int, units: int) -> int:
        """Channels of a block that is so many units wide: less if it is all that there is."""
        return min(units * self.problem.width_multiple, self.totals[group])

    def requires(self, member: int, duplicated: int) -> bool:
        """Whether a class has to be emitted if some readers are duplicated."""
        return self.problem.classes[member].fixed or bool(self.masks[member] & ~duplicated)

    def price(self, pieces: Sequence[Sequence[Piece]], duplicated: int = 0) -> Priced:
        """Cost of a layout with the best kind for each reader.

        Args:
            pieces: for each group its blocks.
            duplicated: the readers that are duplicated: the layout does without what they keep.
        """
        us = 0.0
        for made, group, blocks in zip(self._made_lists, self.problem.groups, pieces, strict=True):
            for piece in blocks:
                us += made[piece.units]
            us += group.block_us * max(0, len(blocks) - 1)
        kinds = [""] * len(self.problem.readers)
        for index, readers in enumerate(self.readers_of):
            tensor_us, chosen = self._tensor(index, pieces, duplicated)
            us += tensor_us
            for reader, kind in zip(readers, chosen, strict=True):
                kinds[reader] = kind
        return Priced(us, tuple(kinds))

    def _tensor(self, index: int, pieces: Sequence[Sequence[Piece]], duplicated: int) -> tuple[float, list[str]]:
        """Cost of a tensor and its readers, and the best kinds of these.

        It depends on widths and on which of the tensor's own readers need a block. Layouts that differ for others only,
        as most do where many tensors share a trunk's channels, have it in common.
        """
        reading = self._reading[index]
        blocks = [piece for group in self.problem.tensors[index].groups for piece in pieces[group]]
        key = (index, duplicated & reading, *((piece.mask & reading, piece.width) for piece in blocks))
        known = self._tensors.get(key)
        if known is None:
            if len(self._tensors) * len(key) > _REMEMBERED:
                self._tensors.clear()
            known = self._tensors[key] = self._price_tensor(index, blocks, duplicated)
        return known

    def _price_tensor(self, index: int, blocks: Sequence[Piece], duplicated: int) -> tuple[float, list[str]]:
        """Cost of a tensor and its readers, with the best kinds of these.

        What makes the tensor whole and a reorder are shared: each of the three cases is settled reader by reader.
        """
        tensor = self.problem.tensors[index]
        whole_us = 0.0
        if len(blocks) > 1:
            ragged = any(piece.width % self.problem.joined_multiple for piece in blocks)
            whole_us = tensor.whole_us + (tensor.ragged_us if ragged else 0.0)
        readers = self.readers_of[index]
        offers = [
            self.apart(reader) if duplicated >> reader & 1 else self._offers(reader, blocks) for reader in readers
        ]
        best, chosen = float("inf"), [""] * len(readers)
        for shared, barred in (
            (whole_us if tensor.whole else 0.0, WHOLE if whole_us and not tensor.whole else REORDERED),
            (whole_us, REORDERED),
            (whole_us + tensor.reorder_us, frozenset()),
        ):
            us, picks = shared, []
            for offer in offers:
                allowed = [kind for kind in offer if kind not in barred]
                kind = min(allowed, key=offer.__getitem__) if allowed else ""
                us += offer[kind] if kind else float("inf")
                picks.append(kind)
            if us < best:
                best, chosen = us, picks
        return best, chosen

    def apart(self, reader: int) -> dict[str, float]:
        """What each kind costs a reader whose channels need not be there."""
        prices = self.problem.readers[reader].prices
        return {kind: price.us(0.0, 0, 0, ragged=False) for kind, price in prices.items() if kind in APART}

    def _offers(self, index: int, blocks: Sequence[Piece]) -> dict[str, float]:
        """What each kind costs a reader whose channels have to be there, without what it shares with others."""
        read, joined = self._read_lists[index], self.problem.joined_multiple
        needed = [piece for piece in blocks if piece.mask >> index & 1]
        units = sum([piece.units for piece in needed])
        offers = {}
        for kind, price in self.problem.readers[index].prices.items():
            if kind in BLOCKWISE:
                ragged = price.copies is not None and any(piece.width % joined for piece in needed)
                offers[kind] = price.us(read[units], len(needed), units * self.problem.width_multiple, ragged)
            elif kind in WHOLE:  # what joins the blocks is shared
                everything = sum([piece.units for piece in blocks])
                offers[kind] = price.us(read[everything], 1, everything * self.problem.width_multiple, ragged=False)
        return offers


def _extended(us: FloatArray, entries: int) -> FloatArray:
    """A table's costs for so many entries: the last one repeats."""
    extended: FloatArray = us[np.minimum(np.arange(entries), us.size - 1)]
    return extended


@dataclass(frozen=True)
class Partition:
    """The blocks of one group with their channels.

    Attributes:
        prices: the prices.
        duplicated: the readers that are duplicated.
        parts: the required channels of each block.
        widths: of each block, filled up.
    """

    prices: BlockPrices
    duplicated: int
    parts: tuple[Part, ...]
    widths: tuple[int, ...]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The blocks as they are priced."""
        found = []
        for part, width in zip(self.parts, self.widths, strict=True):
            mask = 0
            for member in part:
                mask |= self.prices.masks[member]
            found.append(Piece(mask & ~self.duplicated, width, self.prices.units(width)))
        return tuple(found)

    def blocks(self, group: int) -> tuple[Block, ...]:
        """The blocks, filled up with spare channels first, then with those of classes that nobody requires."""
        problem = self.prices.problem
        spare = problem.groups[group].spare
        free = {
            member: problem.classes[member].count
            for member in self.prices.members[group]
            if not self.prices.requires(member, self.duplicated)
        }
        blocks = []
        for part, width in zip(self.parts, self.widths, strict=True):
            missing = width - sum(part.values())
            taken = min(spare, missing)
            spare -= taken
            channels = {**part, **_take(free, missing - taken)}
            blocks.append(Block(tuple(sorted(channels.items())), taken))
        return tuple(blocks)


@dataclass(frozen=True)
class Layout:
    """A partition of every group."""

    prices: BlockPrices
    duplicated: int
    groups: tuple[Partition, ...]

    @cached_property
    def priced(self) -> Priced:
        """Its cost and the best kinds."""
        return self.prices.price([group.pieces for group in self.groups], self.duplicated)

    @property
    def us(self) -> float:
        """Its cost."""
        return self.priced.us

    @cached_property
    def served(self) -> int:
        """The readers that read blocks, as a bit mask."""
        return sum(1 << index for index, kind in enumerate(self.priced.kinds) if kind in BLOCKWISE)

    def replaced(self, index: int, group: Partition) -> Layout:
        """The layout with another partition of one group."""
        return Layout(self.prices, self.duplicated, (*self.groups[:index], group, *self.groups[index + 1 :]))

    def blocks(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of each group."""
        return tuple(group.blocks(index) for index, group in enumerate(self.groups))

    def choices(self) -> tuple[Choice, ...]:
        """For each reader its kind and the blocks that it reads."""
        problem, kinds = self.prices.problem, self.priced.kinds
        found = []
        for index, (reader, kind) in enumerate(zip(problem.readers, kinds, strict=True)):
            blocks = [
                (group, place)
                for group in problem.tensors[reader.tensor].groups
                for place, piece in enumerate(self.groups[group].pieces)
                if kind in WHOLE or (kind in BLOCKWISE and piece.mask >> index & 1)
            ]
            found.append(Choice(kind, tuple(blocks)))
        return tuple(found)


def _take(free: Part, count: int) -> Part:
    """Take so many channels out of `free`."""
    taken: Part = {}
    for member in sorted(free):
        if count and free[member]:
            taken[member] = min(count, free[member])
            free[member] -= taken[member]
            count -= taken[member]
    return taken
