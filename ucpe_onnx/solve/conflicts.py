"""Which readers can't be served together: the oracle, minimal conflicts, and small conflicts found up front."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

from ucpe_onnx.solve.consecutive import failing_component, has_consecutive_ones
from ucpe_onnx.solve.demands import Demand, family

_MAX_TESTS = 100_000
_MAX_QUADRUPLES = 500

Found = dict[int, dict[tuple[int, ...], None]]  # sorted conflicts by size; an ordered set keeps runs equal


@dataclass(frozen=True)
class Conflict:
    """At most `limit` of `members` can be served together."""

    members: tuple[int, ...]
    limit: int


class Oracle:
    """Decides exactly, and without search, whether some demands can be met together.

    Demands are named by their index. They can be met if and only if each group's sets have the consecutive-ones
    property, because groups are ordered independently.
    """

    def __init__(self, demands: Sequence[Demand], sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._weights = [demand.weight for demand in demands]
        self._sets: dict[int, dict[int, int]] = {}
        for index, demand in enumerate(demands):
            for group, members in demand.sets.items():
                self._sets.setdefault(group, {})[index] = members

    @property
    def groups(self) -> Iterable[tuple[int, tuple[int, ...]]]:
        """Each group with the demands that have a say in it, heaviest first."""
        return [
            (group, tuple(sorted(sets, key=lambda index: (-self._weights[index], index))))
            for group, sets in self._sets.items()
        ]

    def feasible(self, chosen: Collection[int]) -> bool:
        """Whether the chosen demands can all be met."""
        return all(self.feasible_in(group, chosen) for group in self._sets)

    def feasible_in(self, group: int, chosen: Collection[int]) -> bool:
        """Whether the chosen demands can all be met as far as one group is concerned."""
        return has_consecutive_ones(family(self._chosen_sets(group, chosen), self._sizes[group]))

    def minimal_conflict(self, chosen: Collection[int]) -> tuple[int, ...] | None:
        """A subset of the chosen demands that can't be met though each smaller part of it can, or None.

        Deletion filter: what can be left out with the conflict persisting is left out for good.
        """
        for group, sets in self._sets.items():
            present = [index for index in chosen if index in sets]
            failing = failing_component(family(self._chosen_sets(group, present), self._sizes[group]))
            if failing is None:
                continue
            # The two sets that pin the anchors come last and are nobody's.
            core = [present[place] for place in failing if place < len(present)]
            for index in list(core):
                rest = [other for other in core if other != index]
                if not self.feasible_in(group, rest):
                    core = rest
            return tuple(sorted(core))
        return None

    def _chosen_sets(self, group: int, chosen: Iterable[int]) -> list[int]:
        sets = self._sets[group]
        return [sets[index] for index in chosen if index in sets]


def small_conflicts(oracle: Oracle, late: Callable[[], bool]) -> list[Conflict]:
    """Minimal conflicts of two and three demands (four where there are few), merged into stronger statements.

    The number of tests is capped, so that the result does not depend on the machine's speed unless time runs out.

    Args:
        oracle: Decides each candidate.
        late: Whether time is up.
    """
    found: Found = {2: {}, 3: {}, 4: {}}
    tests = 0
    for size, conflicts in found.items():
        for group, present in oracle.groups:
            if size == 4 and comb(len(present), 4) > _MAX_QUADRUPLES:
                continue
            for candidate in _subsets(present, size):
                if any(part in found[less] for less in range(2, size) for part in combinations(candidate, less)):
                    continue
                if tests == _MAX_TESTS or late():
                    return merge_conflicts(found, late)
                tests += 1
                if not oracle.feasible_in(group, candidate):
                    conflicts[candidate] = None
    return merge_conflicts(found, late)


def _subsets(items: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Sorted subsets of a given size: all those of the first n items come before any that holds a later one."""
    for end, item in enumerate(items):
        for rest in combinations(items[:end], size - 1):
            yield tuple(sorted((*rest, item)))


def merge_conflicts(found: Found, late: Callable[[], bool] = lambda: False) -> list[Conflict]:
    """Cover conflicts by few statements "at most k of these", which bound far better than one clause each.

    If every part of k+1 members of a set is a conflict, at most k members of the set can be served. Independent random
    masks are the extreme: all triples conflict, and one statement says so.

    Args:
        found: Conflicts by size, as sorted tuples.
        late: Whether time is up: then conflicts are stated one by one.
    """
    merged = []
    for size, conflicts in found.items():
        everyone = list(dict.fromkeys(index for conflict in conflicts for index in conflict))
        covered: set[tuple[int, ...]] = set()
        for conflict in conflicts:
            if conflict in covered:
                continue
            clique = conflict if late() else _grown(conflict, everyone, conflicts)
            covered.update(combinations(clique, size))
            merged.append(Conflict(clique, size - 1))
    return merged


def _grown(
    conflict: tuple[int, ...], everyone: Sequence[int], conflicts: dict[tuple[int, ...], None]
) -> tuple[int, ...]:
    """A maximal superset of which every part as large as `conflict` is a conflict."""
    clique = list(conflict)
    for new in everyone:
        parts = combinations(clique, len(conflict) - 1)
        if new not in clique and all(tuple(sorted((*part, new))) in conflicts for part in parts):
            clique.append(new)
    return tuple(sorted(clique))
