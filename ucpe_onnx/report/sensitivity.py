"""How much the network minds the loss of channels, as data and as a section of the HTML report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ucpe_onnx.report.html_text import escape

_ROWS = 200
_SHARP = 0.1
"""An error above this share of the output's variance is marked."""


@dataclass(frozen=True)
class SensitivityPoint:
    """What the outputs do if one segment's consumers drop channels.

    Attributes:
        segment: number of the segment.
        consumers: names of the consumers that drop channels.
        ratio: share of its channels that each of them drops.
        error: of the outputs, over their variance.
        accuracy_lost: top-1 accuracy that is lost, as a share; None without labels.
    """

    segment: int
    consumers: tuple[str, ...]
    ratio: float
    error: float
    accuracy_lost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        error = self.error if math.isfinite(self.error) else None
        return {**vars(self), "consumers": list(self.consumers), "error": error}


def render_sensitivity(points: Sequence[SensitivityPoint]) -> str:
    """The section of the report: a row for each segment, a column for each ratio; "" if nothing was looked at."""
    if not points:
        return ""
    ratios = sorted({point.ratio for point in points})
    rows: dict[int, dict[float, SensitivityPoint]] = defaultdict(dict)
    for point in points:
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
        "<h2>Sensitivity</h2><p>Error of the outputs, over their variance, if the consumers of one segment alone drop"
        " what they mind least and are refitted; points of accuracy in brackets where labels are known.</p>"
        f'<div class="card"><table><thead><tr><th>segment</th><th>read by</th>{head}</tr></thead>{body}</table></div>'
        f"{more}"
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
