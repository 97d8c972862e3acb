"""What a pass is: a frozen value with a name, one method, and an account of what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import onnx

from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.plan import Plan

_SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class Emission:
    """What the passes apply: a trace, a plan, and the layouts that follow from both.

    Attributes:
        trace: the analysed model.
        plan: the decisions.
    """

    trace: Trace
    plan: Plan

    @cached_property
    def layouts(self) -> Mapping[AxisKey, IntArray]:
        """Original positions in emitted order, for every axis that does not stay as it is."""
        changed: dict[AxisKey, IntArray] = {}
        for segment, decided in zip(self.trace.segments, self.plan.segments, strict=True):
            if decided.order == tuple(range(len(segment.classes))):
                continue
            for axis, layout in segment_layouts(self.trace, segment, decided.order).items():
                if not np.array_equal(layout, np.arange(self.trace.slots.axes[axis].size)):
                    changed[axis] = layout
        return changed

    def layout(self, axis: AxisKey) -> IntArray:
        """Original positions of a traced axis in emitted order."""
        layout = self.layouts.get(axis)
        return np.arange(self.trace.slots.axes[axis].size) if layout is None else layout


@dataclass(frozen=True)
class PassResult:
    """What a pass did, and what it left alone.

    Attributes:
        changed: names of the nodes, initializers and values that it changed, added or removed.
        skipped: why it left others as they are that it could have changed, by name.
    """

    changed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """What follows on the pass's name in a sentence."""
        left = [f"{name} ({reason})" for name, reason in self.skipped.items()]
        return f"changed {_first(self.changed) or 'nothing'}" + (f" and left {_first(left)}" if left else "")


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


class Pass(Protocol):
    """One step of the rewrite. Implementations are frozen dataclasses; their fields are their options.

    Attributes:
        name: short name of the class, by which ``--verify-each`` and ``--dump-after`` know it.
    """

    name: ClassVar[str]

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Change the draft in place."""


Observer: TypeAlias = Callable[[Pass, Mapping[str, PassResult], onnx.ModelProto], None]
"""Called with each pass that has run, what it and those before it did by their names, and the draft."""


def run_passes(
    draft: onnx.ModelProto, passes: Sequence[Pass], observe: Observer | None = None
) -> dict[str, PassResult]:
    """Run passes in order.

    Args:
        draft: the model, changed in place.
        passes: what to run.
        observe: called after each pass.

    Returns:
        What each did, by its name.
    """
    results: dict[str, PassResult] = {}
    for step in passes:
        results[step.name] = step.run(draft)
        if observe is not None:
            observe(step, results, draft)
    return results
