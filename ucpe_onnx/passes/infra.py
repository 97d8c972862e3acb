"""What a pass is: a frozen value with a name, one method, and an account of what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx

from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.plan import Plan


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
    """What a pass did.

    Attributes:
        changes: number of nodes, initializers or values that it changed.
    """

    changes: int


class Pass(Protocol):
    """One step of the rewrite. Implementations are frozen dataclasses; their fields are their options."""

    @property
    def name(self) -> str:
        """Short name, as ``--verify-each`` and logs show it."""

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Change the draft in place."""


def run_passes(
    draft: onnx.ModelProto, passes: Sequence[Pass], observe: Callable[[Pass, onnx.ModelProto], None] | None = None
) -> dict[str, PassResult]:
    """Run passes in order.

    Args:
        draft: the model, changed in place.
        passes: what to run.
        observe: called after each pass with the pass and the draft.

    Returns:
        What each did, by its name.
    """
    results = {}
    for step in passes:
        results[step.name] = step.run(draft)
        if observe is not None:
            observe(step, draft)
    return results
