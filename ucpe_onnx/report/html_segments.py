"""Segments in the HTML report: how many channels went, who reads which of them, and why the others stayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ucpe_onnx.lowerings import LOWERINGS
from ucpe_onnx.plan import ConsumerPlan, Plan, SegmentPlan
from ucpe_onnx.report.html_runtime import segment_runtime
from ucpe_onnx.report.html_text import change, escape, name, names, plural, seconds
from ucpe_onnx.report.report import Report, SegmentReport
from ucpe_onnx.report.svg import IntArray, runs_of, strip
from ucpe_onnx.runtime.optimised_pair import Pair

PICTURE_BYTES = 1_100_000
"""What all pictures of consumers may weigh; a page must open at once, and travel by mail."""

SEGMENT_BYTES = 600_000
"""What the rest of the segments may weigh."""

_OPEN_ROWS = 48
"""Segments with several consumers are shown open until so many rows are."""

_ROWS = 80
"""Most consumers drawn in one segment."""

_LINES = 40
"""Longer lists of segments that nobody shares are folded."""

_REASONS = 12
"""Reasons shown at once; the rest unfold."""

_UNSEEN, _SKIPPED, _ZERO, _KEPT = range(4)

_PARTS = {
    True: ("blocks", "that are tensors of their own"),
    False: ("groups", "whose places are fixed, as operands of a Concat are"),
}
"""What the blocks of a segment are, by whether it is split."""


def render_segments(report: Report, plan: Plan) -> str:
    """The sections of all segments: those that several consumers share, then the others."""
    decided = {segment.id: segment for segment in plan.segments}
    found = {} if report.runtime is None else report.runtime.by_segment()
    listed = _Lister(decided, plan.consumers, found, _Bytes(PICTURE_BYTES), _Bytes(SEGMENT_BYTES))
    shared = [s for s in report.segments if len(s.consumers) > 1]
    single = [s for s in report.segments if len(s.consumers) <= 1]
    text = ""
    if shared:
        title = f"<h2>Channels that several layers read</h2>{_introduction(shared)}"
        text += f"{title}{_legend(report)}{listed(shared, _OPEN_ROWS)}"
    if single:
        items = listed(single)
        if len(single) > _LINES:
            items = f"<details><summary>Show {plural(len(single), 'segment')}</summary>{items}</details>"
        title = "Other channels" if shared else "Channels"
        text += f"<h2>{title}</h2>{_removed(single)}{'' if shared else _legend(report)}{items}"
    return text


def render_frozen(report: Report) -> str:
    """The section that answers "why is this not pruned": every kind of reason with the segments that it holds for."""
    title = "<h2>Why is this not pruned?</h2>"
    reasons, segments = _kinds(report)
    if not reasons:
        return f'{title}<p class="card">Nothing is frozen: every channel could be pruned.</p>'
    stuck = Counter(dict.fromkeys(reasons, 0))
    for segment in report.segments:
        for reason, count in segment.frozen_by.items() if segment.frozen else ():
            stuck[_kind(reason)] += count
    rows = [
        f'<tr><td>{_reason(reasons[kind])}</td><td>{_links(segments[kind])}</td><td class="n">{stuck[kind]:,}</td></tr>'
        for kind in sorted(stuck, key=lambda kind: -stuck[kind])
    ]
    head = '<thead><tr><th>reason</th><th>segments</th><th class="n">channels that it freezes first</th></tr></thead>'
    text = f"<table>{head}{''.join(rows[:_REASONS])}</table>"
    if rest := rows[_REASONS : 10 * _REASONS]:
        more = plural(len(rows) - _REASONS, "more reason")
        text += f"<details><summary>{more}</summary><table>{''.join(rest)}</table></details>"
    return (
        f"{title}<p>{plural(sum(s.frozen for s in report.segments), 'channel')} of"
        f" {sum(s.slots for s in report.segments):,} had to stay, and to stay in place.</p>"
        f'<div class="card">{text}</div>'
    )


def _kinds(report: Report) -> tuple[dict[str, list[str]], dict[str, list[SegmentReport]]]:
    """Reasons and segments by kind: what is alike but for the node at which it happens."""
    reasons: dict[str, list[str]] = {}
    segments: dict[str, list[SegmentReport]] = {}
    for segment in report.segments:
        for reason in segment.reasons if segment.frozen else ():
            kind = _kind(reason)
            reasons.setdefault(kind, []).append(reason)
            found = segments.setdefault(kind, [])
            if segment not in found[-1:]:
                found.append(segment)
    return reasons, segments


def _kind(reason: str) -> str:
    return reason.partition(" at ")[0]


def _reason(alike: list[str]) -> str:
    """One reason, or several that differ only in the node."""
    kind = _kind(alike[0])
    places = dict.fromkeys(reason.removeprefix(kind).removeprefix(" at ") for reason in alike)
    if len(places) == 1:
        return escape(alike[0])
    return f"<details><summary>{escape(kind)}, at {len(places):,} nodes</summary>{names(places)}</details>"


class _Bytes:
    """Bytes that something may still take.

    After three times as many have been asked for it gives up, as what is refused takes time to make, too.
    """

    def __init__(self, total: int) -> None:
        self._left, self._patience = total, 3 * total

    @property
    def spent(self) -> bool:
        """Whether asking is no use any more."""
        return self._patience <= 0

    def take(self, text: str) -> bool:
        """Whether the text fits; then it counts."""
        weight = len(text.encode())
        self._patience -= weight
        fits = weight <= self._left
        self._left -= weight if fits else 0
        return fits


@dataclass(frozen=True)
class _Lister:
    """Writes lists of segments, as long as there is room on the page."""

    decided: Mapping[int, SegmentPlan]
    consumers: Mapping[str, ConsumerPlan]
    found: Mapping[int | None, Pair]
    pictures: _Bytes
    texts: _Bytes

    def __call__(self, segments: list[SegmentReport], opened: int = 0) -> str:
        """A list, its first segments open until so many rows are."""
        items: list[str] = []
        for segment in segments:
            telling = any(kind not in LOWERINGS or not LOWERINGS[kind].everything_kept for kind in segment.lowerings)
            opened -= len(segment.consumers) if telling else 0
            head, tail = _segment(segment, self.decided[segment.id], opened=telling and opened >= 0)
            tail = f"{segment_runtime(self.found.get(segment.id, ((), ())))}{tail}"
            if self.texts.spent or not self.texts.take(head + tail):
                break
            items.append(f"{head}{self._picture(segment)}{tail}")
        if left_out := len(segments) - len(items):
            items.append(f'<p class="dim">{plural(left_out, "more segment")}: see <code>--json</code>.</p>')
        return f'<div class="card segments">{"".join(items)}</div>'

    def _picture(self, segment: SegmentReport) -> str:
        if not self.pictures.spent:
            picture = _picture(segment, self.decided[segment.id], self.consumers)
            if self.pictures.take(picture):
                return picture
        return '<p class="dim small">Not drawn, to keep this page small; see <code>--save-plan</code>.</p>'


def _introduction(shared: list[SegmentReport]) -> str:
    ordered = [s for s in shared if s.frozen < s.slots]
    solved = sum(s.status == "OPTIMAL" for s in ordered)
    text = f"{_removed(shared)}<p>Columns are the channels in the order in which they are emitted, rows their readers."
    if ordered:
        text += f" {solved:,} of {plural(len(ordered), 'order')} proven optimal."
    return text + "</p>"


def _removed(segments: list[SegmentReport]) -> str:
    before, after = sum(s.slots for s in segments), sum(s.emitted for s in segments)
    return (
        f"<p>{plural(len(segments), 'segment')}, {plural(before, 'channel')} before, {after:,} emitted"
        f" ({change(before, after) if after < before else 'none removed'}).</p>"
    )


def _legend(report: Report) -> str:
    fills = (("kept", "kept"), ("zero", "read with zero weights"), ("empty", "not read"))
    bars = (("emit", "emitted"), ("freeze", "frozen"), ("empty", "removed"))

    def keys(entries: Iterable[tuple[str, str]]) -> str:
        return "".join(
            f'<span><span class="key" style="background:var(--{css})"></span>{text}</span>' for css, text in entries
        )

    used = {kind for segment in report.segments for kind in segment.lowerings}
    tags = "".join(f"<span>{_tag(kind)} {x.meaning}</span>" for kind, x in LOWERINGS.items() if kind in used)
    return (
        f'<div class="legend"><b>bars</b>{keys(bars)}<b>rows</b>{keys(fills)}'
        f'<span>blank: not its input</span></div><div class="legend">{tags}</div>'
    )


def _segment(segment: SegmentReport, decided: SegmentPlan, *, opened: bool) -> tuple[str, str]:
    """One segment, a line that unfolds: what comes before and after its picture."""
    title = (
        name(segment.producers[0], 34) if segment.producers else f'<span class="dim small">{_origin(segment)}</span>'
    )
    if len(segment.producers) > 1:
        title += f' <span class="dim small">+{len(segment.producers) - 1}</span>'
    layers = (("emit", [(0, segment.emitted)]), ("freeze", [(0, segment.frozen)] if segment.frozen else []))
    label = f"{segment.slots} channels, {segment.emitted} emitted, {segment.frozen} frozen"
    tags = "".join(_tag(kind, number) for kind, number in segment.lowerings.items())
    removed = change(segment.slots, segment.emitted) if segment.emitted != segment.slots else ""
    head = (
        f'<details class="segment" id="segment-{segment.id}"{" open" if opened else ""}><summary>'
        f'<span class="dim small">#{segment.id}</span><span class="name">{title}</span>'
        f'{strip("bar", segment.slots, layers, label)}<span class="num">{segment.slots:,} → {segment.emitted:,}</span>'
        f'<span class="num dim small">{removed}</span><span class="tags">{tags}</span></summary>'
        '<div class="body">'
    )
    return head, f"{_facts(segment, decided)}</div></details>"


def _origin(segment: SegmentReport) -> str:
    """Where channels come from that no layer with a constant weight makes."""
    return "graph input" if any(r.startswith("graph input") for r in segment.reasons) else "no layer that can be pruned"


def _facts(segment: SegmentReport, decided: SegmentPlan) -> str:
    lines = []
    if segment.frozen:
        reasons = "; ".join(map(escape, segment.reasons[:5])) or "unknown"
        more = f"; {len(segment.reasons) - 5} more" if len(segment.reasons) > 5 else ""
        lines.append(f"<b>{plural(segment.frozen, 'frozen channel')}:</b> {reasons}{more}")
    if segment.emitted == segment.slots > segment.frozen:
        others = "what one reader drops another keeps, or the" if len(segment.consumers) > 1 else "the"
        lines.append(f"<b>Nothing removed:</b> {others} width that runs well is the whole width.")
    if segment.objective > 0:
        proven = segment.objective <= segment.bound
        least = "no other with these lowerings takes less" if proven else f"none takes less than {segment.bound:,.0f}"
        lines.append(
            f"<b>Predicted:</b> {segment.objective:,.0f} &micro;s for the layers that make, carry and read these"
            f" channels; {least} ({escape(segment.status)}, {seconds(decided.seconds)})"
        )
    if len(decided.blocks) > 1:
        parts, meaning = _PARTS[decided.split]
        lines.append(f"<b>{len(decided.blocks)} {parts}</b> {meaning}.")
    lines.append(f"<b>Made by:</b> {names(segment.producers, 12) if segment.producers else _origin(segment)}")
    return "".join(f'<p class="small">{line}</p>' for line in lines)


def _picture(segment: SegmentReport, decided: SegmentPlan, consumers: Mapping[str, ConsumerPlan]) -> str:
    """The consumers of a segment over its slots in emitted order."""
    if not segment.consumers:
        return '<p class="dim small">No layer with a constant weight reads these channels.</p>'
    rows = [
        _row(reader, decided.lowerings.get(reader, ""), consumers[reader], np.asarray(decided.order, dtype=np.int64))
        for reader in segment.consumers[:_ROWS]
    ]
    if hidden := len(segment.consumers) - _ROWS:
        rows += [f'<span class="wide dim small">and {plural(hidden, "more reader")}</span>'] if hidden > 0 else []
    return f'<div class="rows">{_block_row(decided)}{"".join(rows)}</div>'


def _block_row(decided: SegmentPlan) -> str:
    """Where one block or fixed group ends and the next begins, if there are several."""
    if len(decided.blocks) < 2:
        return ""
    parts, _ = _PARTS[decided.split]
    parity = np.repeat(np.arange(len(decided.blocks)) % 2, [len(block) for block in decided.blocks])
    layers = (("even", runs_of(parity, 0)), ("odd", runs_of(parity, 1)))
    picture = strip("blocks", parity.size, layers, f"{len(decided.blocks)} {parts}")
    return f'<span class="who dim small">{parts}</span><span></span>{picture}<span></span>'


def _row(reader: str, kind: str, consumer: ConsumerPlan, order: IntArray) -> str:
    layers = tuple(
        (css, runs_of(_states(consumer, order), state))
        for css, state in (("skip", _SKIPPED), ("zero", _ZERO), ("kept", _KEPT))
    )
    kept, zero = len(consumer.keep), len(set(consumer.read) - set(consumer.keep))
    numbers = f"{kept:,} of {consumer.channels:,}" + (f" + {zero:,} zero" if zero else "")
    label = f"{kept} of {consumer.channels} channels kept, {zero} more read with zero weights"
    return (
        f'<span class="who">{name(reader, 36)}</span>{_tag(kind)}{strip("strip", order.size, layers, label)}'
        f'<span class="num small">{numbers}</span>'
    )


def _states(consumer: ConsumerPlan, order: IntArray) -> IntArray:
    """What a consumer does with each emitted slot, shape (emitted,).

    A slot that it sees several times (a flattened image) is kept if it is kept anywhere.
    """
    slots = np.asarray(consumer.slots, dtype=np.int64)
    place = np.full(max(slots.max(initial=-1), order.max(initial=-1)) + 1, -1, dtype=np.int64)
    place[order] = np.arange(order.size)
    states = np.full(order.size, _UNSEEN, dtype=np.int64)
    everything = np.arange(slots.size)
    for channels, state in ((everything, _SKIPPED), (consumer.read, _ZERO), (consumer.keep, _KEPT)):
        places = place[slots[np.asarray(channels, dtype=np.int64)]]
        states[places[places >= 0]] = state
    return states


def _tag(kind: str, number: int = 1) -> str:
    css = kind if kind in LOWERINGS else "other"
    times = f"{number} " if number > 1 else ""
    return f'<span class="tag {css}">{times}{escape(kind or "unknown")}</span>'


def _links(segments: list[SegmentReport]) -> str:
    shown = ", ".join(f'<a href="#segment-{s.id}">{s.id}</a>' for s in segments[:12])
    return shown + (f" and {len(segments) - 12:,} more" if len(segments) > 12 else "")
