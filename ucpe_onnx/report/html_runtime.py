"""What onnxruntime made of both models, in the HTML report: as a whole, and for one segment."""

from __future__ import annotations

from collections.abc import Sequence

from ucpe_onnx.report.html_text import escape, name, plural, signed, size
from ucpe_onnx.report.runtime_words import counts_in_words
from ucpe_onnx.runtime.optimised import KINDS, Finding, OptimisedGraph
from ucpe_onnx.runtime.optimised_pair import Pair, RuntimeComparison

_LISTED = 40
"""Most findings of a kind that are listed."""

_LISTED_IN_SEGMENT = 12
"""Likewise of a segment."""


def render_runtime(runtime: RuntimeComparison) -> str:
    """Whether the emitted model runs as it was planned to."""
    title = "<h2>In onnxruntime's optimised graph</h2>"
    before, after = runtime.before, runtime.after
    if before is None or after is None:
        return f'{title}<p class="card">It can\'t be looked at: {escape(runtime.problem)}</p>'
    head = (
        '<thead><tr><th></th><th class="n">before</th><th class="n">after</th><th class="n">change</th>'
        '<th class="n">moved in one run</th></tr></thead>'
    )
    rows = "".join((*_layouts(before, after), *(_kind(kind, before, after) for kind in KINDS)))
    return (
        f"{title}<p>What both models become when onnxruntime loads them: {_explanation(after)}</p>"
        f'<div class="card"><table>{head}{rows}</table>{"".join(_names(kind, after) for kind in KINDS)}</div>'
    )


def segment_runtime(found: Pair) -> str:
    """What onnxruntime reorders, copies or could not fuse in one segment, a line that unfolds; "" if nothing."""
    words = ", ".join(counts_in_words(found))
    if not words:
        return ""
    title = f"<b>In onnxruntime:</b> {words}"
    if not (after := found[1]):
        return f'<p class="small">{title}</p>'
    listing = _listing(after, _LISTED_IN_SEGMENT, linked=False)
    return f'<details class="small"><summary>{title}</summary>{listing}</details>'


def _explanation(graph: OptimisedGraph) -> str:
    if not graph.block:
        return "this session has no layout of channel blocks, so that no convolution can be outside of it."
    return (
        f"convolutions are fast in the layout of blocks of {graph.block} channels (NCHWc); around those outside of it,"
        " and around copies, tensors are reordered."
    )


def _layouts(before: OptimisedGraph, after: OptimisedGraph) -> list[str]:
    """How many convolutions run in which layout, without those where none ever did."""
    counts = [("convolutions in blocks", before.blocked, after.blocked)]
    if not after.block:
        counts = [("convolutions in the plain layout", before.plain, after.plain)]
    counts.append(("convolutions in int8", before.quantised, after.quantised))
    return [_row(label, old, new) for label, old, new in counts if old or new]


def _kind(kind: str, before: OptimisedGraph, after: OptimisedGraph) -> str:
    old, new = len(before.of(kind)), len(after.of(kind))
    if not old and not new and kind not in ("reorder", "copy", "outside"):
        return ""
    if kind == "outside" and not after.block:
        return ""
    return _row(KINDS[kind][1], old, new, _moved(kind, before, after) if kind in ("reorder", "copy") else "")


def _moved(kind: str, before: OptimisedGraph, after: OptimisedGraph) -> str:
    """What the findings of a kind write in one run of each model."""
    written = (before.bytes(kind), after.bytes(kind))
    most = max(value or 0 for value in written)
    return " → ".join("unknown" if value is None else size(value, most) for value in written) if most else ""


def _row(label: str, old: int, new: int, moved: str = "") -> str:
    numbers = (f"{old:,}", f"{new:,}", signed(f"{new - old:+,}") if new != old else "", moved)
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    return f'<tr><td class="words">{label}</td>{cells}</tr>'


def _names(kind: str, graph: OptimisedGraph) -> str:
    """The findings of a kind in the emitted model, to unfold."""
    found = graph.of(kind)
    if not found:
        return ""
    one, several = KINDS[kind]
    title = f"{len(found):,} {one if len(found) == 1 else several}"
    return f'<details class="small"><summary>{title}</summary>{_listing(found, _LISTED)}</details>'


def _listing(found: Sequence[Finding], limit: int, *, linked: bool = True) -> str:
    rows = "".join(
        f'<tr><td class="words">{escape(f.op)}</td><td>{name(f.name, 70)}</td><td>{escape(f.why)}</td>'
        f'<td class="n">{"" if f.bytes is None else size(f.bytes)}</td>'
        f'<td class="words">{_link(f) if linked else ""}</td></tr>'
        for f in found[:limit]
    )
    rest = len(found) - limit
    more = f'<p class="dim">and {plural(rest, "more node")}: see <code>--json</code>.</p>' if rest > 0 else ""
    return f"<table>{rows}</table>{more}"


def _link(finding: Finding) -> str:
    """Where the segment is, if that is known."""
    return "" if finding.segment is None else f'<a href="#segment-{finding.segment}">#{finding.segment}</a>'
