"""Builders of block problems, shared by the tests and the benchmark, and a brute-force solver."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ucpe_onnx.solve.blocks import (
    Block,
    BlockProblem,
    BlockReader,
    BlockSolution,
    BlockTensor,
    Choice,
    Copy,
    Group,
    SlotClass,
    Table,
    evaluate,
)
from ucpe_onnx.solve.blocks.problem import FEASIBLE

Rng = np.random.Generator
STEP = 4


def conv_us(cin: int, cout: int, kernel: int, side: int) -> float:
    """A convolution in onnxruntime's blocked layout, as in the table of measured facts that this repository shares."""
    unit = 2 * 16 * 64 * kernel**2 * side**2 / 130e3
    sets, rest = divmod(math.ceil(cout / 16), 4)
    weights = 4 * cin * cout * kernel**2
    return 5 + unit * math.ceil(cin / 16) * (sets + (0, 0.36, 0.52, 0.75)[rest]) + (weights > 7e5) * weights / 14e3


def copy_us(channels: float, side: int) -> float:
    """A reorder, Gather or Concat."""
    return 5 + channels * side**2 * 4 / 10.5e3


def reader_of(name: str, tensor: int, kept: int, total: int, *, cout: int, kernel: int, side: int) -> BlockReader:
    """A convolution that keeps `kept` of `total` channels."""
    per_channel = side**2 * 4 / 10.5e3
    read = -(-kept // STEP) * STEP
    return BlockReader(
        name,
        tensor,
        Table.of(STEP, total, lambda width: conv_us(width, cout, kernel, side)),
        part_us=5 + (kernel == 1) * cout * side**2 * 4 / 21e3,
        concat=Copy(5, per_channel),
        concat_ragged=Copy(15, 3 * per_channel),
        select_us=2 * copy_us(read, side) + conv_us(read, cout, kernel, side),
        duplicate_us=None,
    )


def classes_of(masks: NDArray[np.bool_], group: int, readers: Sequence[int]) -> tuple[list[SlotClass], int]:
    """Classes of the channels of a group by who keeps them, shape (readers, channels), and how many nobody keeps."""
    patterns, counts = np.unique(masks, axis=1, return_counts=True)
    found, spare = [], 0
    for pattern, count in zip(patterns.T, counts.tolist(), strict=True):
        if pattern.any():
            found.append(SlotClass(group, count, frozenset(np.asarray(readers)[pattern].tolist())))
        else:
            spare = count
    return found, spare


def trunk(rng: Rng, readers: int, channels: int, side: int, drop: float, *, kernel: int = 1) -> BlockProblem:
    """A residual trunk: as many producers as readers, all of the same channels."""
    masks = np.array([rng.permutation(channels) >= drop * channels for _ in range(readers)])
    classes, spare = classes_of(masks, 0, range(readers))
    inner = channels // 4 if kernel == 1 else channels
    made = Table.of(STEP, channels, lambda width: conv_us(int(inner * (1 - drop)), width, kernel, side))
    family = []
    for index in range(readers):
        kept = int(masks[index].sum())
        reader = reader_of(f"r{index}", 0, kept, channels, cout=inner, kernel=kernel, side=side)
        family.append(reader)
    tensor = BlockTensor((0,), copy_us(channels, side), copy_us(channels, side))
    return BlockProblem(tuple(classes), (Group((made,) * readers, spare),), tuple(family), (tensor,))


def concat(rng: Rng, sizes: Sequence[int], readers: int, side: int, drop: float) -> BlockProblem:
    """One producer for each operand of a Concat that all readers read."""
    channels = sum(sizes)
    masks = np.array([rng.permutation(channels) >= drop * channels for _ in range(readers)])
    classes, groups, start = [], [], 0
    for index, size in enumerate(sizes):
        found, spare = classes_of(masks[:, start : start + size], index, range(readers))
        made = Table.of(STEP, size, lambda width: conv_us(96, width, 3, side))
        classes += found
        groups.append(Group((made,), spare))
        start += size
    family = [
        reader_of(f"r{index}", 0, int(masks[index].sum()), channels, cout=96, kernel=1, side=side)
        for index in range(readers)
    ]
    whole = copy_us(channels, side)
    tensor = BlockTensor(tuple(range(len(sizes))), whole, whole, 2 * whole)
    return BlockProblem(tuple(classes), tuple(groups), tuple(family), (tensor,))


def dense_block(rng: Rng, layers: int, growth: int, side: int, drop: float) -> BlockProblem:
    """A densely connected block: reader i reads a Concat of groups 0 to i."""
    masks = [rng.permutation(growth * (index + 1)) >= drop * growth * (index + 1) for index in range(layers)]
    classes, groups = [], []
    for group in range(layers):
        rows = np.array([mask[growth * group : growth * (group + 1)] for mask in masks[group:]])
        found, spare = classes_of(rows, group, range(group, layers))
        made = Table.of(STEP, growth, lambda width: conv_us(128, width, 3, side))
        classes += found
        groups.append(Group((made,), spare))
    family, tensors = [], []
    for index, mask in enumerate(masks):
        family.append(reader_of(f"r{index}", index, int(mask.sum()), mask.size, cout=128, kernel=1, side=side))
        whole = copy_us(mask.size, side)
        tensors.append(BlockTensor(tuple(range(index + 1)), whole, whole, 2 * whole))
    return BlockProblem(tuple(classes), tuple(groups), tuple(family), tuple(tensors))


def fixed_layouts(problem: BlockProblem) -> list[BlockSolution]:
    """One block for each group, and the same kind for all readers."""
    groups, choices = [], []
    for index, group in enumerate(problem.groups):
        channels = tuple((m, slots.count) for m, slots in enumerate(problem.classes) if slots.group == index)
        held = sum(count for _, count in channels)
        fill = min(-held % problem.width_multiple, group.spare)
        groups.append((Block(channels, fill),) if channels else ())
    for kind in ("union", "gather", "partial", "concat"):
        if all(kind in reader.kinds for reader in problem.readers):
            choices.append([_choice(problem, index, kind, groups) for index in range(len(problem.readers))])
    return [BlockSolution(tuple(groups), tuple(each), 0.0, 0.0, FEASIBLE, 0.0) for each in choices]


def brute_force(problem: BlockProblem, blocks: int = 3) -> float:
    """The least cost over all partitions into a few blocks and all kinds.

    What is valid the evaluation says; the price is worked out here, and the evaluation must agree.
    """
    groups = [_partitions(problem, group, blocks) for group in range(len(problem.groups))]
    best = math.inf
    for layout in product(*groups):
        for kinds in product(*(reader.kinds for reader in problem.readers)):
            choices = tuple(_choice(problem, index, kind, layout) for index, kind in enumerate(kinds))
            try:
                us = evaluate(problem, BlockSolution(layout, choices, 0.0, 0.0, FEASIBLE, 0.0))
            except ValueError:  # a class that nobody duplicated is missing
                continue
            assert math.isclose(us, plain_us(problem, layout, kinds), rel_tol=1e-12, abs_tol=1e-9)
            best = min(best, us)
    return best


def plain_us(problem: BlockProblem, layout: Sequence[Sequence[Block]], kinds: Sequence[str]) -> float:
    """The price of a layout, kind by kind, without anything that the solver or the evaluation use."""
    step, even = problem.width_multiple, problem.joined_multiple
    us = 0.0
    for group, blocks in zip(problem.groups, layout, strict=True):
        us += sum(table(block.width) for table in group.made for block in blocks)
        us += group.block_us * (len(blocks) - 1 if blocks else 0)
    for index, (reader, kind) in enumerate(zip(problem.readers, kinds, strict=True)):
        present = [block for group in problem.tensors[reader.tensor].groups for block in layout[group]]
        kept = [
            block for block in present if any(index in problem.classes[member].readers for member, _ in block.channels)
        ]
        widths = [math.ceil(block.width / step) * step for block in (present if kind == "union" else kept)]
        if kind == "gather":
            us += reader.select_us
        elif kind == "duplicate":
            us += reader.duplicate_us
        else:
            us += reader.cost(sum(widths))
        if kind == "partial" and kept:
            us += (len(kept) - 1) * reader.part_us
        if kind == "concat" and len(kept) > 1:
            copy = reader.concat if all(block.width % even == 0 for block in kept) else reader.concat_ragged
            us += copy.call_us + copy.channel_us * sum(widths)
    for index, tensor in enumerate(problem.tensors):
        used = {kind for kind, reader in zip(kinds, problem.readers, strict=True) if reader.tensor == index}
        present = [block for group in tensor.groups for block in layout[group]]
        if "gather" in used:
            us += tensor.reorder_us
        if len(present) > 1 and (tensor.whole or "union" in used or "gather" in used):
            us += tensor.whole_us + (tensor.ragged_us if any(block.width % even for block in present) else 0.0)
    return us


def _choice(problem: BlockProblem, index: int, kind: str, layout: Sequence[Sequence[Block]]) -> Choice:
    found = [
        (group, place)
        for group in problem.tensors[problem.readers[index].tensor].groups
        for place, block in enumerate(layout[group])
        if kind in ("union", "gather") or any(index in problem.classes[member].readers for member, _ in block.channels)
    ]
    return Choice(kind, () if kind == "duplicate" else tuple(found))


def _partitions(problem: BlockProblem, group: int, most: int) -> list[tuple[Block, ...]]:
    """All ways to put channels of a group into blocks, those that leave some out included."""
    members = [index for index, slots in enumerate(problem.classes) if slots.group == group]
    spare = problem.groups[group].spare
    total = spare + sum(problem.classes[member].count for member in members)
    found: dict[tuple[Block, ...], None] = {}
    for number in range(min(most if problem.groups[group].splittable else 1, problem.max_blocks) + 1):
        spreads = [list(_spreads(problem.classes[member].count, number)) for member in members]
        for counts in product(*spreads, list(_spreads(spare, number))):
            blocks = [
                Block(
                    tuple((m, c[place]) for m, c in zip(members, counts, strict=False) if c[place]), counts[-1][place]
                )
                for place in range(number)
            ]
            widths = [block.width for block in blocks]
            if number > 1 and any(width % problem.width_multiple or width < problem.minimum for width in widths):
                continue
            if number == 1 and (not widths[0] or (widths[0] % problem.width_multiple and widths[0] < total)):
                continue
            found[tuple(sorted(blocks, key=lambda block: (block.channels, block.spare)))] = None
    return list(found)


def _spreads(count: int, number: int) -> Iterator[tuple[int, ...]]:
    """All ways to put up to `count` equal things into so many boxes."""
    if not number:
        yield ()
        return
    for first in range(count + 1):
        for rest in _spreads(count - first, number - 1):
            yield (first, *rest)
