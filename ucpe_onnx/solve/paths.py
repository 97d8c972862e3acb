"""The published heuristic, for comparison and as a first incumbent.

UPSCALE (Wan et al., *UPSCALE: Unconstrained Channel Pruning*, ICML 2023) orders channels along paths in a graph of
consumers: a node weighs as many channels as the consumer keeps, an edge takes off those that its two ends share. The
heaviest induced path is laid out first (shared with the previous reader, own, shared with the next), then the heaviest
of what remains, and so on. A consumer whose set lies within another's is solved recursively inside of it.

Re-derived from the description. What the description leaves open is decided here: with several groups, an edge needs
the one reader's last group to be the other's first; ties go to the path found first; the search is cut off after a
fixed number of steps, which keeps it deterministic. Slots are bits: bit i is the i-th slot of all groups in a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ucpe_onnx.solve.problem import (
    FEASIBLE,
    OPTIMAL,
    Ordering,
    OrderingProblem,
    Reader,
    served_readers,
    served_weight,
    total_weight,
)

_MAX_STEPS = 50_000


@dataclass(frozen=True)
class _Node:
    """A reader as the heuristic sees it: its slots as a bit mask, the first and the last group that they lie in."""

    keep: int
    first: int
    last: int


def path_ordering(problem: OrderingProblem) -> Ordering:
    """Order the slots along heaviest induced paths of readers, as published.

    Args:
        problem: The problem.

    Returns:
        An ordering whose bound is the weight of all readers: the heuristic proves nothing beyond that.
    """
    start = time.perf_counter()
    slots = [slot for group in problem.groups for slot in group]
    bits = {slot: 1 << place for place, slot in enumerate(slots)}
    home = {slot: group for group, members in enumerate(problem.groups) for slot in members}
    nodes = [_node(reader, bits, home) for reader in problem.readers if reader.keep]
    order = {slots[place]: rank for rank, place in enumerate(_PathSearch().order(nodes))}
    # A reader that goes on into a later group wants the end of its first one: slots that nobody reads give way.
    leaving = {node.first for node in nodes if node.first != node.last}
    groups = []
    for group, members in enumerate(problem.groups):
        read = sorted((slot for slot in members if slot in order), key=order.__getitem__)
        unread = [slot for slot in members if slot not in order]
        free = unread + read if group in leaving else read + unread
        groups.append(members if group in problem.fixed else tuple(free))
    served = served_readers(problem, groups)
    objective, bound = served_weight(problem, served), total_weight(problem)
    status = OPTIMAL if len(served) == len(problem.readers) else FEASIBLE
    return Ordering(tuple(groups), served, objective, bound, status, time.perf_counter() - start)


def _node(reader: Reader, bits: dict[int, int], home: dict[int, int]) -> _Node:
    touched = {home[slot] for slot in reader.keep}
    groups = [group for group in reader.sequence if group in touched]
    return _Node(sum(bits[slot] for slot in reader.keep), groups[0], groups[-1])


class _PathSearch:
    """Lays out readers path by path, within a number of steps that all of its searches share."""

    def __init__(self) -> None:
        self._steps = _MAX_STEPS

    def order(self, nodes: Sequence[_Node]) -> list[int]:
        """Bits of the readers' slots in the order of the paths, each once."""
        outer, inner = _by_containment(nodes)
        waiting = set(range(len(outer)))
        follows, near = _graph(outer)
        order: dict[int, None] = {}
        while waiting:
            path = self._heaviest_induced_path(outer, waiting, follows, near)
            for place, index in enumerate(path):
                rank = {slot: rank for rank, slot in enumerate(self.order(inner[index]))}
                keep = outer[index].keep
                after = outer[path[place + 1]].keep if place + 1 < len(path) else 0
                for part in (keep & ~after, keep & after):  # what is shared with the previous one is in place already
                    part_slots = sorted(_members(part), key=lambda slot: rank.get(slot, len(rank)))
                    order.update(dict.fromkeys(part_slots))
            waiting.difference_update(path)
        return list(order)

    def _heaviest_induced_path(
        self, nodes: Sequence[_Node], waiting: set[int], follows: Sequence[int], near: Sequence[int]
    ) -> tuple[int, ...]:
        """Depth-first search for the induced path of most channels: sum of |kept| less what neighbours share."""
        active = sum(1 << index for index in waiting)
        heaviest = max(sorted(waiting), key=lambda index: nodes[index].keep.bit_count())
        best: tuple[int, ...] = (heaviest,)
        best_weight = nodes[heaviest].keep.bit_count()
        # A path, its weight, and the nodes that may not come next: used ones and neighbours of all but the last.
        stack: list[tuple[tuple[int, ...], int, int]] = [
            ((index,), nodes[index].keep.bit_count(), 1 << index) for index in sorted(waiting, reverse=True)
        ]
        while stack and self._steps:
            self._steps -= 1
            path, weight, barred = stack.pop()
            if weight > best_weight:
                best, best_weight = path, weight
            last = path[-1]
            for new in _members(follows[last] & active & ~barred):
                gain = (nodes[new].keep & ~nodes[last].keep).bit_count()
                stack.append(((*path, new), weight + gain, barred | near[last] | 1 << new))
        return best


def _by_containment(nodes: Sequence[_Node]) -> tuple[list[_Node], list[list[_Node]]]:
    """Readers that lie in no other's set, and for each of them those that are solved inside of it."""
    outer: list[_Node] = []
    inner: list[list[_Node]] = []
    for node in sorted(nodes, key=lambda node: -node.keep.bit_count()):
        container = next((index for index, other in enumerate(outer) if node.keep & ~other.keep == 0), None)
        if container is None:
            outer.append(node)
            inner.append([])
        else:
            inner[container].append(node)
    return outer, inner


def _graph(nodes: Sequence[_Node]) -> tuple[list[int], list[int]]:
    """For each node, as bit masks, those that may follow it in a path and those that it shares slots with."""
    follows, near = [0] * len(nodes), [0] * len(nodes)
    for a, first in enumerate(nodes):
        for b, second in enumerate(nodes):
            if a != b and first.keep & second.keep:
                near[a] |= 1 << b
                follows[a] |= (first.last == second.first) << b
    return follows, near


def _members(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1
