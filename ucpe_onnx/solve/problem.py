"""The channel-ordering problem of one segment, its solution, and an independent checker.

UPSCALE (Wan et al., ICML 2023) observed that a consumer whose kept channels lie side by side reads them as a view,
while any other consumer needs a memory copy. So the order of a segment's channels is a decision, and this module states
it as data: which orders are free, who reads what, and what each reader would pay for a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

OPTIMAL = "OPTIMAL"
FEASIBLE = "FEASIBLE"


@dataclass(frozen=True)
class Reader:
    """A consumer of a segment's slots.

    Attributes:
        name: Unique within the problem.
        keep: The slots that its mask keeps; all lie in the groups of `sequence`.
        sequence: The groups in the order in which the tensor that it reads lays them out, without repeats.
        weight: What a copy would cost it (finite, not negative).
    """

    name: str
    keep: frozenset[int]
    sequence: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class OrderingProblem:
    """Which orders are free, and who reads what.

    Attributes:
        groups: The slots of each group in their original order; a group is identified by its index.
        fixed: The groups whose order must stay.
        readers: The consumers.

    Raises:
        ValueError: A slot is in two groups, a reader keeps a slot outside its sequence, or an id, a name or a weight
            makes no sense.
    """

    groups: tuple[tuple[int, ...], ...]
    readers: tuple[Reader, ...]
    fixed: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        home: dict[int, int] = {}
        for group, slots in enumerate(self.groups):
            for slot in slots:
                if slot in home:
                    raise ValueError(f"slot {slot} appears twice: in group {home[slot]} and in group {group}")
                home[slot] = group
        known = range(len(self.groups))
        unknown = [group for group in self.fixed if group not in known]
        if unknown:
            raise ValueError(f"fixed names unknown groups {sorted(unknown)}; there are {len(self.groups)}")
        names: set[str] = set()
        for reader in self.readers:
            if reader.name in names:
                raise ValueError(f"two readers are called {reader.name!r}")
            names.add(reader.name)
            _check_reader(reader, known, home)


def _check_reader(reader: Reader, known: range, home: dict[int, int]) -> None:
    if not math.isfinite(reader.weight) or reader.weight < 0:
        raise ValueError(f"reader {reader.name!r}: weight {reader.weight} must be finite and not negative")
    if len(set(reader.sequence)) != len(reader.sequence):
        raise ValueError(f"reader {reader.name!r}: its sequence {reader.sequence} repeats a group")
    unknown = [group for group in reader.sequence if group not in known]
    if unknown:
        raise ValueError(f"reader {reader.name!r}: its sequence names unknown groups {unknown}")
    seen = set(reader.sequence)
    outside = [slot for slot in reader.keep if home.get(slot) not in seen]
    if outside:
        raise ValueError(f"reader {reader.name!r} keeps slots outside its sequence: {sorted(outside)[:8]}")


@dataclass(frozen=True)
class Ordering:
    """An order of every group, and how good it is.

    Attributes:
        groups: The groups of the problem, each a permutation of itself.
        served: The names of the readers whose kept slots are contiguous.
        objective: Their total weight.
        bound: No order serves more than this (weights are compared to within 1e-12 of their sum).
        status: `OPTIMAL` if the objective is proven to be the maximum, else `FEASIBLE`.
        seconds: Time spent.
    """

    groups: tuple[tuple[int, ...], ...]
    served: frozenset[str]
    objective: float
    bound: float
    status: str
    seconds: float


def served_readers(problem: OrderingProblem, groups: Sequence[Sequence[int]]) -> frozenset[str]:
    """Names of the readers that an order serves, found by laying the tensors out and looking.

    It shares nothing with the solvers, whose results it judges.

    Args:
        problem: The problem.
        groups: An order of each of its groups.

    Raises:
        ValueError: `groups` is no valid layout of the problem.
    """
    if len(groups) != len(problem.groups):
        raise ValueError(f"{len(groups)} groups given, the problem has {len(problem.groups)}")
    for index, (given, original) in enumerate(zip(groups, problem.groups, strict=True)):
        if sorted(given) != sorted(original):
            raise ValueError(f"group {index} is not a permutation of the problem's")
        if index in problem.fixed and tuple(given) != original:
            raise ValueError(f"group {index} is fixed but was reordered")
    served = set()
    for reader in problem.readers:
        tensor = (slot for group in reader.sequence for slot in groups[group])
        places = [place for place, slot in enumerate(tensor) if slot in reader.keep]
        if not places or places[-1] - places[0] + 1 == len(places):
            served.add(reader.name)
    return frozenset(served)


def served_weight(problem: OrderingProblem, served: frozenset[str]) -> float:
    """Total weight of the named readers."""
    return math.fsum(reader.weight for reader in problem.readers if reader.name in served)


def total_weight(problem: OrderingProblem) -> float:
    """Total weight of all readers."""
    return math.fsum(reader.weight for reader in problem.readers)
