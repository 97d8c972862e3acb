"""The benchmark of pruning while training: what its tables and its picture say."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.pdp import Job, main
from benchmarks.pdp_picture import curves

ROWS = [
    {
        "model": "net",
        "setting": "channel:0.5",
        "method": method,
        "seed": seed,
        "unpruned": 0.9,
        "top1": top1,
        "curve": [0.5, top1],
    }
    for method, seed, top1 in (("pdp", 0, 0.8), ("pdp", 1, 0.84), ("one-shot", 0, 0.7), ("one-shot", 1, 0.7))
]
ROWS[0]["exported"] = {
    "same_classes": 499,
    "samples": 500,
    "macs": 0.25,
    "parameters": 0.5,
    "latency": 0.4,
    "low": 0.3,
    "high": 0.5,
}


def test_rows_of_earlier_runs_are_put_together(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS[:1]), ("b", ROWS[1:])):
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
    table, drawn = tmp_path / "table.md", tmp_path / "curves.svg"
    given = [str(tmp_path / "a"), str(tmp_path / "b")]
    main(["--render", *given, "--markdown", str(table), "--svg", str(drawn)])
    lines = table.read_text().splitlines()
    assert "| net | channel:0.5 | 90.0% | 82.0% (80.0% to 84.0%) | 70.0% (70.0% to 70.0%) | pdp |" in lines
    assert "| net | channel:0.5 | 499 of 500 | 25.0% | 50.0% | 0.400 (0.300 to 0.500) |" in lines
    paths = ElementTree.parse(drawn).getroot().findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(paths) == 2


def test_curves_are_means_over_seeds() -> None:
    found = curves([*ROWS, {**ROWS[0], "curve": [0.1]}])  # and one that had fewer epochs
    assert [point for method in ("pdp", "one-shot") for line in found[method] for point in line] == pytest.approx(
        [0.5, 0.5, 1.0, 0.82, 0.5, 0.5, 1.0, 0.7]
    )


def test_all_methods_are_trained_alike() -> None:
    """But for what a method has of its own."""
    settings = {
        method: Job("digits", "1:4", method, 0, 3, Path()).options.to_dict()
        for method in ("pdp", "gradual", "one-shot")
    }
    own = {"method", "ramp"}
    alike = [{name: value for name, value in each.items() if name not in own} for each in settings.values()]
    assert alike[0] == alike[1] == alike[2]
