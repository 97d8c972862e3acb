"""What a layout costs, computed from its definition.

It shares nothing with the solvers, whose results it judges, but what each kind of reading is (`KIND_FACTS`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ucpe_onnx.solve.blocks.problem import (
    APART,
    BLOCKWISE,
    REORDERED,
    WHOLE,
    Block,
    BlockProblem,
    BlockSolution,
    Choice,
)


def evaluate(problem: BlockProblem, solution: BlockSolution) -> float:
    """Predicted microseconds of a solution, after checking that it is one.

    Args:
        problem: The problem.
        solution: Its blocks and choices; what it says about itself is not looked at.

    Raises:
        ValueError: It is no valid layout of the problem.
    """
    groups, choices = solution.groups, solution.choices
    if len(groups) != len(problem.groups) or len(choices) != len(problem.readers):
        raise ValueError("the solution is one of another problem: its groups or its readers are not as many")
    served = {index for index, choice in enumerate(choices) if choice.kind not in APART}
    members: list[list[int]] = [[] for _ in groups]
    for member, slots in enumerate(problem.classes):
        members[slots.group].append(member)
    for index, blocks in enumerate(groups):
        _check_group(problem, index, blocks, served, members[index])
    for index, choice in enumerate(choices):
        _check_choice(problem, index, choice, groups)
    made = [_made_us(problem, index, blocks) for index, blocks in enumerate(groups)]
    read = [_read_us(problem, index, choice, groups) for index, choice in enumerate(choices)]
    readers: list[list[int]] = [[] for _ in problem.tensors]
    for index, reader in enumerate(problem.readers):
        readers[reader.tensor].append(index)
    joined = [_tensor_us(problem, index, groups, choices, readers[index]) for index in range(len(problem.tensors))]
    return math.fsum(made + read + joined)


def _check_group(
    problem: BlockProblem, index: int, blocks: Sequence[Block], served: set[int], members: Sequence[int]
) -> None:
    group = problem.groups[index]
    if len(blocks) > (problem.max_blocks if group.splittable else 1):
        raise ValueError(f"group {index} is split into {len(blocks)} blocks, which is too many")
    if any(block.spare < 0 for block in blocks) or sum(block.spare for block in blocks) > group.spare:
        raise ValueError(f"group {index} emits more spare channels than it has")
    available = group.spare + sum(problem.classes[member].count for member in members)
    if len(blocks) == 1 and blocks[0].width % problem.width_multiple and blocks[0].width < available:
        raise ValueError(f"group {index}: its block of {blocks[0].width} channels is not filled up")
    required = {m for m in members if problem.classes[m].fixed or problem.classes[m].readers & served}
    emitted: dict[int, int] = {}
    for block in blocks:
        if any(count < 1 or problem.classes[member].group != index for member, count in block.channels):
            raise ValueError(f"group {index}: a block holds a class of another group, or none of its channels")
        if len({member for member, _ in block.channels}) < len(block.channels):
            raise ValueError(f"group {index}: a block names a class twice")
        if not required & {member for member, _ in block.channels}:
            raise ValueError(f"group {index}: a block holds nothing that is required")
        if len(blocks) > 1 and (block.width % problem.width_multiple or block.width < problem.minimum):
            raise ValueError(f"group {index}: a block of {block.width} channels among others")
        for member, count in block.channels:
            emitted[member] = emitted.get(member, 0) + count
    for member in members:
        slots, count = problem.classes[member], emitted.get(member, 0)
        if count > slots.count or (member in required and count < slots.count):
            raise ValueError(f"class {member}: {count} of {slots.count} channels are emitted")


def _check_choice(problem: BlockProblem, index: int, choice: Choice, groups: Sequence[Sequence[Block]]) -> None:
    reader = problem.readers[index]
    if choice.kind not in reader.kinds:
        raise ValueError(f"reader {reader.name!r} can't take {choice.kind!r}")
    present = [(group, place) for group in problem.tensors[reader.tensor].groups for place in range(len(groups[group]))]
    if choice.kind in BLOCKWISE:
        present = [
            (group, place)
            for group, place in present
            if any(index in problem.classes[member].readers for member, _ in groups[group][place].channels)
        ]
    if choice.blocks != (() if choice.kind in APART else tuple(present)):
        raise ValueError(f"reader {reader.name!r} ({choice.kind}) reads blocks {choice.blocks}, not {tuple(present)}")


def _made_us(problem: BlockProblem, index: int, blocks: Sequence[Block]) -> float:
    group = problem.groups[index]
    made = math.fsum(table(block.width) for block in blocks for table in group.made)
    return made + group.block_us * max(0, len(blocks) - 1)


def _read_us(problem: BlockProblem, index: int, choice: Choice, groups: Sequence[Sequence[Block]]) -> float:
    reader = problem.readers[index]
    widths = [groups[group][place].width for group, place in choice.blocks]
    rounded = [-(-width // problem.width_multiple) * problem.width_multiple for width in widths]
    ragged = any(width % problem.joined_multiple for width in widths)
    return reader.prices[choice.kind].us(reader.cost(sum(rounded)), len(widths), sum(rounded), ragged)


def _tensor_us(
    problem: BlockProblem,
    index: int,
    groups: Sequence[Sequence[Block]],
    choices: Sequence[Choice],
    readers: Sequence[int],
) -> float:
    tensor = problem.tensors[index]
    kinds = {choices[reader].kind for reader in readers}
    cost = tensor.reorder_us if kinds & REORDERED else 0.0
    blocks = [block for group in tensor.groups for block in groups[group]]
    if len(blocks) > 1 and (tensor.whole or kinds & WHOLE):
        cost += tensor.whole_us
        if any(block.width % problem.joined_multiple for block in blocks):
            cost += tensor.ragged_us
    return cost
