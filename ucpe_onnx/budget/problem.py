"""What a budget chooses from: losses of the output, prices of the kind of budget, and what the user allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ucpe_onnx.analysis.layer_ops import BLOCKED
from ucpe_onnx.analysis.structure import Consumer, Segment
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.budget.choices import ChoiceLimits, choices_for
from ucpe_onnx.budget.knapsack import Knapsack
from ucpe_onnx.budget.losses import Losses
from ucpe_onnx.budget.prices import Prices, Time, Work
from ucpe_onnx.errors import UsageError
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.rates import Rates
from ucpe_onnx.planning.rounding import Rounding
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.selection.select import matches

_STEPS = 16
"""Of a segment's width, without a runtime that likes some widths better: a sixteenth of it each."""

_LEAST_LEFT = 0.05
"""A budget leaves a consumer at least this share of its channels."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One model's choices, whatever the budget.

    Attributes:
        label: what to call the model in messages.
        traced: its analysis.
        losses: what dropping channels costs its outputs.
        target: what it is laid out for.
        rates: how fast the target's kernels are.
        mode: ``auto``, ``unconstrained`` or ``constrained``.
        ignore: patterns of consumers that keep everything.
        ratio_for: (pattern, ratio) pairs: the most that some consumers may lose; the last match counts.
        max_ratio: the most that the others may lose; None for nearly all.
    """

    label: str
    traced: Trace
    losses: Losses
    target: Target
    rates: Rates
    mode: str
    ignore: tuple[str, ...] = ()
    ratio_for: tuple[tuple[str, float], ...] = ()
    max_ratio: float | None = None
    _knapsacks: dict[str, Knapsack] = field(default_factory=dict, repr=False)

    def knapsack(self, kind: str) -> Knapsack:
        """The choices with their losses and prices.

        Args:
            kind: of budget: ``latency``, ``macs`` or ``params``.

        Raises:
            UsageError: there is nothing to choose from.
        """
        if kind not in self._knapsacks:
            self._knapsacks[kind] = self._made(kind)
        return self._knapsacks[kind]

    def _made(self, kind: str) -> Knapsack:
        multiple = self._multiple if kind == "latency" else self._step
        choices = choices_for(self.traced, self.losses, ChoiceLimits(self.mode, self._most, multiple, self._reading))
        if not any(len(choice.bases) > 1 or _selects(choice.readings) for choice in choices):
            raise UsageError(
                f"{self.label}: there is nothing to choose from, since no layer may lose enough channels;"
                " `python -m ucpe_onnx.inspect MODEL` tells which are frozen, and why"
            )
        return Knapsack(self.traced, choices, self._prices(kind))

    def _prices(self, kind: str) -> Prices:
        if kind != "latency":
            return Work(self.traced, parameters=kind == "params")
        return Time(
            Costs(self.traced, self.target, self.rates, lambda axis: int(self.traced.slots.axes[axis].size), {})
        )

    def _most(self, name: str) -> float:
        """The largest share of a consumer's channels that may go."""
        if any(matches(name, pattern) for pattern in self.ignore):
            return 0.0
        most = 1 - _LEAST_LEFT if self.max_ratio is None else self.max_ratio
        return next((ratio for pattern, ratio in reversed(self.ratio_for) if matches(name, pattern)), most)

    def _multiple(self, segment: Segment) -> int:
        """Widths that a whole number of blocks of channels has cost as much as any up to them; in slots."""
        target = self.target
        if not (target.blocked or target.aligned):
            return _sixteenth(segment)
        rounding = Rounding.of(self.traced, segment, target)
        multiple = rounding.slots(max(rounding.multiple, target.block if target.blocked else 1))
        return multiple if len(segment.classes) >= 2 * multiple else 1

    def _step(self, segment: Segment) -> int:
        """A sixteenth of the width, as a multiple that nothing has to be rounded up to."""
        rounds = self.target.blocked or self.target.aligned
        rounded = Rounding.of(self.traced, segment, self.target).slots(self.target.read_multiple) if rounds else 1
        return int(np.ceil(_sixteenth(segment) / rounded)) * rounded if len(segment.classes) >= 2 * rounded else 1

    def _reading(self, consumer: Consumer) -> int:
        rounded = consumer.use.node.op_type in BLOCKED and (self.target.blocked or self.target.aligned)
        return self.target.read_multiple if rounded else 1


def _selects(readings: Mapping[str, tuple[object, ...]]) -> bool:
    return any(len(ways) > 1 for ways in readings.values())


def _sixteenth(segment: Segment) -> int:
    return int(max(1, np.ceil(len(segment.classes) / _STEPS)))
