"""The CP-SAT model of a block problem: variables for each type of block (see `master`), constraints, costs.

Costs are integers, rounded down, so that the model's bound is one of the problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ortools.sat.python import cp_model

from ucpe_onnx.solve.blocks.bound import at_least, cheapest_made
from ucpe_onnx.solve.blocks.layout import BlockPrices
from ucpe_onnx.solve.blocks.problem import APART, BLOCKWISE, REORDERED, WHOLE, Copy

ALWAYS = 1
_ENTRIES = 80  # of a table; more make CP-SAT slow
_sum = cp_model.LinearExpr.sum
_weighted = cp_model.LinearExpr.weighted_sum

Families = Sequence[Sequence[int]]
"""For each group the types of blocks, as bit masks over the readers."""


@dataclass(frozen=True)
class Slot:
    """The variables of a possible block.

    Attributes:
        type: the readers that read it as a block.
        present: whether it exists.
        units: its width.
        ragged: whether its width is no multiple of the problem's `joined_multiple`.
    """

    type: int
    present: Any
    units: Any
    ragged: Any


@dataclass
class BlockModel:
    """Builds the model section by section."""

    prices: BlockPrices
    families: Families
    scale: float
    model: Any = field(default_factory=cp_model.CpModel)

    def __post_init__(self) -> None:
        self.costs: list[tuple[Any, int]] = []
        self.exact = True
        self.kinds = [self._kinds(index) for index in range(len(self.prices.problem.readers))]
        self.slots = [self._slots(group) for group in range(len(self.families))]
        self.channels = [self._channels(group) for group in range(len(self.families))]
        for index in range(len(self.prices.problem.tensors)):
            self._tensor(index)
        for index in range(len(self.kinds)):
            self._reader(index)
        self.model.minimize(_weighted([term for term, _ in self.costs], [weight for _, weight in self.costs]))

    def _int(self, us: float) -> int:
        """Microseconds as an integer, rounded down so that the bound is one."""
        return math.floor(us * self.scale + 1e-9)

    def _pay(self, condition: Any, us: float) -> None:
        self.costs.append((condition, self._int(us)))

    # Variables

    def _kinds(self, index: int) -> dict[str, Any]:
        kinds = {kind: self.model.new_bool_var(f"{kind}_{index}") for kind in self.prices.problem.readers[index].kinds}
        self.model.add_exactly_one(kinds.values())
        return kinds

    def _served(self, index: int) -> Any:
        """Whether a reader reads blocks."""
        return _sum(self._of(index, BLOCKWISE))

    def _of(self, index: int, kinds: frozenset[str]) -> list[Any]:
        """For those of some kinds that a reader can take whether it does."""
        return [variable for kind, variable in self.kinds[index].items() if kind in kinds]

    def _slots(self, group: int) -> list[Slot]:
        prices = self.prices
        most, total = prices.most(group), prices.totals[group]
        copies = min(most, cheapest_made(prices, group)[1])
        slots = [self._slot(group, served, copy) for served in self.families[group] for copy in range(copies)]
        for first, second in pairwise(slots):
            if first.type == second.type:
                self.model.add(first.units >= second.units)
        number = _sum([slot.present for slot in slots])
        several = self.model.new_bool_var(f"several_{group}")
        self.model.add(number <= 1 + (most - 1) * several)
        self.model.add(number >= 2 * several)
        units = _sum([slot.units for slot in slots])
        self.model.add(units <= prices.units(total))
        self.model.add(units <= total // prices.problem.width_multiple).only_enforce_if(several)
        for slot in slots:
            self.model.add(slot.units >= prices.least).only_enforce_if(several, slot.present)
        further = self.model.new_int_var(0, most, f"further_{group}")
        self.model.add(further >= number - 1)
        self._pay(further, prices.problem.groups[group].block_us)
        return slots

    def _slot(self, group: int, served: int, copy: int) -> Slot:
        prices, name = self.prices, f"{group}_{served:b}_{copy}"
        limit = prices.units(prices.totals[group])
        present = self.model.new_bool_var(f"present_{name}")
        units = self.model.new_int_var(0, limit, f"units_{name}")
        self.model.add(units >= 1).only_enforce_if(present)
        self.model.add(units <= limit * present)
        for index in range(len(self.kinds)):
            if served >> index & 1:
                self.model.add(present <= self._served(index))
        self._table(units, prices.made[group], f"made_{name}", present)
        return Slot(served, present, units, self._ragged(group, units, name))

    def _ragged(self, group: int, units: Any, name: str) -> Any:
        problem = self.prices.problem
        total = self.prices.totals[group]
        ragged = self.model.new_bool_var(f"ragged_{name}")
        period = problem.joined_multiple // math.gcd(problem.joined_multiple, problem.width_multiple)
        if total % problem.width_multiple:
            flags = [int(self.prices.width(group, each) % problem.joined_multiple > 0) for each in range(total + 1)]
            self.model.add_element(units, flags, ragged)
        else:
            over = self.model.new_int_var(0, period - 1, f"over_{name}")
            full = self.model.new_int_var(0, total, f"full_{name}")
            self.model.add(units == period * full + over)
            self.model.add(over <= (period - 1) * ragged)
            self.model.add(over >= ragged)
        return ragged

    def _channels(self, group: int) -> dict[int, list[Any]]:
        """For each class how many of its channels lie in blocks of each type."""
        prices, types = self.prices, self.families[group]
        found = {}
        for member in prices.members[group]:
            slots = prices.problem.classes[member]
            inside = [self.model.new_int_var(0, slots.count, f"channels_{member}_{served:b}") for served in types]
            self._serve(member, inside, types)
            found[member] = inside
        for place, served in enumerate(types):
            self._fill(group, served, {member: inside[place] for member, inside in found.items()})
        return found

    def _fill(self, group: int, served: int, inside: Mapping[int, Any]) -> None:
        """Blocks of a type are as wide as what lies in them, and hold something for each of its readers."""
        prices = self.prices
        slots = [slot for slot in self.slots[group] if slot.type == served]
        number = _sum([slot.present for slot in slots])
        held = _sum(list(inside.values()))
        self.model.add(held <= prices.problem.width_multiple * _sum([slot.units for slot in slots]))
        self.model.add(held >= number)
        for index in range(len(self.kinds)):
            if served >> index & 1:
                wanted = [variable for member, variable in inside.items() if prices.masks[member] >> index & 1]
                self.model.add(_sum(wanted) >= number)
        for member, variable in inside.items():  # follows from what is said elsewhere, but bounds far better
            self.model.add(variable <= prices.problem.classes[member].count * number)

    def _serve(self, member: int, inside: Sequence[Any], types: Sequence[int]) -> None:
        """Channels are emitted if somebody needs them, and where a reader of blocks keeps them it reads them."""
        slots = self.prices.problem.classes[member]
        emitted = _sum(list(inside))
        duplicated = [_sum(self._of(index, APART)) for index in sorted(slots.readers)]
        if slots.fixed:
            self.model.add(emitted == slots.count)
        else:
            self.model.add(emitted <= slots.count)
            self.model.add(emitted <= slots.count * (len(duplicated) - _sum(duplicated)))
            for each in duplicated:
                self.model.add(emitted >= slots.count * (1 - each))
        for index in sorted(slots.readers):
            outside = [variable for variable, served in zip(inside, types, strict=True) if not served >> index & 1]
            if outside:
                self.model.add(_sum(outside) <= slots.count * (1 - self._served(index)))

    # Costs

    def _table(self, units: Any, costs: Any, name: str, present: Any) -> None:
        """Pay what a table says: runs of equal costs are one entry, a long table is cut down to each run's least."""
        values = [self._int(us) for us in costs.tolist()]
        changes = [place for place in range(1, len(values) - 1) if values[place] != values[place + 1]]
        run = math.gcd(*changes) or len(values)
        rising = all(a <= b for a, b in pairwise(values))
        if rising and len(values) > 2 and values[0] != values[1]:
            if len(values) > run * _ENTRIES:
                run *= -(-len(values) // (run * _ENTRIES))
                self.exact = False
            values = [values[0], *values[1::run]]
            index = self.model.new_int_var(0, len(values) - 1, f"entry_{name}")
            self.model.add(units <= run * index)
            self.model.add(units >= run * index - run + 1)
        else:
            index = units
        cost = self.model.new_int_var(min(values), max(values), f"us_{name}")
        self.model.add_element(index, values, cost)
        for base, slope in _minorants(values, 0 if present is ALWAYS else 1):
            self.model.add(cost >= base * present + slope * index)
        self.costs.append((cost, 1))

    def _tensor(self, index: int) -> None:
        """What the readers of a tensor share: a reorder, and joining its blocks."""
        tensor = self.prices.problem.tensors[index]
        slots = [slot for group in tensor.groups for slot in self.slots[group]]
        readers = self.prices.readers_of[index]
        reorder, joined, ragged = (
            self.model.new_bool_var(f"{name}_{index}") for name in ("reorder", "joined", "rough")
        )
        number = _sum([slot.present for slot in slots])
        most = sum(self.prices.most(group) for group in tensor.groups)
        several = self.model.new_bool_var(f"pieces_{index}")
        self.model.add(number <= 1 + most * several)
        for reader in readers:
            for chosen in self._of(reader, REORDERED):
                self.model.add_implication(chosen, reorder)
            for chosen in self._of(reader, WHOLE):
                self.model.add(joined >= several + chosen - 1)
        if tensor.whole:
            self.model.add_implication(several, joined)
        for slot in slots:
            self.model.add(ragged >= joined + slot.ragged - 1)
        self._pay(reorder, tensor.reorder_us)
        self._pay(joined, tensor.whole_us)
        self._pay(ragged, tensor.ragged_us)

    def _reader(self, index: int) -> None:
        """What a reader pays by itself."""
        prices, reader, kinds = self.prices, self.prices.problem.readers[index], self.kinds[index]
        slots = [slot for group in prices.problem.tensors[reader.tensor].groups for slot in self.slots[group]]
        needed = [slot for slot in slots if slot.type >> index & 1]
        span = prices.span(reader)
        read = self.model.new_int_var(0, span, f"read_{index}")
        own = _sum([slot.units for slot in needed])
        unpriced = frozenset(kind for kind, price in reader.prices.items() if price.flat_us is None)
        taking_all = self._of(index, WHOLE & unpriced)
        if taking_all:
            whole = self.model.new_int_var(0, span, f"whole_{index}")
            everything = _sum([slot.units for slot in slots])
            for chosen in taking_all:
                self.model.add(whole == everything).only_enforce_if(chosen)
            self.model.add(whole >= everything - span * (1 - _sum(taking_all)))
            self.model.add(whole <= span * _sum(taking_all))
            self.model.add(read == own + whole)
        else:
            self.model.add(read == own)
        kept = sum(prices.units(count) for count in prices.kept[index])
        reading = self._served(index) + _sum(taking_all)
        self.model.add(read >= kept * reading)
        costs = at_least(prices.read[index])
        self._table(read, costs, f"read_{index}", reading if kept else ALWAYS)
        idle = self._int(float(costs[0]))  # the table says so of one who reads nothing here
        for kind, price in reader.prices.items():
            if price.flat_us is not None:
                self.costs.append((kinds[kind], self._int(price.flat_us) - idle))
        for kind in reader.kinds:
            if kind in BLOCKWISE & unpriced:
                self._blocks(index, kind, needed, read)

    def _blocks(self, index: int, kind: str, needed: Sequence[Slot], read: Any) -> None:
        """What it costs a reader that there are several blocks, if it takes a kind."""
        reader, chosen = self.prices.problem.readers[index], self.kinds[index][kind]
        price = reader.prices[kind]
        number = _sum([slot.present for slot in needed])
        limit = len(needed)
        if price.copies is None or price.part_us:
            parts = self.model.new_int_var(0, limit, f"parts_{index}")
            self.model.add(parts >= number - 1 - limit * (1 - chosen))
            if len(self._of(index, BLOCKWISE)) == 1:
                self.model.add(parts >= number - chosen)
            self._pay(parts, price.part_us)
        if price.copies is None:
            return
        several = self.model.new_bool_var(f"many_{index}")
        self.model.add(number <= 1 + limit * several)
        ragged = self.model.new_bool_var(f"odd_{index}")
        if needed:
            self.model.add_max_equality(ragged, [slot.ragged for slot in needed])
        even, odd = price.copies
        even = Copy(min(even.call_us, odd.call_us), min(even.channel_us, odd.channel_us))
        for copy, shape in ((even, ragged.negated()), (odd, ragged)):
            call, unit = self._int(copy.call_us), self._int(copy.channel_us * self.prices.problem.width_multiple)
            cost = self.model.new_int_var(0, call + unit * self.prices.span(reader), f"copy_{index}")
            self.model.add(cost >= call + unit * read).only_enforce_if(chosen, several, shape)
            self.costs.append((cost, 1))


def _minorants(values: Sequence[int], start: int) -> list[tuple[int, int]]:
    """A few lines, as base and slope, that lie below a table from an entry on."""
    found = []
    last = len(values) - 1
    for at in sorted({start, (start + last) // 2, last - 1}):
        if start <= at < last:
            slope = min((values[place] - values[at]) // (place - at) for place in range(at + 1, last + 1))
            found.append((min(values[place] - slope * place for place in range(start, last + 1)), slope))
    return list(dict.fromkeys(found))
