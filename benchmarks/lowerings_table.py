"""Markdown out of the rows that ``benchmarks.lowerings`` measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lowerings_variants import VARIANTS

Row = Mapping[str, Any]

OURS = "written"
PREDICTED = "auto"
CLOSE = 1.02
"""Ours counts as good as the fastest up to this ratio."""

LEGEND = """\
Ratios to the unpruned model's median, 95 % interval, all variants in turns in one process; masks are the same in every
column but onnxsim's, whose constrained pruning leaves as many parameters as the predicted best. *Naive*: exact widths,
producers make the union, consumers copy what they keep: **gather** everywhere; **slice** in UPSCALE's order where that
makes channels contiguous, gather elsewhere. *Aligned*: the same with our rounding of widths. *Floor*: kernel times with
selections free; ours over it by the same profiler. A name behind a ratio: that variant came out as the same plan, timed
once. *Predicted best*: what the cost model chooses. *Ours*: what the command writes, the fastest of three that it has
timed: the predicted best, the union and the better of gather and slice. *Regret*: the predicted best over the fastest
variant with the same masks, less 1."""


def ratios(row: Row) -> dict[str, float]:
    """Ratios to the unpruned model, of the variants that ran and honour the masks."""
    return {
        name: entry["ratio"] for name, entry in row["variants"].items() if VARIANTS[name].masked and "ratio" in entry
    }


def over(row: Row, names: Iterable[str], judged: str = OURS) -> float | None:
    """Ours, or another variant, over the fastest of some variants."""
    known = ratios(row)
    others = [known[name] for name in names if name in known]
    return known[judged] / min(others) if judged in known and others else None


def summary(row: Row) -> dict[str, Any]:
    """The ratios that a row is judged by."""
    known = ratios(row)
    best = min(known, key=lambda name: known[name]) if known else None
    everybody, regret = over(row, known), over(row, known, PREDICTED)
    floor = row.get("floor")
    return {
        "over_naive": over(row, [name for name, variant in VARIANTS.items() if variant.naive]),
        "over_aligned": over(row, ["gather", "slice"]),
        "fastest": best,
        "over_fastest": everybody,
        "regret": None if regret is None else regret - 1,
        "over_floor": floor["ours_us"] / floor["us"] if floor else None,
        "over_onnxsim": _over_unmasked(row, "onnxsim"),
    }


def _over_unmasked(row: Row, name: str) -> float | None:
    entries = row["variants"]
    if "ratio" not in entries.get(OURS, {}) or "ratio" not in entries.get(name, {}):
        return None
    return float(entries[OURS]["ratio"] / entries[name]["ratio"])


def markdown(rows: Sequence[Row]) -> str:
    """Everything as markdown: for each setting the latencies, what they say, and the compile times."""
    settings = list(dict.fromkeys(_setting(row) for row in rows))
    parts = [LEGEND]
    for setting in settings:
        chosen = [row for row in rows if _setting(row) == setting]
        parts += [f"## {setting}", _latencies(chosen), _verdict(chosen), _compilation(chosen)]
    return "\n\n".join(parts) + "\n"


def _setting(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] != 1 else ''}"
    return f"{row['provider']}, {row['precision']}, {threads}, ratio {row['ratio']}"


def _latencies(rows: Sequence[Row]) -> str:
    names = [name for name in VARIANTS if any(name in row["variants"] for row in rows)]
    head = ["model", *(VARIANTS[name].title for name in names)]
    head += ["ours / naive", "ours / aligned", "ours / onnxsim", "fastest", "ours / fastest", "ours / floor"]
    lines = []
    for row in rows:
        facts = summary(row)
        cells = [row["model"], *(_cell(name, row["variants"].get(name)) for name in names)]
        cells += [_ratio(facts[key]) for key in ("over_naive", "over_aligned", "over_onnxsim")]
        cells += [VARIANTS[facts["fastest"]].title if facts["fastest"] else ""]
        cells += [_ratio(facts[key]) for key in ("over_fastest", "over_floor")]
        lines.append(cells)
    means = ["geometric mean", *(_mean(row["variants"].get(name, {}).get("ratio") for row in rows) for name in names)]
    means += [_mean(summary(row)[key] for row in rows) for key in ("over_naive", "over_aligned", "over_onnxsim")]
    means += ["", *(_mean(summary(row)[key] for row in rows) for key in ("over_fastest", "over_floor"))]
    return _table(head, [*lines, means])


def _verdict(rows: Sequence[Row]) -> str:
    behind = []
    for row in rows:
        facts = summary(row)
        if facts["over_fastest"] is not None and facts["over_fastest"] > CLOSE:
            behind.append(f"{row['model']} ({facts['over_fastest']:.3f}, {VARIANTS[facts['fastest']].title})")
    judged = sum(summary(row)["over_fastest"] is not None for row in rows)
    text = f"Ours is within {CLOSE - 1:.0%} of the fastest on {judged - len(behind)} of {judged}"
    return text + (f"; not on {', '.join(behind)}." if behind else ".")


def _compilation(rows: Sequence[Row]) -> str:
    """Seconds of every builder, and what the solver says about its own choice."""
    names = [name for name in VARIANTS if any("seconds" in row["variants"].get(name, {}) for row in rows)]
    names = [name for name in names if name != "unpruned"]
    head = ["model", "solver s", "gap", "predicted ms", "regret", *(f"{VARIANTS[name].title} s" for name in names)]
    lines = []
    for row in rows:
        solver = row.get("solver") or {}
        predicted = solver.get("predicted_us")
        lines.append(
            [
                row["model"],
                f"{solver['seconds']:.2f}" if solver else "",
                f"{solver['gap']:.1%}" if solver else "",
                "" if predicted is None else f"{predicted / 1e3:.2f}",
                "" if summary(row)["regret"] is None else f"{summary(row)['regret']:.1%}",
                *(_seconds(row["variants"].get(name, {})) for name in names),
            ]
        )
    return _table(head, lines)


def _cell(name: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    if "error" in entry:
        return f"fails: {entry['error'][:40]}"
    if name == "unpruned":
        return f"{entry['ms']:.2f} ms"
    text = f"{entry['ratio']:.3f} ({entry['low']:.3f}-{entry['high']:.3f})"
    return f"{text}, {VARIANTS[entry['same_as']].title}" if "same_as" in entry else text


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _seconds(entry: Mapping[str, Any]) -> str:
    return f"{entry['seconds']:.2f}" if "seconds" in entry else ""


def _mean(values: Iterable[float | None]) -> str:
    """Geometric mean of those that are known."""
    known = [value for value in values if value is not None]
    return f"{np.exp(np.mean(np.log(known))):.3f}" if known else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, rule, *lines)
    )
