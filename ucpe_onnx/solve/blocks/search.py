"""A good layout quickly: partitions that serve chosen readers exactly, then local search.

No time is looked at but to stop: within its limits the search is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations

import numpy as np

from ucpe_onnx.solve.blocks.layout import BlockPrices, FloatArray, Layout, Part, Partition
from ucpe_onnx.solve.blocks.partitions import fitted, partitions, single, trimmed
from ucpe_onnx.solve.blocks.problem import APART, BLOCKWISE

Late = Callable[[], bool]

_ALL_SUBSETS = 4  # readers of which all subsets are tried
_MAX_SUBSETS = 120
_BEAM = 3
_LARGEST = 4  # readers served exactly, in the beam
_TYPICAL = 3  # blocks that a reader reads
_STARTS = 4  # of the local search
_STARTS_FEW = 8  # the same if there are few readers: most of them end at once
_EVALUATIONS = 3000
_TIMES = (1, 2, 4)  # of what widths are rounded to: some kernels cost less if they make more
_NOTICED = 1e-9  # a smaller relative improvement is none


def fixed_layouts(prices: BlockPrices, late: Late = lambda: False) -> list[Layout]:
    """One block for each group, rounded or not, with nobody, each reader alone, or everybody duplicated.

    The first ones, where nobody is duplicated who needn't be, come in any case; the others until time is up.
    """
    able = _able(prices)
    forced = sum(1 << index for index in able if len(prices.problem.readers[index].kinds) == 1)
    chosen = dict.fromkeys([forced, *(forced | 1 << index for index in able), sum(1 << index for index in able)])
    found: list[Layout] = []
    for duplicated in chosen:
        if found and late():
            break
        quanta = dict.fromkeys(times * quantum for quantum in _quanta(prices) for times in _TIMES)
        found += [_whole(prices, duplicated, quantum) for quantum in quanta]
    return found


def warm_start(prices: BlockPrices, known: Sequence[Layout], late: Late) -> Layout:
    """Search from scratch.

    Args:
        prices: The prices.
        known: Layouts to improve on.
        late: Whether time is up.
    """
    best = min(known, key=_us)
    starts = _STARTS_FEW if len(prices.problem.readers) <= _ALL_SUBSETS else _STARTS
    built: set[int] = set()
    while True:
        for duplicated in dict.fromkeys((known[0].duplicated, best.duplicated)):
            layouts = [] if duplicated in built else _Construction(prices, duplicated, late).layouts()
            built.add(duplicated)
            for start in _diverse([best, *layouts], starts):
                best = min(best, improved(start, late), key=_us)
        further = [1 << index for index in _able(prices) if not best.duplicated >> index & 1]
        step = best
        for layout in (_whole(prices, best.duplicated), best):
            for some in further:
                if late():
                    return best
                step = min(step, _duplicating(layout, some), key=_us)
        if not _better(step, best):
            return best
        best = step


def _able(prices: BlockPrices) -> list[int]:
    return [index for index, reader in enumerate(prices.problem.readers) if reader.takes(APART)]


def _duplicating(layout: Layout, reader: int) -> Layout:
    """A layout without what only one more reader keeps."""
    prices, duplicated = layout.prices, layout.duplicated | reader
    groups = []
    for index, group in enumerate(layout.groups):
        parts = [
            {member: count for member, count in part.items() if prices.requires(member, duplicated)}
            for part in group.parts
        ]
        groups.append(fitted(prices, index, duplicated, parts, prices.problem.width_multiple))
    return Layout(prices, duplicated, tuple(groups))


def _diverse(layouts: Sequence[Layout], count: int) -> list[Layout]:
    """The best layouts, one for each number of blocks."""
    starts: dict[int, Layout] = {}
    for layout in sorted(layouts, key=_us):
        starts.setdefault(sum(len(group.parts) for group in layout.groups), layout)
    return list(starts.values())[:count]


def _whole(prices: BlockPrices, duplicated: int, quantum: int = 1) -> Layout:
    groups = range(len(prices.problem.groups))
    return Layout(prices, duplicated, tuple(single(prices, group, duplicated, quantum) for group in groups))


def _us(layout: Layout) -> float:
    return layout.us


def _better(new: Layout, old: Layout) -> bool:
    return new.us < old.us - _NOTICED * old.us


class _Construction:
    """Layouts that serve some readers exactly; those readers are never duplicated."""

    def __init__(self, prices: BlockPrices, duplicated: int, late: Late) -> None:
        self._desk, self._duplicated, self._late = prices, duplicated, late
        problem = prices.problem
        self._readers = [
            index
            for index, reader in enumerate(problem.readers)
            if not duplicated >> index & 1 and reader.takes(BLOCKWISE)
        ]
        self._near = [sum(1 << i for i in self._readers if prices.kept[i][g]) for g in range(len(problem.groups))]
        self._rates = np.zeros((2, len(problem.readers)))
        self._joining = 0
        for index in self._readers:
            self._rate(index)
        self._known: dict[tuple[int, int, int], list[Partition]] = {}

    def layouts(self) -> list[Layout]:
        """The best layout of each number of blocks for each set of readers tried.

        These are all sets if there are few readers, else those that a beam leads to.
        """
        found: dict[int, list[Layout]] = {}
        everybody = sum(1 << index for index in self._readers)
        few = len(self._readers) <= _ALL_SUBSETS
        front = [0]
        for _ in range(len(self._readers) if few else _LARGEST):
            new = dict.fromkeys(served | 1 << i for served in front for i in self._readers if not served >> i & 1)
            for served in [everybody, *new]:
                if served not in found and len(found) < _MAX_SUBSETS and not self._late():
                    found[served] = self._serving(served)
            front = sorted(
                (served for served in new if served in found), key=lambda served: min(map(_us, found[served]))
            )
            front = front if few else front[:_BEAM]
        return [layout for layouts in found.values() for layout in layouts]

    def _rate(self, index: int) -> None:
        """What a block costs a reader, per unit and as such; and whether it had rather join blocks."""
        problem, kept = self._desk.problem, sum(self._desk.kept[index])
        prices = [price for kind, price in problem.readers[index].prices.items() if kind in BLOCKWISE]
        best = min(prices, key=lambda price: price.us(0.0, _TYPICAL, kept, ragged=False))
        self._rates[:, index] = self._desk.rates[index], best.part_us
        if best.copies is not None:
            self._rates[0, index] += best.copies[0].channel_us * problem.width_multiple
            self._joining |= 1 << index

    def _serving(self, served: int) -> list[Layout]:
        """Layouts that suit the readers served, by number of blocks and rounding."""
        prices = self._desk
        layouts: dict[tuple[int, ...], Layout] = {}
        for quantum in _quanta(prices)[: 1 if served & self._joining else None]:
            choices = [self._partitions(group, served & near, quantum) for group, near in enumerate(self._near)]
            for most in range(1, prices.problem.max_blocks + 1):
                groups = tuple(next(each for each in found if len(each.parts) <= most) for found in choices)
                layouts.setdefault(tuple(map(id, groups)), Layout(prices, self._duplicated, groups))
        return list(layouts.values())

    def _partitions(self, group: int, served: int, quantum: int) -> list[Partition]:
        key = (group, served, quantum)
        if key not in self._known:
            self._known[key] = partitions(
                self._desk, group, self._duplicated, served=served, rates=self._masked(served), quantum=quantum
            )
        return self._known[key]

    def _masked(self, served: int) -> FloatArray:
        chosen = [bool(served >> index & 1) for index in range(self._rates.shape[1])]
        masked: FloatArray = self._rates * np.array(chosen)
        return masked


def improved(start: Layout, late: Late) -> Layout:
    """Local search: the first move that improves is made, until none does or the evaluations are used up."""
    best = start
    left = _EVALUATIONS
    group, idle = 0, 0
    count = len(start.groups)
    while idle < count and left > 0 and not late():
        idle += 1
        for parts in _moves(best, group):
            left -= 1
            if left < 0 or late():
                break
            new = [fitting for fitting in _fittings(best, group, parts) if not _same(fitting, best.groups[group])]
            layout = min((best.replaced(group, fitting) for fitting in new), key=_us, default=best)
            if _better(layout, best):
                best, idle = layout, 0
                break
        if idle:
            group = (group + 1) % count
    return best


def _same(a: Partition, b: Partition) -> bool:
    """Whether two partitions hold the same, so that neither is better: a price is a sum over all groups."""
    return a.widths == b.widths and a.parts == b.parts


def _fittings(layout: Layout, group: int, parts: Sequence[Part]) -> Iterator[Partition]:
    for quantum in _quanta(layout.prices):
        for tight in (False, True):
            yield fitted(layout.prices, group, layout.duplicated, parts, quantum, served=layout.served, tight=tight)


def _quanta(prices: BlockPrices) -> tuple[int, ...]:
    """Channels to whose multiples widths are rounded: those that all kernels like, and the least."""
    step = prices.problem.width_multiple
    return tuple(dict.fromkeys([math.lcm(prices.problem.joined_multiple, step), step]))


def _moves(layout: Layout, group: int) -> Iterator[list[Part]]:
    """What the blocks could hold instead: two merged, one split by a reader, a rest elsewhere, a class elsewhere."""
    prices, parts = layout.prices, layout.groups[group].parts
    yield list(parts)
    for a, b in combinations(range(len(parts)), 2):
        yield [*_without(parts, a, b), _joined(parts[a], parts[b])]
    if len(parts) < prices.most(group):
        for a, part in enumerate(parts):
            for reader in range(len(prices.problem.readers)):
                inside = {member: count for member, count in part.items() if prices.masks[member] >> reader & 1}
                if 0 < len(inside) < len(part):
                    outside = {member: count for member, count in part.items() if member not in inside}
                    yield [*_without(parts, a), inside, outside]
    for a, b in permutations(range(len(parts)), 2):
        count = sum(parts[a].values())
        for surplus in dict.fromkeys(count % (quantum * times) for quantum in _quanta(prices)[:1] for times in _TIMES):
            if surplus:
                yield trimmed(prices, layout.served, parts, a, count=surplus, sink=b)
    for a, part in enumerate(parts):
        for member, count in part.items():
            rest = {other: have for other, have in part.items() if other != member}
            for b in range(len(parts)):
                if b != a:
                    yield [*_without(parts, a, b), rest, _joined(parts[b], {member: count})]


def _without(parts: Sequence[Part], *places: int) -> list[Part]:
    return [part for place, part in enumerate(parts) if place not in places]


def _joined(a: Part, b: Part) -> Part:
    joined = dict(a)
    for member, count in b.items():
        joined[member] = joined.get(member, 0) + count
    return joined
