"""What was left alone, since it could not be verified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.report.html_text import escape, plural
from ucpe_onnx.report.sections.section import Section

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import LeftAlone, Outcome

_LISTED = 5
"""Segments of which the summary tells; the page and the JSON account list all."""

_NAMED = 3
"""Layers of a segment that are named; the JSON account names all."""

_ROWS = 200

_PLEASE = (
    "this is a defect of ucpe-onnx: please report it, with the operators around these layers; or raise --rtol/--atol if"
    " a difference of that size is harmless"
)


@dataclass(frozen=True)
class Unverified(Section):
    """Segments and layouts with which the emitted model was wrong, and which are therefore not in it.

    Attributes:
        alone: segments that are as they were in the input.
        refused: what was said of other layouts for the same masks, by their names.
    """

    alone: tuple[LeftAlone, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    absent: ClassVar = {"left_alone": [], "refused_layouts": {}}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Unverified | None:
        """What was left alone, if anything was."""
        trial = outcome.trial
        return cls(trial.alone, trial.refused) if trial.alone or trial.refused else None

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {"left_alone": [each.to_dict() for each in self.alone], "refused_layouts": dict(self.refused)}

    def lines(self, report: Report) -> Iterator[str]:
        """Each segment by the names of its layers, and why."""
        for each in self.alone[:_LISTED]:
            yield f"left alone: segment {each.segment}, {_layers(each)}: {each.reason}"
        if len(self.alone) > _LISTED:
            yield f"left alone: {plural(len(self.alone) - _LISTED, 'more segment')}, see --report or --json"
        for name, reason in self.refused.items():
            yield f"layout {name} was left out: {reason}"
        yield _PLEASE

    def html(self, report: Report) -> str:
        """The same as a table."""
        rows = [
            f'<tr><td><a href="#segment-{each.segment}">{each.segment}</a></td><td class="mono">{escape(_layers(each))}'
            f"</td><td>{escape(each.reason)}</td></tr>"
            for each in self.alone[:_ROWS]
        ]
        rows += [
            f"<tr><td></td><td>layout {escape(name)}</td><td>{escape(reason)}</td></tr>"
            for name, reason in self.refused.items()
        ]
        head = "<thead><tr><th>segment</th><th>layers</th><th>what was found</th></tr></thead>"
        return (
            "<h2>Left alone</h2><p>With these the emitted model did not compute what the masked model computes, or"
            f" could not be loaded, so that they are not in the output; {_PLEASE}.</p>"
            f'<div class="card"><table>{head}{"".join(rows)}</table></div>'
        )


def _layers(each: LeftAlone) -> str:
    return f"made by {_some(each.producers)}, read by {_some(each.consumers)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) or "no layer") + more
