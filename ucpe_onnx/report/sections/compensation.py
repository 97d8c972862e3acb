"""What compensation did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.compensation.stage import CompensationOutcome
from ucpe_onnx.report.html_text import escape, plural, sentence
from ucpe_onnx.report.sections.section import Section

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome

_LISTED = 3
"""Layers that were left alone of which the summary tells; the page lists more."""

_ROWS = 200


@dataclass(frozen=True)
class Compensation(Section):
    """How near the outputs came to the original's, and what was done to each layer.

    Attributes:
        outcome: of the stage.
    """

    outcome: CompensationOutcome

    absent: ClassVar = {"compensation": None}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Compensation | None:
        """What compensation did, if there was any."""
        return None if outcome.compensation is None else cls(outcome.compensation)

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {"compensation": self.outcome.to_dict()}

    def lines(self, report: Report) -> Iterator[str]:
        """Errors before and after, and what could not be done."""
        done = self.outcome
        if done.taken and done.plain is not None and done.compensated is not None:
            yield (
                f"compensated: {plural(len(done.layers), 'layer')} refitted to {plural(done.samples, 'sample')},"
                f" error of the outputs {done.plain:.3g} -> {done.compensated:.3g} of their variance"
            )
        if done.note:
            yield done.note
        for name, reason in list((done.left or {}).items())[:_LISTED]:
            yield f"  {name} was not refitted: {reason}"

    def html(self, report: Report) -> str:
        """The same, layer by layer."""
        done = self.outcome
        text = sentence(done.note)
        if done.plain is not None and done.compensated is not None:
            text = (
                f"Error of the outputs on {plural(done.samples, 'sample')}, over their variance: {done.plain:.3g} with"
                f" zeros alone, {done.compensated:.3g} with refitted weights. {text}"
            )
        head = (
            '<thead><tr><th>layer</th><th class="n">ridge</th><th class="n">error before</th>'
            '<th class="n">error after</th></tr></thead>'
        )
        rows = "".join(
            f'<tr><td class="mono">{escape(layer.name)}</td><td class="n">{_ridge(layer.ridge)}</td>'
            f'<td class="n">{layer.before:.3g}</td><td class="n">{layer.after:.3g}</td></tr>'
            for layer in done.layers[:_ROWS]
        )
        left = "".join(
            f'<tr><td class="mono">{escape(name)}</td><td colspan="3">{escape(reason)}</td></tr>'
            for name, reason in list((done.left or {}).items())[:_ROWS]
        )
        summary = f"{plural(len(done.layers), 'layer')}, each on samples that were held out"
        table = f"<details><summary>{summary}</summary><table>{head}{rows}{left}</table></details>"
        card = f'<div class="card">{table}</div>' if rows or left else ""
        return f"<h2>Compensation</h2><p>{text}</p>{card}"


def _ridge(ridge: float | None) -> str:
    return "weights stay" if ridge is None else f"{ridge:g}"
