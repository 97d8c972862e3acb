"""What onnxruntime made of two models, in words."""

from __future__ import annotations

from collections import Counter

from ucpe_onnx.report.html_text import plural
from ucpe_onnx.runtime.optimised import KINDS, OptimisedGraph
from ucpe_onnx.runtime.optimised_pair import Pair, RuntimeComparison


def in_words(runtime: RuntimeComparison) -> str:
    """One line: where convolutions run, and what stands between them, before and after."""
    if runtime.before is None or runtime.after is None:
        return f"onnxruntime's optimised graph can't be looked at: {runtime.problem}"
    pair = [tuple(f for f in graph.findings if f.kind != "outside") for graph in (runtime.before, runtime.after)]
    between = ", ".join(counts_in_words((pair[0], pair[1]))) or "nothing reordered or copied"
    return f"in onnxruntime: {'; '.join((*_layouts(runtime.before, runtime.after), between))}"


def counts_in_words(pair: Pair) -> list[str]:
    """Numbers of findings by kind as ``3 reorders (2 before)``, without the kinds that occur on neither side."""
    before, after = (Counter(finding.kind for finding in findings) for findings in pair)
    words = (_change(after[kind], before[kind], KINDS[kind][after[kind] != 1]) for kind in KINDS)
    return [word for word in words if word]


def _layouts(before: OptimisedGraph, after: OptimisedGraph) -> list[str]:
    """Where convolutions run, if there are any."""
    outside = _change(len(after.of("outside")), len(before.of("outside")), "outside")
    blocked = f"{plural(after.blocked, 'convolution')} blocked" if after.block and after.blocked + after.plain else ""
    plain = f"{plural(after.plain, 'convolution')} in the plain layout" if after.plain and not after.block else ""
    quantised = f"{plural(after.quantised, 'convolution')} in int8" if after.quantised else ""
    words = ", ".join(filter(None, (quantised, blocked, outside, plain)))
    return [words] if words else []


def _change(new: int, old: int, noun: str) -> str:
    """``3 reorders (2 before)``; "" where there are none, and never were."""
    if not new and not old:
        return ""
    return f"{new:,} {noun}" + (f" ({old:,} before)" if old != new else "")
