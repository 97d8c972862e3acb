"""Markdown out of the rows that ``benchmarks.accuracy`` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

PROTOTYPE = "prototype (5,000 images)"
FLOOR_UNPRUNED = {"resnet20": 0.9192, "resnet56": 0.9316}
FLOOR: Mapping[tuple[str, float], float] = {
    ("resnet20", 0.10): 0.917,
    ("resnet20", 0.19): 0.906,
    ("resnet20", 0.30): 0.888,
    ("resnet20", 0.50): 0.787,
    ("resnet56", 0.10): 0.931,
    ("resnet56", 0.19): 0.929,
    ("resnet56", 0.30): 0.924,
    ("resnet56", 0.50): 0.892,
}
"""Top-1 of a throw-away least-squares prototype, by network and share of MACs removed."""

HEADS: Mapping[str, str] = {
    "ratio": """\
## Equal ratio

Top-1 with the same share of every layer's input channels removed, and the share of multiply-accumulates that this
removes. *+*: compensated. Widths are not rounded.""",
    "macs": """\
## Equal MACs

Top-1, and in points what is lost, for each share of multiply-accumulates removed; where a method missed that by more
than 1 %, what it removed. *Prototype*: a throw-away least-squares prototype, whose figures were measured once on 5,000
test images, where the unpruned networks reach 91.92 % (ResNet-20) and 93.16 % (ResNet-56): compare what is lost.""",
    "latency": """\
## Equal latency

Top-1, in points what is lost, and the latency reached over that of the unpruned network, with its 95 % interval; all
models of a column were timed in turns in one process. *By Gather*: every consumer copies what it keeps by a Gather.""",
    "cost": """\
## Time and memory

Whole jobs on the command line at ratio 0.25, each in a process of its own: seconds of the process and of the stages
that take the longest, and the most resident memory.""",
}


def markdown(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Everything as markdown, section by section.

    Args:
        rows: what was measured.
        facts: how, as (name, value) pairs for a line at the top.
    """
    parts = ["# Accuracy without training", ", ".join(f"{name} {value}" for name, value in facts.items())]
    for section, head in HEADS.items():
        chosen = [row for row in rows if row["section"] == section]
        if chosen:
            parts += [head, *_SECTIONS[section](chosen)]
    return "\n\n".join(parts) + "\n"


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["model"] == name] for name in _unique(row["model"] for row in rows)}


def _ratio_section(rows: Sequence[Row]) -> Iterable[str]:
    for name, of_model in _by_model(rows).items():
        for ratio in _unique(row["ratio"] for row in of_model):
            chosen = [row for row in of_model if row["ratio"] == ratio]
            yield f"{name}, ratio {ratio:g}, unpruned {percent(chosen[0]['unpruned'])}:"
            found = {(row["criterion"], row["mode"], row["compensated"]): row for row in chosen}
            lines = []
            for criterion in _unique(row["criterion"] for row in chosen):
                cells = [criterion]
                for mode in ("unconstrained", "constrained"):
                    both = [found.get((criterion, mode, compensated), {}) for compensated in (False, True)]
                    cells += [*(_plain(row) for row in both), _removed(both)]
                lines.append(cells)
            head = ["criterion", "unconstrained", "unconstrained +", "MACs", "constrained", "constrained +", "MACs"]
            yield table(head, lines)


def _macs_section(rows: Sequence[Row]) -> Iterable[str]:
    for name, of_model in _by_model(rows).items():
        yield f"{name}, unpruned {percent(of_model[0]['unpruned'])}:"
        targets = _unique(row["target"] for row in of_model)
        lines = _lines(of_model, targets, _macs_cell)
        floors = [FLOOR.get((name, target)) for target in targets]
        if any(floors):
            whole = FLOOR_UNPRUNED[name]
            lines.append([PROTOTYPE, *("" if f is None else f"{percent(f)} ({points(f - whole)})" for f in floors)])
        yield table(["method", *(f"−{target:.0%}" for target in targets)], lines)


def _latency_section(rows: Sequence[Row]) -> Iterable[str]:
    for name, of_model in _by_model(rows).items():
        yield f"{name}, unpruned {percent(of_model[0]['unpruned'])}:"
        targets = _unique(row["target"] for row in of_model)
        yield table(["method", *(f"× {target:g}" for target in targets)], _lines(of_model, targets, _latency_cell))


def _cost_section(rows: Sequence[Row]) -> Iterable[str]:
    lines = []
    for row in rows:
        cells = [row["model"], row["method"], str(row["samples"])]
        if "error" in row:
            lines.append([*cells, _failure(row), "", ""])
            continue
        longest = sorted(row["stages"].items(), key=lambda stage: -stage[1])[:4]
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in longest)
        lines.append([*cells, f"{row['seconds']:.1f}", f"{row['peak'] / 1e6:,.0f} MB", stages])
    yield table(["model", "job", "samples", "seconds", "peak memory", "stages"], lines)


_SECTIONS: Mapping[str, Callable[[Sequence[Row]], Iterable[str]]] = {
    "ratio": _ratio_section,
    "macs": _macs_section,
    "latency": _latency_section,
    "cost": _cost_section,
}


def _lines(rows: Sequence[Row], targets: Sequence[float], cell: Callable[[Row], str]) -> list[list[str]]:
    found = {(row["method"], row["target"]): row for row in rows}
    methods = _unique(row["method"] for row in rows)
    return [[name, *(cell(found[name, t]) if (name, t) in found else "" for t in targets)] for name in methods]


def _macs_cell(row: Row) -> str:
    if "error" in row:
        return _failure(row)
    removed = 1 - row["macs"]
    missed = f" at −{removed:.1%}" if abs(removed - row["target"]) > 0.01 else ""
    return f"{percent(row['top1'])} ({points(row['top1'] - row['unpruned'])}){missed}"


def _latency_cell(row: Row) -> str:
    if "error" in row:
        return _failure(row)
    text = f"{percent(row['top1'])} ({points(row['top1'] - row['unpruned'])})"
    return f"{text} at {row['latency']:.3f} ({row['low']:.3f}-{row['high']:.3f})" if "latency" in row else text


def _plain(row: Row) -> str:
    return _failure(row) if "error" in row else percent(row["top1"]) if row else ""


def _removed(rows: Iterable[Row]) -> str:
    return next((f"−{1 - row['macs']:.0%}" for row in rows if "macs" in row), "")


def _failure(row: Row) -> str:
    return f"fails: {row['error'][:60]}"


def percent(share: float) -> str:
    """A share as per cent with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table whose first column is text."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, rule, *lines)
    )


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
