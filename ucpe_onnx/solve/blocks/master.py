"""The block problem as a CP-SAT model over *types* of blocks.

A block's type is the set of readers that read it as a block. Two blocks of a group that have the same type can be
merged at no cost to any reader, so that a variable for each type replaces numbered blocks: no symmetry is left, and how
much a reader reads is a linear sum. Only if the producers' own costs make several blocks cheaper than one (see
`bound.cheapest_made`) has a type more than one copy. With all types the model is exact, or, where costs of reading fall
with the width, takes them for less than they are; either way its bound is one of the problem. With some types it may
improve a layout and proves nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ortools.sat.python import cp_model

from ucpe_onnx.solve.blocks.layout import BlockPrices, Layout, Part, Partition
from ucpe_onnx.solve.blocks.model import BlockModel, Families
from ucpe_onnx.solve.blocks.problem import APART, BLOCKWISE
from ucpe_onnx.solve.interruptible import new_solver, solve

_DEAR = 3  # readers of which all sets are types in a model that can't have all types
_PRECISION = 22  # bits of the integer that stands for the cost of the layout that is known
_ROUNDING = 1e-5  # what these bits may hide


@dataclass(frozen=True)
class SolverLimits:
    """When to stop.

    Attributes:
        seconds: of wall-clock time.
        deterministic: CP-SAT's own measure, equal on all machines.
        tolerance: relative gap that is good enough.
        seed: for CP-SAT.
    """

    seconds: float
    deterministic: float
    tolerance: float
    seed: int


@dataclass(frozen=True)
class Improved:
    """What came of a solve.

    Attributes:
        layout: the best layout that the model found, if any.
        bound: of the model, in microseconds: no layout of these types costs less.
        proven: whether the layout is the best of these types.
    """

    layout: Layout | None
    bound: float
    proven: bool


def all_types(prices: BlockPrices, readers: int = -1) -> list[list[int]]:
    """Every set of readers that may read a block of each group, or of those in a bit mask of readers."""
    families = []
    for group in range(len(prices.problem.groups)):
        types = [0]
        for index in _able(prices, group):
            types += [served | 1 << index for served in types] if readers >> index & 1 else []
        families.append(types)
    return families


def _able(prices: BlockPrices, group: int) -> list[int]:
    """The readers that may read blocks of a group."""
    readers = prices.problem.readers
    return [index for index, kept in enumerate(prices.kept) if kept[group] and readers[index].takes(BLOCKWISE)]


def near_types(prices: BlockPrices, layout: Layout) -> list[list[int]]:
    """The types of a layout's blocks, two of them merged, and all sets of those readers that are expensive."""
    served = layout.served
    dear = sorted(range(len(prices.rates)), key=lambda index: -prices.rates[index] * bool(served >> index & 1))
    readers = sum(1 << index for index in dear[:_DEAR])
    families = []
    for types, group in zip(all_types(prices, readers), layout.groups, strict=True):
        own = [piece.mask & served for piece in group.pieces]
        families.append(list(dict.fromkeys([*types, *own, *(a | b for a, b in combinations(own, 2))])))
    return families


def model_size(prices: BlockPrices, families: Families | None = None) -> int:
    """A measure of how large the model is: classes and widths by types, by default by all types."""
    counts = (
        [len(types) for types in families]
        if families
        else [2 ** len(_able(prices, g)) for g in range(len(prices.made))]
    )
    return sum(
        count * (len(members) + made.size)
        for count, members, made in zip(counts, prices.members, prices.made, strict=True)
    )


def solve_master(prices: BlockPrices, families: Families, known: Layout, limits: SolverLimits) -> Improved:
    """Find the best layout of the given types.

    Args:
        prices: The prices.
        families: The types, among them those of `known`.
        known: A layout to start from.
        limits: When to stop.
    """
    model = BlockModel(prices, families, math.ldexp(1.0, _PRECISION - math.frexp(known.us)[1]))
    _hint(model, known)
    solver = new_solver(max(0.01, limits.seconds), seed=limits.seed)
    solver.parameters.max_deterministic_time = limits.deterministic
    solver.parameters.relative_gap_limit = limits.tolerance
    solver.parameters.cp_model_probing_level = 0  # takes longer than it saves here, as do the next two
    solver.parameters.max_presolve_iterations = 1
    solver.parameters.linearization_level = 0
    status = solve(solver, model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Improved(None, 0.0, False)
    layout = _layout(model, solver)
    bound = solver.best_objective_bound / model.scale
    return Improved(layout, bound, model.exact and layout.us <= bound * (1 + _ROUNDING))


def _hint(model: BlockModel, known: Layout) -> None:
    """Let the search start from a layout."""
    chosen = known.priced.kinds
    served = known.served
    for kinds, best in zip(model.kinds, chosen, strict=True):
        for kind, variable in kinds.items():
            model.model.add_hint(variable, kind == best)
    for group, partition in enumerate(known.groups):
        waiting: dict[int, list[int]] = {}
        held: dict[tuple[int, int], int] = {}
        for piece, part in zip(partition.pieces, partition.parts, strict=True):
            waiting.setdefault(piece.mask & served, []).append(model.prices.units(piece.width))
            for member, count in part.items():
                key = (member, piece.mask & served)
                held[key] = held.get(key, 0) + count
        for slot in model.slots[group]:
            units = sorted(waiting.get(slot.type, ()), reverse=True)
            model.model.add_hint(slot.present, bool(units))
            model.model.add_hint(slot.units, units[0] if units else 0)
            waiting[slot.type] = units[1:]
        for member, inside in model.channels[group].items():
            for variable, served_type in zip(inside, model.families[group], strict=True):
                model.model.add_hint(variable, held.get((member, served_type), 0))


def _layout(model: BlockModel, solver: Any) -> Layout:
    """The layout that was found."""
    duplicated = sum(
        1 << index
        for index, kinds in enumerate(model.kinds)
        if any(solver.boolean_value(variable) for kind, variable in kinds.items() if kind in APART)
    )
    groups = [_partition(model, solver, group, duplicated) for group in range(len(model.families))]
    return Layout(model.prices, duplicated, tuple(groups))


def _partition(model: BlockModel, solver: Any, group: int, duplicated: int) -> Partition:
    parts, widths = [], []
    for place, served in enumerate(model.families[group]):
        held: Part = {}
        for member, inside in model.channels[group].items():
            count = solver.value(inside[place])
            if count and model.prices.requires(member, duplicated):
                held[member] = count
        for slot in model.slots[group]:
            if slot.type == served and held:
                width = model.prices.width(group, solver.value(slot.units))
                part = _split_off(held, width)
                parts.append(part)
                widths.append(width)
    return Partition(model.prices, duplicated, tuple(parts), tuple(widths))


def _split_off(held: Part, width: int) -> Part:
    """Take channels out of `held` until so many are taken."""
    part: Part = {}
    for member in sorted(held):
        count = min(held[member], width - sum(part.values()))
        if count:
            part[member] = count
            held[member] -= count
            if not held[member]:
                del held[member]
    return part
