"""Pictures of the HTML report, as inline SVG.

Strips stretch: their drawing units are channels, and the browser scales them to the width there is. What carries text
is placed by percentages instead, so that letters keep their shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_CRISP = 300
"""Up to so many columns edges are sharp; beyond, columns are narrower than pixels and their mean tone is the truth."""


def strip(css: str, columns: int, layers: Iterable[tuple[str, Sequence[tuple[int, int]]]], label: str) -> str:
    """A horizontal strip of columns, on which layers of runs are drawn one over another.

    Args:
        css: class of the picture.
        columns: number of columns.
        layers: (class, runs) of each layer; a run is (first column, columns).
        label: what the picture shows, for those who can't see it; escaped already.
    """
    drawn = "".join(f'<path class="{kind}" d="{_path(runs)}"/>' for kind, runs in layers if runs)
    rendering = ' shape-rendering="crispEdges"' if columns <= _CRISP else ""
    return (
        f'<svg class="{css}" viewBox="0 0 {max(columns, 1)} 1" preserveAspectRatio="none" role="img"'
        f' aria-label="{label}"{rendering}>{drawn}</svg>'
    )


def runs_of(states: IntArray, state: int) -> list[tuple[int, int]]:
    """Runs of equal columns: (first column, columns) wherever ``states``, shape (columns,), has this value."""
    edges = np.flatnonzero(np.diff((states == state).astype(np.int8), prepend=0, append=0))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]


def interval(ratio: float, low: float, high: float, verdict: str) -> str:
    """A ratio with its interval on an axis, against the line at 1.0.

    Args:
        ratio: the estimate.
        low: lower end of its interval.
        high: upper end.
        verdict: class that colours the interval.
    """
    left, right = min(low, ratio, 1.0), max(high, ratio, 1.0)
    pad = max(0.15 * (right - left), 0.01)
    left, right = max(0.0, left - pad), right + pad

    def at(value: float) -> str:
        return f"{(value - left) / (right - left) * 100:.2f}%"

    ticks = "".join(
        f'<line class="tick" x1="{at(t)}" x2="{at(t)}" y1="62" y2="67"/>'
        f'<text class="tick" x="{at(t)}" y="81" text-anchor="middle">{t:g}</text>'
        for t in _ticks(left, right)
    )
    return (
        f'<svg class="interval {verdict}" height="88" role="img"'
        f' aria-label="latency ratio {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}">'
        f'<rect class="fast" x="0" y="20" width="{at(1.0)}" height="42"/>'
        f'<line class="axis" x1="0" x2="100%" y1="62" y2="62"/>{ticks}'
        f'<line class="one" x1="{at(1.0)}" x2="{at(1.0)}" y1="16" y2="62"/>'
        f'<text x="{at(1.0)}" y="11" text-anchor="{_anchor(1.0, left, right)}">input = 1.0</text>'
        f'<line class="range" x1="{at(low)}" x2="{at(high)}" y1="33" y2="33"/>'
        f'<line class="end" x1="{at(low)}" x2="{at(low)}" y1="26" y2="40"/>'
        f'<line class="end" x1="{at(high)}" x2="{at(high)}" y1="26" y2="40"/>'
        f'<circle cx="{at(ratio)}" cy="33" r="4.5"/>'
        f'<text class="value" x="{at(ratio)}" y="56" text-anchor="{_anchor(ratio, left, right)}">'
        f"{ratio:.3f} ({low:.3f} to {high:.3f})</text></svg>"
    )


def _path(runs: Sequence[tuple[int, int]]) -> str:
    """One stroke along the middle of the strip, relative moves: about six characters per run."""
    parts: list[str] = []
    place = 0
    for start, length in runs:
        parts.append(f"m{start - place} 0h{length}" if parts else f"M{start} .5h{length}")
        place = start + length
    return "".join(parts)


def _anchor(value: float, left: float, right: float) -> str:
    """Where a label hangs on its place so that it stays inside the picture."""
    share = (value - left) / (right - left)
    return "start" if share < 0.15 else "end" if share > 0.85 else "middle"


def _ticks(left: float, right: float) -> list[float]:
    """Four to eight round numbers inside a range, away from its ends, where labels would be cut."""
    rough = (right - left) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    margin = 0.03 * (right - left)
    first, last = math.ceil((left + margin) / step), math.floor((right - margin) / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
