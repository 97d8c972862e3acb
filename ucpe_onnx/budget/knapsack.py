"""The choice as an integer program: least loss within a budget, solved with CP-SAT.

A multiple-choice knapsack over segments and consumers. What a layer costs depends on two choices at once, on what it
reads and on what it makes (a table of costs in one of them mispredicts both), so for each pair of widths there is a
variable that is 1 if both are chosen; tied to the choices by sums over rows and columns, which is tight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from ortools.sat.python import cp_model

from ucpe_onnx.analysis.layer_ops import channel_axis
from ucpe_onnx.analysis.shared_weights import tied_consumers
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.trace import Segment, Trace
from ucpe_onnx.analysis.tracer import WeightUse
from ucpe_onnx.budget.choices import Reading, SegmentChoices
from ucpe_onnx.budget.greedy import Greedy, State
from ucpe_onnx.budget.prices import Prices
from ucpe_onnx.masks import Mask
from ucpe_onnx.solve.interruptible import new_solver, solve

_SCALE = 1_000_000
"""Costs and losses become whole numbers, in millionths of the unpruned model's cost and of the largest loss."""

_EFFORT = 20.0
"""Of CP-SAT, by its own deterministic measure."""
_GAP = 1e-3
_MOST_LOSS = 10.0
"""An output that is further off than this many times its variance is no better than one that is not."""


@dataclass(frozen=True)
class Chosen:
    """A choice for the whole model.

    Attributes:
        masks: what the consumers keep that lose a channel.
        loss: predicted.
        cost: predicted, over the unpruned model's.
        status: OPTIMAL or FEASIBLE.
        gap: share of the loss that is not proven to be needed, in [0, 1].
    """

    masks: Mapping[str, Mask]
    loss: float
    cost: float
    status: str
    gap: float


@dataclass(frozen=True)
class Knapsack:
    """The problem of one model.

    Attributes:
        trace: the analysed model.
        choices: the ways of each segment.
        prices: what layers cost.
        found: choices that were found for other budgets; the next search starts from the best that fits.
    """

    trace: Trace
    choices: Sequence[SegmentChoices]
    prices: Prices
    _carried: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)
    _widths: dict[int, tuple[int, list[int]]] = field(default_factory=dict, repr=False)
    found: list[State] = field(default_factory=list, repr=False)

    def solve(self, budget: float, seconds: float, seed: int = 0) -> Chosen | None:
        """The choice of least predicted loss whose predicted cost is within a budget.

        Args:
            budget: share of the unpruned model's cost.
            seconds: time limit.
            seed: for CP-SAT.

        Returns:
            The choice; None if not even the smallest one is within the budget.
        """
        return _Model(self).solved(budget, seconds, seed)

    @cached_property
    def greedy(self) -> Greedy:
        """Finds good choices quickly, and remembers its way."""
        return Greedy(self)

    def carried(self, segment: int, base: int) -> float:
        """What the operators that hand a segment's channels on cost with one of its bases."""
        key = segment, base
        if key not in self._carried:
            choice = next(choice for choice in self.choices if choice.segment == segment)
            self._carried[key] = self.prices.carried(self.trace.segments[segment], choice.bases[base])
        return self._carried[key]

    @cached_property
    def rest(self) -> float:
        """What costs the same whatever is chosen, but for layers."""
        return self.prices.rest({choice.segment for choice in self.choices})

    @cached_property
    def tied(self) -> Sequence[tuple[str, ...]]:
        """Names of the consumers that read by one weight, if several do and one of them has a choice."""
        families = (tuple(consumer.name for consumer in family) for family in tied_consumers(self.trace))
        return [names for names in families if len(names) > 1 and any(name in self.readings for name in names)]

    @cached_property
    def readings(self) -> Mapping[str, tuple[Reading, ...]]:
        """The ways of every consumer."""
        return {name: ways for choice in self.choices for name, ways in choice.readings.items()}

    @cached_property
    def segment_of(self) -> Mapping[AxisKey, SegmentChoices]:
        """The choices that decide how much is made on an axis."""
        by_id = {choice.segment: choice for choice in self.choices}
        found: dict[AxisKey, SegmentChoices] = {}
        for segment in self.trace.segments:
            if segment.id in by_id:
                found.update(dict.fromkeys(segment.axes, by_id[segment.id]))
        return found

    @cached_property
    def layers(self) -> Sequence[tuple[WeightUse, str | None, AxisKey | None]]:
        """Every layer and recurrence: a use of its weight, its name if it is a consumer with choices, what it makes."""
        made = {use.node.index: use for use in self.trace.producers}
        layers: dict[str, tuple[WeightUse, str | None, AxisKey | None]] = {}
        for name, consumer in self.trace.consumers.items():
            producer = made.get(consumer.use.node.index)
            axis = producer.tensor_axis if producer is not None else None
            layers[name] = (consumer.use, name if name in self.readings else None, axis)
        for use in made.values():
            layers.setdefault(use.name, (use, None, use.tensor_axis))
        return list(layers.values())

    def widths(self, use: WeightUse, axis: AxisKey | None) -> tuple[int, list[int]]:
        """Channels that a layer makes unpruned, and for each base of the segment that decides."""
        if use.node.index not in self._widths:
            self._widths[use.node.index] = self._found_widths(use, axis)
        return self._widths[use.node.index]

    def _found_widths(self, use: WeightUse, axis: AxisKey | None) -> tuple[int, list[int]]:
        if axis is None or axis not in self.segment_of:
            out = next((name for name in use.node.outputs if name), "")
            shape = self.trace.graph.shape(out) or ()
            place = channel_axis(use.node.op_type, len(shape))
            full = shape[place] if shape and isinstance(shape[place], int) else 1
            return int(full or 1), []
        choice = self.segment_of[axis]
        classes = self.trace.slots.axes[axis]
        local = self._segment(choice).local(classes)
        return int(local.size), [int(base[local].sum()) for base in choice.bases]

    def _segment(self, choice: SegmentChoices) -> Segment:
        return self.trace.segments[choice.segment]

    def reads(self, use: WeightUse) -> int:
        """Channels that a layer without choices reads."""
        consumer = self.trace.consumers.get(use.name)
        if consumer is not None:
            return consumer.channels
        shape = self.trace.graph.shape(use.node.inputs[0]) or ()
        place = channel_axis(use.node.op_type, len(shape))
        return shape[place] if shape and isinstance(shape[place], int) else 1  # type: ignore[return-value]


