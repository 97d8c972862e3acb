"""Layouts that were timed: what had been predicted, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.report.html_text import escape
from ucpe_onnx.report.sections.section import Section

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome, Rival
    from ucpe_onnx.run.tuning import TuningStep


@dataclass(frozen=True)
class Layouts(Section):
    """How the same masks were laid out otherwise, and how long that took.

    Attributes:
        rivals: other layouts of the whole model that were timed beside the output.
        tuning: other layouts of single segments that were timed to choose lowerings.
    """

    rivals: tuple[Rival, ...] = ()
    tuning: tuple[TuningStep, ...] = ()

    absent: ClassVar = {"rivals": [], "tuning": []}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Layouts | None:
        """The layouts that were timed, if any were."""
        return None if outcome.latency is None else cls(outcome.rivals, outcome.candidate.tuning)

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {
            "rivals": [rival.to_dict() for rival in self.rivals],
            "tuning": [step.to_dict() for step in self.tuning],
        }

    def lines(self, report: Report) -> Iterator[str]:
        """The layout that was taken, and how much longer the others took."""
        told = [
            f"{_signed(rival.measured_us)} with {rival.name} (predicted {_signed(rival.predicted_us)})"
            for rival in self.rivals
        ]
        yield f"layout: {report.layout}" + (f"; {', '.join(told)}" if told else "")

    def html(self, report: Report) -> str:
        """Predictions against measurements; "" if nothing but the output was timed."""
        if not self.rivals and not self.tuning:
            return ""
        head = '<thead><tr><th>layout</th><th class="n">predicted</th><th class="n">measured</th></tr></thead>'
        rows = "".join(_row(rival.name, rival.predicted_us, f"{rival.measured_us:+,.0f}") for rival in self.rivals)
        whole = f'<div class="card"><table>{head}{rows}</table></div>' if rows else ""
        return (
            "<h2>Layouts that were timed</h2>"
            f"<p>The output is laid out by <b>{escape(report.layout)}</b>. How many microseconds longer the same masks"
            f" take in other layouts, as it was predicted and as it was measured:</p>{whole}{_tuning(self.tuning)}"
        )


def _signed(us: float) -> str:
    return f"{us / 1e3:+.2f} ms" if abs(us) >= 1e3 else f"{us:+.0f} us"


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
