"""How sensitive the outputs are to the loss of channels, segment by segment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.budget.sensitivity import SensitivityPoint, sensitivity
from ucpe_onnx.report.html_text import escape, listed
from ucpe_onnx.report.sections.section import Section

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome

_MOST_SENSITIVE = 5
"""Segments that the summary names."""

_SUMMARISED = 0.25
"""The ratio, of those that were looked at the nearest to it, that the summary tells of."""

_ROWS = 200
_SHARP = 0.1
"""An error above this share of the output's variance is marked."""


@dataclass(frozen=True)
class Sensitivity(Section):
    """What the outputs do if the consumers of one segment alone drop channels.

    Attributes:
        points: one for each segment and ratio.
    """

    points: tuple[SensitivityPoint, ...]

    absent: ClassVar = {"sensitivity": []}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Sensitivity | None:
        """The points, if they were asked for."""
        if not run.options.sensitivity:
            return None
        known, probing = run.fitted_and_probing
        statistics = run.statistics_on(known)
        with run.stages("sensitivity"):
            points = sensitivity(
                run.source.model,
                run.traced,
                statistics,
                probing,
                options=run.options.run_options(),
                progress=lambda share: run.stages.tell("sensitivity", share),
            )
        return cls(points)

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {"sensitivity": [point.to_dict() for point in self.points]}

    def lines(self, report: Report) -> Iterator[str]:
        """The segments to which the outputs are most sensitive."""
        if not self.points:
            return
        ratio = min((point.ratio for point in self.points), key=lambda ratio: abs(ratio - _SUMMARISED))
        points = sorted((p for p in self.points if p.ratio == ratio), key=lambda p: -p.error)
        yield f"most sensitive, error of the outputs with {ratio:.0%} of a segment's channels gone:"
        for point in points[:_MOST_SENSITIVE]:
            yield f"  segment {point.segment}, read by {listed(point.consumers)}: {point.error:.3g}"

    def html(self, report: Report) -> str:
        """A row for each segment, a column for each ratio; "" if there is no segment to look at."""
        if not self.points:
            return ""
        ratios = sorted({point.ratio for point in self.points})
        rows: dict[int, dict[float, SensitivityPoint]] = defaultdict(dict)
        for point in self.points:
            rows[point.segment][point.ratio] = point
        head = "".join(f'<th class="n">{ratio:.1%} gone</th>' for ratio in ratios)
        body = "".join(
            f"<tr><td>{segment}</td><td>{escape(_names(found))}</td>"
            + "".join(_cell(found.get(ratio)) for ratio in ratios)
            + "</tr>"
            for segment, found in list(rows.items())[:_ROWS]
        )
        more = f'<p class="dim small">and {len(rows) - _ROWS} more</p>' if len(rows) > _ROWS else ""
        return (
            "<h2>Sensitivity</h2><p>Error of the outputs, over their variance, if the consumers of one segment alone"
            " drop the channels that these are least sensitive to and are refitted; points of accuracy in brackets"
            ' where labels are known.</p><div class="card"><table><thead><tr><th>segment</th><th>read by</th>'
            f"{head}</tr></thead>{body}</table></div>{more}"
        )


def _names(found: dict[float, SensitivityPoint]) -> str:
    names = next(iter(found.values())).consumers
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cell(point: SensitivityPoint | None) -> str:
    if point is None:
        return '<td class="n dim">–</td>'
    lost = "" if point.accuracy_lost is None else f" ({-100 * point.accuracy_lost:+.1f})"
    css = " bad" if point.error > _SHARP else ""
    return f'<td class="n{css}">{point.error:.3g}{lost}</td>'
