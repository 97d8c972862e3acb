"""How a budget was met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.budget.search import BudgetOutcome
from ucpe_onnx.report.html_text import sentence
from ucpe_onnx.report.sections.section import Section

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome

UNITS = {"latency": "latency", "macs": "multiply-accumulates", "params": "parameters"}


@dataclass(frozen=True)
class Budget(Section):
    """What was asked for, and what came of it.

    Attributes:
        outcome: of the search.
    """

    outcome: BudgetOutcome

    absent: ClassVar = {"budget": None}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Budget | None:
        """The budget, if there was one."""
        found = outcome.candidate.budget
        return None if found is None else cls(found)

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {"budget": self.outcome.to_dict()}

    def lines(self, report: Report) -> Iterator[str]:
        """What was asked for, and what came of it."""
        yield self.in_words()

    def in_words(self) -> str:
        """One line."""
        met = self.outcome
        missed = " (not met: nothing nearer was found)" if met.missed else ""
        judges = f"{met.held_out:,} samples" if met.held_out else "samples"
        lost = "" if met.points_lost is None else f", {met.points_lost:.1f} points lost on {judges} held out"
        return (
            f"target {met.target:.3g} of the input's {UNITS[met.kind]}: {met.reached:.3f} reached{missed} in"
            f" {len(met.looks)} {'look' if len(met.looks) == 1 else 'looks'}{lost}"
        )

    def html(self, report: Report) -> str:
        """The same, with every look of the search."""
        met = self.outcome
        head = '<thead><tr><th class="n">predicted budget</th><th class="n">what it came to</th></tr></thead>'
        rows = "".join(
            f'<tr><td class="n">{asked:.3f}</td><td class="n">{got:.3f}</td></tr>' for asked, got in met.looks
        )
        return (
            f"<h2>Budget</h2><p>{sentence(self.in_words())}. Predicted error of the outputs"
            f" {met.loss:.3g} of their variance; no choice is predicted to make more than {met.gap:.1%} less.</p>"
            f'<div class="card"><table>{head}{rows}</table></div>'
        )
