"""Accuracy against what is left, as SVG: one chart for each network and section, one line for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.accuracy_table import FLOOR, FLOOR_UNPRUNED, PROTOTYPE

Row = Mapping[str, Any]
Point = tuple[float, float]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 300, 52, 14, 34, 44
LINE = 16
"""Height of a line of the legend."""
COLOURS = ("#2563a8", "#c2571a", "#3a8a4d", "#8a4fa8", "#b03a5b", "#2a9a9a", "#a08a20", "#6a4a2a", "#d070a0", "#80b030")
GREY = "#777777"
"""Of the prototype."""
DEEPEST = 0.30
"""Charts end so much below the highest accuracy: lines that fall to chance would leave nothing to see of the others."""
AXES = {"macs": "multiply-accumulates left, %", "latency": "latency over the unpruned network's, %"}
"""Horizontal axis by section; the rows hold it under the section's name."""


def picture(rows: Sequence[Row]) -> str:
    """All charts side by side, sections below one another, and a legend; an empty picture without rows."""
    usable = [row for row in rows if row["section"] in AXES and _placed(row)]
    methods = list(dict.fromkeys(row["method"] for row in usable))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}
    if any((row["model"], row["target"]) in FLOOR for row in usable if row["section"] == "macs"):
        colours[PROTOTYPE] = GREY
    drawn, across, down = [], 1, 0
    for section, axis in AXES.items():
        of_section = [row for row in usable if row["section"] == section]
        models = list(dict.fromkeys(row["model"] for row in of_section))
        for i, model in enumerate(models):
            chart = chart_of(f"{model}: top-1, %", axis, lines(of_section, model), colours)
            drawn.append(f'<g transform="translate({i * WIDTH} {down * HEIGHT})">{chart}</g>')
        across, down = max(across, len(models)), down + bool(models)
    return with_legend(drawn, across, down, colours)


def with_legend(drawn: Sequence[str], across: int, down: int, colours: Mapping[str, str]) -> str:
    """The whole picture: charts in so many columns and rows, and what each colour stands for."""
    width, height = across * WIDTH, down * HEIGHT + LINE * len(colours) + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}'
        f"{_legend(colours, down * HEIGHT)}</svg>\n"
    )


def lines(rows: Sequence[Row], model: str) -> dict[str, list[Point]]:
    """Points (what is left, accuracy) of every method, with the unpruned network at (1, its accuracy)."""
    of_model = [row for row in rows if row["model"] == model and _placed(row)]
    found: dict[str, list[Point]] = {}
    for row in of_model:
        found.setdefault(row["method"], [(1.0, row["unpruned"])]).append((row[row["section"]], row["top1"]))
    floor = [(1 - removed, top1) for (name, removed), top1 in FLOOR.items() if name == model]
    if floor and of_model[0]["section"] == "macs":
        found[PROTOTYPE] = [(1.0, FLOOR_UNPRUNED[model]), *floor]
    return {name: sorted(points) for name, points in found.items()}


def _placed(row: Row) -> bool:
    """Whether a row has a place in a chart."""
    return "top1" in row and row["section"] in row


def chart_of(
    title: str,
    axis: str,
    found: Mapping[str, Sequence[Point]],
    colours: Mapping[str, str],
    deepest: float = DEEPEST,
) -> str:
    """A chart of lines, cut off so much below the highest point; both axes are shares, shown in percent."""
    points = [point for line in found.values() for point in line]
    left, right = min(x for x, _ in points) - 0.01, 1.01
    top = max(y for _, y in points)
    bottom = max(min(y for _, y in points), top - deepest)
    low, high = bottom - 0.05 * (top - bottom + 0.01), top + 0.05 * (top - bottom + 0.01)

    def at(x: float, y: float) -> Point:
        share = (x - left) / (right - left), (y - low) / (high - low)
        return LEFT + share[0] * (WIDTH - RIGHT - LEFT), HEIGHT - BOTTOM - share[1] * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<text x="{LEFT}" y="18">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axis)}</text>',
    ]
    for y in _ticks(low, high):
        _, place = at(right, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{100 * y:.4g}</text>'
        )
    for x in _ticks(left, right):
        place, _ = at(x, low)
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{100 * x:.4g}</text>')
    # What is within a picture is cut at its border; the first method is drawn last, over the others.
    box = f"{LEFT - 4} {TOP - 4} {WIDTH - RIGHT - LEFT + 8} {HEIGHT - BOTTOM - TOP + 4}"
    x, y, width, height = box.split()
    parts.append(f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">')
    for name, line in reversed(found.items()):
        places = [at(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" fill="{colours[name]}"/>' for x, y in places)
        dashes = ' stroke-dasharray="4 3"' if name == PROTOTYPE else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.8"{dashes}/>{dots}'
        )
    return "".join(parts) + "</svg>"


def _legend(colours: Mapping[str, str], top: int) -> str:
    return "".join(
        f'<rect x="{LEFT}" y="{top + 4 + LINE * i}" width="14" height="4" fill="{colour}"/>'
        f'<text x="{LEFT + 22}" y="{top + 11 + LINE * i}">{escape(name)}</text>'
        for i, (name, colour) in enumerate(colours.items())
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers inside a range, three to seven of them."""
    step = next(step for step in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 7)
    first, last = -int(-low / step // 1), int(high / step // 1)
    return [round(i * step, 4) for i in range(first, last + 1)]
