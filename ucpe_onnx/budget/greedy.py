"""A good choice quickly: always the step that costs least loss for what it saves. CP-SAT starts from it.

A step is for one consumer or segment, so those that a weight ties to others stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import WeightUse
from ucpe_onnx.budget.choices import Reading, SegmentChoices

if TYPE_CHECKING:
    from ucpe_onnx.budget.knapsack import Knapsack

_LEAST = 1e-12
"""Loss of a step that has none: then what it saves decides."""


@dataclass
class State:
    """A choice while it is being made.

    Attributes:
        bases: for each segment the number of its base.
        ways: for each consumer the number of its way.
    """

    bases: dict[int, int] = field(default_factory=dict)
    ways: dict[str, int] = field(default_factory=dict)


@dataclass
class Greedy:
    """Goes from the unpruned model to the budget, step by step."""

    knapsack: Knapsack
    _layer_costs: dict[tuple[str, int, int], float] = field(default_factory=dict)
    _path: list[tuple[float, State]] = field(default_factory=list)
    _over: bool = False

    def choice(self, budget: float) -> State | None:
        """A choice whose cost is at most this share of the unpruned model's; None if steps don't lead there.

        The way is the same for all budgets, and remembered.

        Args:
            budget: share of the unpruned model's cost.
        """
        if not self._path:
            start = self._start()
            self._path.append((self.cost(start), start))
        most = budget * self._path[0][0]
        while self._path[-1][0] > most and not self._over:
            cost, state = self._path[-1]
            best = min(self._steps(state), key=lambda step: step[0], default=None)
            if best is None:
                self._over = True
            else:
                self._path.append((cost - best[1], best[2]))
        return next((state for cost, state in self._path if cost <= most), None)

    def _start(self) -> State:
        """Everything whole."""
        state = State()
        for choice in self.knapsack.choices:
            state.bases[choice.segment] = 0
            state.ways.update({name: _first(ways, 0) for name, ways in choice.readings.items()})
        return state

    def cost(self, state: State) -> float:
        """What a choice costs, in the units of the prices."""
        return self._cost(state, None)

    def _steps(self, state: State) -> Iterator[tuple[float, float, State]]:
        """For each possible step its loss over what it saves, what it saves, and where it leads."""
        for choice in self.knapsack.choices:
            if choice.segment in self._tied:
                continue
            before = self._cost(state, choice)
            for new in self._moves(choice, state):
                saved = before - self._cost(new, choice)
                if saved > 0:
                    yield (self._loss(choice, new) - self._loss(choice, state) + _LEAST) / saved, saved, new

    @cached_property
    def _tied(self) -> frozenset[int]:
        """The segments that have a consumer which reads by the weight of another."""
        consumers = self.knapsack.trace.consumers
        return frozenset(consumers[name].segment for family in self.knapsack.tied for name in family)

    @staticmethod
    def _moves(choice: SegmentChoices, state: State) -> Iterator[State]:
        """The next smaller base, with what consumers drop kept as it is where possible; or one consumer drops more."""
        base = state.bases[choice.segment]
        if base + 1 < len(choice.bases):
            fewer = {
                n: _first(options, base + 1, options[state.ways[n]].kept) for n, options in choice.readings.items()
            }
            yield State({**state.bases, choice.segment: base + 1}, {**state.ways, **fewer})
        for name, ways in choice.readings.items():
            now = state.ways[name]
            if now + 1 < len(ways) and ways[now + 1].base == base:
                yield State(state.bases, {**state.ways, name: now + 1})

    @staticmethod
    def _loss(choice: SegmentChoices, state: State) -> float:
        return sum(ways[state.ways[name]].loss for name, ways in choice.readings.items())

    def _cost(self, state: State, around: SegmentChoices | None) -> float:
        """What all layers cost, or those around one segment."""
        knapsack, total = self.knapsack, self.knapsack.rest if around is None else 0.0
        for choice in knapsack.choices if around is None else [around]:
            base = choice.bases[state.bases[choice.segment]]
            total += knapsack.carried(choice.segment, state.bases[choice.segment])
            for name, ways in choice.readings.items():
                consumer, kept = knapsack.trace.consumers[name], ways[state.ways[name]].kept
                total += knapsack.prices.selection(consumer, int(base[consumer.slots].sum()), kept)
        layers = knapsack.layers if around is None else self._layers_around[around.segment]
        return total + sum(self._layer(state, *layer) for layer in layers)

    def _layer(self, state: State, use: WeightUse, name: str | None, axis: AxisKey | None) -> float:
        knapsack = self.knapsack
        full, made = knapsack.widths(use, axis)
        read = knapsack.reads(use) if name is None else knapsack.readings[name][state.ways[name]].kept
        width = made[state.bases[knapsack.segment_of[axis].segment]] if made and axis is not None else full
        key = use.name, read, width
        if key not in self._layer_costs:
            self._layer_costs[key] = knapsack.prices.layer(use, read, width)
        return self._layer_costs[key]

    @cached_property
    def _layers_around(self) -> Mapping[int, list[tuple[WeightUse, str | None, AxisKey | None]]]:
        """For each segment the layers that read or make its channels."""
        found: dict[int, list[tuple[WeightUse, str | None, AxisKey | None]]] = {
            choice.segment: [] for choice in self.knapsack.choices
        }
        for use, name, axis in self.knapsack.layers:
            touched = {self.knapsack.trace.consumers[name].segment} if name is not None else set()
            if axis is not None and axis in self.knapsack.segment_of:
                touched.add(self.knapsack.segment_of[axis].segment)
            for segment in touched:
                found[segment].append((use, name, axis))
        return found


def _first(ways: tuple[Reading, ...], base: int, most: int | None = None) -> int:
    """The first way with a base, of those that keep at most so many channels if there are such."""
    fitting = [index for index, way in enumerate(ways) if way.base == base]
    return next((index for index in fitting if most is None or ways[index].kept <= most), fitting[-1])
