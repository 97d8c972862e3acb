"""What onnxruntime made of the input and of the emitted model, side by side and segment by segment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.optimised import Finding, OptimisedGraph, read_optimised
from ucpe_onnx.runtime.session import RunOptions

Pair = tuple[tuple[Finding, ...], tuple[Finding, ...]]
"""Findings before and after."""

_REARRANGE = frozenset(("Reshape", "Transpose", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten"))
"""What moves channels in ways that the analysis follows as a whole, without the tensors between."""


@dataclass(frozen=True)
class RuntimeComparison:
    """What onnxruntime made of two models.

    Attributes:
        before: its graph of the input model, None if it can't be read.
        after: its graph of the emitted model, likewise.
        problem: why they can't be read, "" if they can.
    """

    before: OptimisedGraph | None
    after: OptimisedGraph | None
    problem: str = ""

    def by_segment(self) -> dict[int | None, Pair]:
        """The findings of each segment that has any; None holds those that belong to no segment."""
        found: dict[int | None, tuple[list[Finding], list[Finding]]] = defaultdict(lambda: ([], []))
        for place, graph in enumerate((self.before, self.after)):
            for finding in graph.by_weight() if graph is not None else ():
                found[finding.segment][place].append(finding)
        return {segment: (tuple(before), tuple(after)) for segment, (before, after) in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "before": None if self.before is None else self.before.to_dict(),
            "after": None if self.after is None else self.after.to_dict(),
            "problem": self.problem,
        }


def compare_in_runtime(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    options: RunOptions,
    shapes: Mapping[str, tuple[int, ...]],
    traced: Trace,
) -> RuntimeComparison:
    """Have onnxruntime optimise the input and the emitted model, and compare what it made of them.

    Args:
        before: the input model.
        after: the emitted model.
        options: how onnxruntime runs both.
        shapes: the input shapes to count bytes for, by input name.
        traced: the analysis of the input model; findings are attributed to its segments.

    Returns:
        The comparison. Providers that compile graphs can't save theirs; then it says so.
    """
    try:
        old, new = (read_optimised(model, options, shapes) for model in (before, after))
    except ModelError as error:
        return RuntimeComparison(None, None, str(error))
    return RuntimeComparison(attributed(old, traced), attributed(new, traced))


def attributed(graph: OptimisedGraph, traced: Trace) -> OptimisedGraph:
    """The same findings, each with the segment of the tensor that it is about.

    A tensor that only the emitted model has is called after the input model's tensor that it is a part of.
    """
    segments = _segments_of_tensors(traced)
    found = (replace(finding, segment=_segment(finding.tensor, segments, traced)) for finding in graph.findings)
    return replace(graph, findings=tuple(found))


def _segments_of_tensors(traced: Trace) -> dict[str, int]:
    """The segment of each tensor; of several, the one of its channels."""
    found: dict[str, tuple[tuple[bool, bool, int], int]] = {}
    for segment in traced.segments:
        for tensor, axis in segment.axes:
            rank = (bool(segment.consumers or segment.producers), axis == 1, axis)
            if isinstance(tensor, str) and (tensor not in found or found[tensor][0] < rank):
                found[tensor] = (rank, segment.id)
    return {tensor: segment for tensor, (_, segment) in found.items()}


def _segment(tensor: str, segments: Mapping[str, int], traced: Trace) -> int | None:
    """The segment of a tensor, of the one that it is called after, or of the one above that was only rearranged."""
    ends = (end for end in range(len(tensor) - 1, 0, -1) if not tensor[end].isalnum())
    known = (tensor, *(tensor[:end] for end in ends))
    found: int | None = next((segments[name] for name in known if name in segments), None)
    maker = traced.graph.makers.get(tensor)
    while found is None and maker is not None and maker.op_type in _REARRANGE:
        found = segments.get(maker.inputs[0])
        maker = traced.graph.makers.get(maker.inputs[0])
    return found