Priced = list[tuple[cp_model.IntVar, float]]
"""Variables, and what each adds if it is 1."""


class _Model:
    """The program that is being built."""

    def __init__(self, knapsack: Knapsack) -> None:
        self.knapsack = knapsack
        self.model = cp_model.CpModel()
        self._bases: dict[int, list[cp_model.IntVar]] = {}
        self._ways: dict[str, list[tuple[cp_model.IntVar, Reading]]] = {}
        self._whole = 0.0
        self._fixed = 0.0

    def solved(self, budget: float, seconds: float, seed: int) -> Chosen | None:
        """Build and solve."""
        # Variables: for every segment one of its bases, for every consumer one of its ways.
        self._fixed = self.knapsack.rest
        costs: Priced = []
        losses: Priced = []
        for choice in self.knapsack.choices:
            self._add_segment(choice, costs, losses)
        for use, name, axis in self.knapsack.layers:
            self._add_layer(use, name, axis, costs)

        # Constraint: consumers that read by one weight keep the same.
        for family in self.knapsack.tied:
            self._tie(family)

        # Constraint: the cost, relative to that of choosing everything whole.
        whole = self._fixed + self._whole
        unit = _SCALE / max(whole, 1e-30)
        self.model.add(
            sum(round(unit * cost) * variable for variable, cost in costs) <= int(_SCALE * budget - unit * self._fixed)
        )

        # Objective: the loss.
        worst = max((loss for _, loss in losses), default=1.0) or 1.0
        scale = _SCALE / min(max(worst, 1e-9), _MOST_LOSS)
        self.model.minimize(sum(round(scale * min(loss, _MOST_LOSS)) * variable for variable, loss in losses))

        greedy = self.knapsack.greedy
        start = self._best_known(budget)
        if start is not None:
            self._hint(start)
        solver = new_solver(seconds, seed=seed)
        solver.parameters.max_deterministic_time = _EFFORT
        solver.parameters.linearization_level = 2  # the relaxation is tight; clauses learnt from conflicts are no help
        solver.parameters.cp_model_probing_level = 0
        solver.parameters.symmetry_level = 0
        solver.parameters.relative_gap_limit = _GAP
        status = solve(solver, self.model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            state = self._state(solver)
            self.knapsack.found.append(state)
            ways = [ways[state.ways[name]][1] for name, ways in self._ways.items()]
            cost = self._fixed + sum(price * solver.value(variable) for variable, price in costs)
        elif start is not None:  # no time was left to find even that
            ways = [self._ways[name][index][1] for name, index in start.ways.items()]
            cost = greedy.cost(start)
        else:
            return None
        masks = {name: way.mask for name, way in zip(self._ways, ways, strict=True) if not way.mask.all()}
        found = sum(round(scale * min(way.loss, _MOST_LOSS)) for way in ways)
        gap = (found - solver.best_objective_bound) / found if found > 0 else 0.0
        name = "OPTIMAL" if status == cp_model.OPTIMAL else "FEASIBLE"
        return Chosen(masks, found / scale, cost / max(whole, 1e-30), name, min(max(gap, 0.0), 1.0))

    def _best_known(self, budget: float) -> State | None:
        """The best of the greedy choice and of what other searches have found; None if none is within the budget."""
        greedy = self.knapsack.greedy
        first = greedy.choice(budget)
        most = budget * (self._fixed + self._whole)
        fitting = [state for state in self.knapsack.found if greedy.cost(state) <= most]
        known = fitting if first is None else [first, *fitting]
        return min(known, key=self._loss, default=None)

    def _loss(self, state: State) -> float:
        return sum(min(self._ways[name][index][1].loss, _MOST_LOSS) for name, index in state.ways.items())

    def _state(self, solver: cp_model.CpSolver) -> State:
        def chosen(variables: Iterable[cp_model.IntVar]) -> int:
            return next(index for index, variable in enumerate(variables) if solver.boolean_value(variable))

        return State(
            {segment: chosen(bases) for segment, bases in self._bases.items()},
            {name: chosen(variable for variable, _ in ways) for name, ways in self._ways.items()},
        )

    def _add_segment(
        self,
        choice: SegmentChoices,
        costs: Priced,
        losses: Priced,
    ) -> None:
        knapsack = self.knapsack
        bases = [self.model.new_bool_var(f"segment {choice.segment} base {i}") for i in range(len(choice.bases))]
        self._bases[choice.segment] = bases
        self.model.add_exactly_one(bases)
        carried = [knapsack.carried(choice.segment, index) for index in range(len(bases))]
        costs += zip(bases, carried, strict=True)
        self._whole += carried[0]
        for name, ways in choice.readings.items():
            consumer = knapsack.trace.consumers[name]
            variables = [self.model.new_bool_var(f"{name} way {i}") for i in range(len(ways))]
            for index, base in enumerate(bases):
                inside = [v for v, way in zip(variables, ways, strict=True) if way.base == index]
                self.model.add(sum(inside) == base)
            self._ways[name] = list(zip(variables, ways, strict=True))
            for variable, way in self._ways[name]:
                losses.append((variable, way.loss))
                emitted = int(choice.bases[way.base][consumer.slots].sum())
                price = knapsack.prices.selection(consumer, emitted, way.kept)
                if price:
                    costs.append((variable, price))

    def _tie(self, family: Sequence[str]) -> None:
        """Whatever one consumer of a weight keeps, all others keep; one without choices keeps everything."""
        by_mask: dict[str, dict[bytes, list[cp_model.IntVar]]] = {name: defaultdict(list) for name in family}
        for name in family:
            for variable, way in self._ways.get(name, ()):
                by_mask[name][way.mask.tobytes()].append(variable)
        everything = np.ones(self.knapsack.trace.consumers[family[0]].channels, dtype=bool).tobytes()
        for mask in dict.fromkeys(mask for found in by_mask.values() for mask in found):
            first, *others = (sum(found[mask]) if found else int(mask == everything) for found in by_mask.values())
            for other in others:
                self.model.add(first == other)

    def _add_layer(self, use: WeightUse, name: str | None, axis: AxisKey | None, costs: Priced) -> None:
        """Price a layer, by what it reads and makes as far as there is a choice."""
        knapsack, prices = self.knapsack, self.knapsack.prices
        full, made = knapsack.widths(use, axis)
        whole = knapsack.reads(use)
        if name is None and not made:
            self._fixed += prices.layer(use, whole, full)
            return
        self._whole += prices.layer(use, whole, full)
        reads: dict[int, list[cp_model.IntVar]] = defaultdict(list)
        for variable, way in self._ways[name] if name is not None else []:
            reads[way.kept].append(variable)
        columns: dict[int, list[cp_model.IntVar]] = defaultdict(list)
        if made and axis is not None:
            for width, base in zip(made, self._bases[knapsack.segment_of[axis].segment], strict=True):
                columns[width].append(base)
        if not reads:
            costs += [(v, prices.layer(use, whole, width)) for width, group in columns.items() for v in group]
        elif not columns:
            costs += [(v, prices.layer(use, read, full)) for read, group in reads.items() for v in group]
        else:
            self._add_pairs(use, reads, columns, costs)

    def _hint(self, start: State) -> None:
        for segment, chosen in start.bases.items():
            for index, variable in enumerate(self._bases[segment]):
                self.model.add_hint(variable, index == chosen)
        for name, chosen in start.ways.items():
            for index, (variable, _) in enumerate(self._ways[name]):
                self.model.add_hint(variable, index == chosen)

    def _add_pairs(
        self,
        use: WeightUse,
        reads: Mapping[int, list[cp_model.IntVar]],
        makes: Mapping[int, list[cp_model.IntVar]],
        costs: Priced,
    ) -> None:
        pairs = {(r, m): self.model.new_bool_var(f"{use.name} {r} to {m}") for r in reads for m in makes}
        for read, group in reads.items():
            self.model.add(sum(pairs[read, made] for made in makes) == sum(group))
        for made, group in makes.items():
            self.model.add(sum(pairs[read, made] for read in reads) == sum(group))
        costs += [(variable, self.knapsack.prices.layer(use, *widths)) for widths, variable in pairs.items()]
