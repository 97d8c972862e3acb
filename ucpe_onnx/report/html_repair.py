"""How a budget was met and what compensation did, in the HTML report."""

from __future__ import annotations

from ucpe_onnx.report.budget import in_words
from ucpe_onnx.report.html_text import escape, plural
from ucpe_onnx.report.report import Report

_ROWS = 200


def render_budget(report: Report) -> str:
    """The section on the budget; "" if there was none."""
    budget = report.budget
    if budget is None:
        return ""
    head = '<thead><tr><th class="n">predicted budget</th><th class="n">what it came to</th></tr></thead>'
    rows = "".join(
        f'<tr><td class="n">{asked:.3f}</td><td class="n">{got:.3f}</td></tr>' for asked, got in budget.looks
    )
    return (
        f"<h2>Budget</h2><p>{_sentence(in_words(budget))}. Predicted error of the outputs"
        f" {budget.loss:.3g} of their variance; no choice is predicted to make more than {budget.gap:.1%} less.</p>"
        f'<div class="card"><table>{head}{rows}</table></div>'
    )


def render_repair(report: Report) -> str:
    """The section on compensation; "" if there was none."""
    repair = report.repair
    if repair is None:
        return ""
    text = _sentence(repair.note)
    if repair.plain is not None and repair.repaired is not None:
        text = (
            f"Error of the outputs on {plural(repair.samples, 'sample')}, over their variance: {repair.plain:.3g} with"
            f" zeros alone, {repair.repaired:.3g} with refitted weights. {text}"
        )
    head = (
        '<thead><tr><th>layer</th><th class="n">ridge</th><th class="n">error before</th><th class="n">error after</th>'
        "</tr></thead>"
    )
    rows = "".join(
        f'<tr><td class="mono">{escape(layer.name)}</td><td class="n">{_ridge(layer.ridge)}</td>'
        f'<td class="n">{layer.before:.3g}</td><td class="n">{layer.after:.3g}</td></tr>'
        for layer in repair.layers[:_ROWS]
    )
    left = "".join(
        f'<tr><td class="mono">{escape(name)}</td><td colspan="3">{escape(reason)}</td></tr>'
        for name, reason in list((repair.left or {}).items())[:_ROWS]
    )
    summary = f"{plural(len(repair.layers), 'layer')}, each on samples that were held out"
    table = f"<details><summary>{summary}</summary><table>{head}{rows}{left}</table></details>"
    card = f'<div class="card">{table}</div>' if rows or left else ""
    return f"<h2>Compensation</h2><p>{text}</p>{card}"


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:])


def _ridge(ridge: float | None) -> str:
    return "weights stay" if ridge is None else f"{ridge:g}"
