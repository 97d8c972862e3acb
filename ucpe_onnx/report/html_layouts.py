"""Layouts that were timed, in the HTML report."""

from __future__ import annotations

from ucpe_onnx.report.html_text import escape
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.tuning import TuningStep


def render_layouts(report: Report) -> str:
    """The section that holds predictions against measurements; "" if nothing but the output was timed."""
    if not report.rivals and not report.tuning:
        return ""
    head = '<thead><tr><th>layout</th><th class="n">predicted</th><th class="n">measured</th></tr></thead>'
    rows = "".join(_row(rival.name, rival.predicted_us, f"{rival.measured_us:+,.0f}") for rival in report.rivals)
    whole = f'<div class="card"><table>{head}{rows}</table></div>' if rows else ""
    return (
        "<h2>Layouts that were timed</h2>"
        f"<p>The output is laid out by <b>{escape(report.layout)}</b>. How many microseconds longer the same masks take"
        f" in other layouts, as it was predicted and as it was measured:</p>{whole}{_tuning(report.tuning)}"
    )


def _row(name: str, predicted: float, measured: str) -> str:
    return f'<tr><td>{escape(name)}</td><td class="n">{predicted:+,.0f}</td><td class="n">{measured}</td></tr>'


def _tuning(steps: tuple[TuningStep, ...]) -> str:
    if not steps:
        return ""
    head = (
        '<thead><tr><th>segment and alternative</th><th class="n">predicted</th>'
        '<th class="n">measured (95 % interval)</th></tr></thead>'
    )
    rows = "".join(
        _row(
            f"{step.segment}: {step.lowering}{', taken' if step.taken else ''}",
            step.predicted_us,
            f"{step.measured_us:+,.0f} ({step.low:+,.0f} to {step.high:+,.0f})",
        )
        for step in steps
    )
    return f'<div class="card"><table>{head}{rows}</table></div>'
