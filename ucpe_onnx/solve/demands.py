"""From readers over sequences of groups to sets that must be contiguous within one group.

A reader that keeps slots of one group needs a run there. If it reaches over several groups of its sequence, it needs a
*suffix* of the first one it touches, *all* of those between and a *prefix* of the last. Therefore the groups interact
only through the readers, and within a group everything is the consecutive-ones property: with two anchors, L and R,
the sets G+L and G+R force L and R to the ends of group G, a prefix P becomes P+L, and a suffix S becomes S+R.

Nothing is left to decide in a fixed group: its demands are met or the reader can't be served.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ucpe_onnx.solve.consecutive import arrange, overlap
from ucpe_onnx.solve.problem import OrderingProblem, Reader


@dataclass(frozen=True)
class Demand:
    """What it takes to serve some readers that want the same.

    Attributes:
        names: The readers.
        weight: Their total weight.
        sets: For each group that matters the set, as a bit mask over the group's original order and its two anchors,
            that has to be contiguous.
    """

    names: tuple[str, ...]
    weight: float
    sets: dict[int, int]


@dataclass(frozen=True)
class Demands:
    """A problem in terms of sets.

    Attributes:
        problem: Where it came from.
        trivial: Readers that every order serves.
        open: What the other readers demand; readers that no order serves are left out.
    """

    problem: OrderingProblem
    trivial: frozenset[str]
    open: tuple[Demand, ...]


def compile_demands(problem: OrderingProblem) -> Demands:
    """Translate, merge and sort out a problem's readers."""
    places = [{slot: place for place, slot in enumerate(slots)} for slots in problem.groups]
    trivial: set[str] = set()
    merged: dict[tuple[tuple[int, int], ...], list[Reader]] = {}
    for reader in problem.readers:
        sets = _reader_sets(problem, places, reader)
        if sets is None:
            continue
        if sets:
            merged.setdefault(tuple(sorted(sets.items())), []).append(reader)
        else:
            trivial.add(reader.name)
    demands = tuple(
        Demand(tuple(reader.name for reader in readers), sum(reader.weight for reader in readers), dict(sets))
        for sets, readers in merged.items()
    )
    return Demands(problem, frozenset(trivial), demands)


def _reader_sets(problem: OrderingProblem, places: list[dict[int, int]], reader: Reader) -> dict[int, int] | None:
    """The sets that a reader needs contiguous: empty if any order serves it, None if no order does."""
    groups = [group for group in reader.sequence if places[group]]
    masks = [sum(1 << place for slot, place in places[group].items() if slot in reader.keep) for group in groups]
    touched = [index for index, mask in enumerate(masks) if mask]
    sets: dict[int, int] = {}
    if not touched:
        return sets
    first, last = touched[0], touched[-1]
    for index in range(first, last + 1):
        group, mask, size = groups[index], masks[index], len(places[groups[index]])
        if mask == everything(size):
            continue
        if first < index < last:
            return None
        if first != last:
            mask |= left_anchor(size) if index == last else right_anchor(size)
        if group in problem.fixed:
            if not _met_in_place(mask, size):
                return None
        elif mask.bit_count() > 1:
            sets[group] = mask
    return sets


def _met_in_place(mask: int, size: int) -> bool:
    if mask & left_anchor(size):
        mask = (mask & everything(size)) << 1 | 1  # in place the left anchor comes before the first slot
    elif mask & right_anchor(size):
        mask = mask & everything(size) | 1 << size
    run = mask >> ((mask & -mask).bit_length() - 1)
    return run & (run + 1) == 0


def everything(size: int) -> int:
    """The set of all slots of a group."""
    return (1 << size) - 1


def left_anchor(size: int) -> int:
    """The virtual slot before a group's first, as a set."""
    return 1 << size


def right_anchor(size: int) -> int:
    """The virtual slot after a group's last, as a set."""
    return 2 << size


def family(sets: list[int], size: int) -> list[int]:
    """Sets demanded in one group together with those that pin the anchors, which only matter if one is used."""
    left, right = left_anchor(size), right_anchor(size)
    if any(members & (left | right) for members in sets):
        return [*sets, everything(size) | left, everything(size) | right]
    return sets


def connected(demands: tuple[Demand, ...], sizes: list[int]) -> list[list[int]]:
    """Split demands into parts that can't get in each other's way, as lists of indices.

    A conflict lies within one component of one group's overlap graph (see `consecutive`), in which all sets that hold
    an anchor are joined through the sets that pin the anchors.
    """
    parent = list(range(len(demands)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for a, b in _pairs_that_meet(demands, sizes):
        parent[root(b)] = root(a)
    parts: dict[int, list[int]] = {}
    for index in range(len(demands)):
        parts.setdefault(root(index), []).append(index)
    return list(parts.values())


def _pairs_that_meet(demands: tuple[Demand, ...], sizes: list[int]) -> Iterator[tuple[int, int]]:
    for b, second in enumerate(demands):
        for a, first in enumerate(demands[:b]):
            for group in first.sets.keys() & second.sets.keys():
                ours, theirs = first.sets[group], second.sets[group]
                anchored = bool(ours >> sizes[group]) and bool(theirs >> sizes[group])
                if anchored or overlap(ours, theirs):
                    yield a, b


def layout(problem: OrderingProblem, served: list[Demand]) -> tuple[tuple[int, ...], ...] | None:
    """Order every group so that all of the given demands are met, or None if that is impossible."""
    groups = []
    for group, slots in enumerate(problem.groups):
        size = len(slots)
        sets = family([demand.sets[group] for demand in served if group in demand.sets], size)
        left, right = left_anchor(size), right_anchor(size)
        anchored = any(members & (left | right) for members in sets)
        universe = everything(size) | (left | right if anchored else 0)
        order = arrange(universe, sets, left)
        if order is None:
            return None
        groups.append(tuple(slots[bit] for bit in order if bit < size))
    return tuple(groups)
