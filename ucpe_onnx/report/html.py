"""The account of a run as one HTML page: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePath

from ucpe_onnx.plan import Plan
from ucpe_onnx.report.html_segments import render_frozen, render_segments
from ucpe_onnx.report.html_style import STYLE
from ucpe_onnx.report.html_text import change, count, escape, milliseconds, plural, seconds, sentence, signed, size
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.sections import ABOUT_LAYOUT, ABOUT_MASKS, Section, Warnings
from ucpe_onnx.report.svg import interval

_MODES = {
    "unconstrained": "every layer keeps the channels that it needs",
    "constrained": "all layers that read a channel keep it, or none",
    "masks": "masks were given",
    "plan": "a plan was given",
}

_ROWS = 200
"""Most rows of a table whose length is the user's."""


def render_html(report: Report, plan: Plan) -> str:
    """Render a run as a self-contained page, for people who decide whether to deploy the model.

    Args:
        report: the account of the run.
        plan: the decisions that the account is about.

    Returns:
        The page. All names in it are escaped, and it stays below about 2 MB whatever the model.
    """
    body = "".join(
        (
            _header(report),
            _speed(report),
            *_sections(report, (Warnings,)),
            _cards(report),
            _numbers(report),
            *_sections(report, ABOUT_LAYOUT),
            render_frozen(report),
            render_segments(report, plan),
            *_sections(report, ABOUT_MASKS),
            _checks(report),
            _footer(report, plan),
        )
    )
    # Nothing here runs scripts or loads anything; the policy makes sure of it, whatever a model's names contain.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(PurePath(report.source).name)}: pruned</title><style>\n{STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _sections(report: Report, kinds: tuple[type[Section], ...]) -> Iterator[str]:
    for kind in kinds:
        found = report.section(kind)
        if found is not None:
            yield found.html(report)


def _header(report: Report) -> str:
    mode = _MODES.get(report.mode, "")
    return (
        f"<h1>{escape(PurePath(report.source).name or report.source)}</h1>"
        f'<p class="dim">{report.kept:.0%} of the channels that layers read are kept; {escape(report.mode)}'
        f"{f' ({mode})' if mode else ''}</p>"
    )


def _speed(report: Report) -> str:
    """The first thing that anybody wants to know."""
    speed, latency = report.speed, report.latency
    if speed is None or latency is None:
        return '<div class="card speed"><div><h3>Latency</h3><div class="big dim">not measured</div></div></div>'
    if latency.busy:
        return (
            '<div class="card speed"><div><h3>Latency in onnxruntime</h3>'
            '<div class="big warn">busy: undecided</div></div>'
            f'<p class="small">{sentence(latency.busy)}. Measure again when the machine is idle, or for longer'
            " (<code>--bench-seconds</code>).</p></div>"
        )
    if report.faster:
        css, word = "good", "faster"
    elif speed.low > 1.0:
        css, word = "bad", "slower"
    else:
        css, word = "warn", "no proven difference"
    factor = "" if speed.undecided else f": {1 / speed.ratio:.2f} times as fast"
    advice = '<p class="small">The command writes it only with <code>--allow-slower</code>.</p>'
    advice = "" if report.faster else advice
    return (
        f'<div class="card speed"><div><h3>Latency in onnxruntime</h3><div class="big {css}">×{speed.ratio:.3f}</div>'
        f'<div><b class="{css}">{word}</b>{factor}</div>'
        f'<div class="dim">{milliseconds(latency["input"].median_ms)} → {milliseconds(speed.median_ms)}</div>'
        f'{advice}</div><div class="{css}">{interval(speed.ratio, speed.low, speed.high, css)}'
        f'<p class="dim small">Ratio of medians with its 95 % interval; {latency.rounds:,} interleaved rounds in one'
        f" process{_threads(report)}. Left of the dashed line is faster.</p></div></div>"
    )


def _threads(report: Report) -> str:
    return f", {plural(report.threads, 'thread')} within an operator" if report.threads else ""


def _cards(report: Report) -> str:
    return f'<div class="cards">{_smaller(report)}{_verified(report)}{_accuracy(report)}{_copies(report)}</div>'


def _card(title: str, css: str, big: str, *lines: str) -> str:
    text = "".join(f'<div class="small dim">{line}</div>' for line in lines if line)
    return f'<div class="card"><h3>{title}</h3><div class="big {css}">{big}</div>{text}</div>'


def _smaller(report: Report) -> str:
    before, after = report.before, report.after
    macs = change(before.macs, after.macs)
    return _card(
        "File size",
        "good" if after.bytes < before.bytes else "warn",
        change(before.bytes, after.bytes) or "unknown",
        f"{size(before.bytes)} → {size(after.bytes, before.bytes)}",
        f"parameters {change(before.parameters, after.parameters) or 'unknown'}",
        f"multiply-adds {macs or 'unknown'}",
    )


