"""Training curves of each method, as SVG: one chart for each network and setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.accuracy_picture import COLOURS, HEIGHT, WIDTH, Point, chart_of, with_legend

Row = Mapping[str, Any]


def picture(rows: Sequence[Row]) -> str:
    """Accuracy on held-out training samples after every epoch, mean over seeds: networks below one another."""
    methods, models, settings = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "model", "setting")
    )
    colours = dict(zip(methods, COLOURS, strict=False))
    drawn = []
    for (down, model), (across, setting) in product(enumerate(models), enumerate(settings)):
        found = curves([row for row in rows if row["model"] == model and row["setting"] == setting])
        if found:
            chart = chart_of(f"{model}, {setting}: top-1, %", "share of the epochs, %", found, colours, deepest=1.0)
            drawn.append(f'<g transform="translate({across * WIDTH} {down * HEIGHT})">{chart}</g>')
    return with_legend(drawn, len(settings), len(models), colours)


def curves(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """For each method points (share of the epochs, mean accuracy over seeds); of the runs with the most epochs."""
    longest = max((len(row["curve"]) for row in rows), default=0)
    found: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        if len(row["curve"]) == longest:
            found.setdefault(row["method"], []).append(row["curve"])
    means = {method: np.mean(values, axis=0) for method, values in found.items()}
    return {
        method: [((at + 1) / len(values), float(value)) for at, value in enumerate(values)]
        for method, values in means.items()
    }