def _verified(report: Report) -> str:
    found = report.verification
    worst = found.worst.worst
    return _card(
        "Outputs as intended",
        "good" if found.passed else "bad",
        "verified" if found.passed else "failed",
        f"equal to the masked model: {plural(len(found.outputs), 'output')} on {plural(found.feeds, 'feed')}",
        escape(worst.problem) if worst.problem else f"largest difference {worst.error:.1e}",
        "" if worst.problem else f"allowed {worst.bound:.1e}",
    )


def _accuracy(report: Report) -> str:
    if report.accuracy is None:
        return _card("Top-1 accuracy", "dim", "not measured", "needs <code>--data</code> with labels")
    before, after = report.accuracy["before"], report.accuracy["after"]
    points = (after - before) * 100
    css = "good" if points > -1 else "warn" if points > -5 else "bad"  # colours only: what is bearable is the user's
    return _card(
        "Top-1 accuracy",
        css,
        f"{after:.1%}",
        f"was {before:.1%}",
        f'<span class="{css}">{signed(f"{points:+.1f}")} points</span>',
        "on the labelled samples",
    )


def _copies(report: Report) -> str:
    added = report.copies_added()
    total = sum(added.values())
    listed = ", ".join(f"{signed(f'{number:+d}')} {escape(op)}" for op, number in added.items())
    before, after = sum(report.before.copies.values()), sum(report.after.copies.values())
    return _card(
        "Memory copies added",
        "warn" if total > 0 else "good",
        signed(f"{total:+d}") if total else "none",
        listed,
        f"{before:,} before, {after:,} after",
        "nodes that only select or move channels",
    )


def _numbers(report: Report) -> str:
    before, after = report.before, report.after
    rows = [
        ("parameters", count(before.parameters), count(after.parameters), change(before.parameters, after.parameters)),
        ("multiply-adds, one run", count(before.macs), count(after.macs), change(before.macs, after.macs)),
        ("file size", size(before.bytes), size(after.bytes, before.bytes), change(before.bytes, after.bytes)),
        ("nodes", f"{before.nodes:,}", f"{after.nodes:,}", signed(f"{after.nodes - before.nodes:+,}")),
    ]
    if report.latency is not None and not report.latency.busy:
        old, new = report.latency["input"], report.latency["output"]
        for label, a, b in (
            ("median latency", old.median_ms, new.median_ms),
            ("90th percentile", old.p90_ms, new.p90_ms),
            ("99th percentile", old.p99_ms, new.p99_ms),
        ):
            rows.append((label, milliseconds(a), milliseconds(b), change(a, b)))
    cells = "".join(
        f'<tr><td>{label}</td><td class="n">{old}</td><td class="n">{new}</td><td class="n">{difference}</td></tr>'
        for label, old, new, difference in rows
    )
    head = '<thead><tr><th></th><th class="n">before</th><th class="n">after</th><th class="n">change</th></tr></thead>'
    return f'<h2>In numbers</h2><div class="card"><table>{head}{cells}</table></div>'


def _checks(report: Report) -> str:
    """Every output's difference; the card above shows the worst alone."""
    rows = "".join(
        f"<tr><td><code>{escape(check.name)}</code></td><td>{'passed' if check.worst.passed else 'failed'}</td>"
        f'<td class="n">{check.worst.error:.1e}</td><td class="n">{check.worst.bound:.1e}</td>'
        f'<td class="n">{check.feed}</td><td>{escape(check.worst.problem)}</td></tr>'
        for check in report.verification.outputs[:_ROWS]
    )
    head = (
        '<thead><tr><th>output</th><th></th><th class="n">difference</th><th class="n">allowed</th>'
        '<th class="n">feed</th><th></th></tr></thead>'
    )
    return (
        "<h2>Verification</h2><p>Largest difference between the emitted model and the masked model, which is the input"
        f' with zeros for the weights of dropped channels.</p><div class="card"><table>{head}{rows}</table></div>'
    )


def _footer(report: Report, plan: Plan) -> str:
    options = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td><code>{escape(_plain(value))}</code></td></tr>"
        for key, value in list(plan.options.items())[:_ROWS]
    )
    stages = ", ".join(f"{escape(stage)} {seconds(taken)}" for stage, taken in report.seconds.items())
    return (
        f'<footer><h2>Options and versions</h2><div class="card"><table>'
        f"<tr><td>input</td><td><code>{escape(report.source)}</code></td></tr>"
        f"<tr><td>sha256 of the input</td><td><code>{escape(plan.source_sha256 or 'unknown')}</code></td></tr>"
        f"<tr><td>made by</td><td>ucpe-onnx {escape(plan.tool_version)}</td></tr>"
        f"<tr><td>time taken</td><td>{stages or 'unknown'}</td></tr></table>"
        f"<details><summary>{plural(len(plan.options), 'option')}</summary><table>{options}</table></details>"
        "</div></footer>"
    )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
