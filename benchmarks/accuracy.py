"""Accuracy of one-shot pruning on real networks and data, against other ways to prune them without training.

    python -m benchmarks.accuracy [--section ratio macs latency cost] [--models NAME ...] [--data-folder FOLDER]
        [--samples N] [--threads 1] [--markdown FILE] [--svg FILE] [--json FILE]

ratio: every criterion at equal ratios, constrained and unconstrained, as it is and compensated. macs: at equal
multiply-accumulates, beside onnxsim (``pip install -e ".[bench]"``). latency: at equal measured latency. cost: seconds
and memory of whole jobs with calibration samples.

Calibration samples are training images, accuracy is measured on test images that nothing else sees. Networks for
CIFAR-10 and ImageNet need a folder of data; without it three networks for handwritten digits are left, of which two are
trained the first time (``models/recipes/wide_digits.py``, some minutes, ``pip install -e ".[recipes]"``).

``--render FILE ...`` puts the rows of earlier runs with ``--json`` together and writes tables and picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from rich.console import Console

from benchmarks.accuracy_cases import DATA_FOLDER, NEEDED, SHIPPED, STORED, Case, load_case
from benchmarks.accuracy_cost import costs
from benchmarks.accuracy_latency import METHODS, at_equal_latency
from benchmarks.accuracy_methods import CRITERIA, TO_MACS, Pruner, Row, at_equal_macs, at_equal_ratio
from benchmarks.accuracy_picture import picture
from benchmarks.accuracy_table import markdown

SECTIONS = ("ratio", "macs", "latency", "cost")
RATIOS = (0.1, 0.25, 0.5)
MACS: Mapping[str, tuple[float, ...]] = {"mobilenetv2": (0.1, 0.2, 0.3)}
LATENCIES: Mapping[str, tuple[float, ...]] = {"mobilenetv2": (0.9, 0.8, 0.7)}
OTHER_MACS = (0.1, 0.19, 0.3, 0.5)
OTHER_LATENCIES = (0.9, 0.8, 0.7, 0.6, 0.5)

CONSOLE = Console(width=200, highlight=False, markup=False)


def rows_of(section: str, pruner: Pruner, args: argparse.Namespace) -> Iterator[Row]:
    """What one section measures of one network."""
    name = pruner.case.name
    if section == "ratio":
        for ratio in args.ratios:
            for criterion in args.criteria:
                yield from at_equal_ratio(pruner, ratio, criterion)
    elif section == "macs":
        for removed in args.macs or MACS.get(name, OTHER_MACS):
            for method in args.methods or TO_MACS:
                if method in TO_MACS:
                    yield at_equal_macs(pruner, removed, method)
    elif section == "latency":
        methods = [method for method in args.methods or METHODS if method in METHODS]
        for target in args.latencies or LATENCIES.get(name, OTHER_LATENCIES):
            yield from at_equal_latency(pruner, target, methods, args.seconds)
    else:
        yield from costs(pruner.case)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The networks that were asked for, as far as what they need is there."""
    names = args.models
    if names is None:
        names = [*STORED, *SHIPPED] if args.data_folder.is_dir() else list(SHIPPED)
        if names == list(SHIPPED):
            CONSOLE.print(f"{NEEDED}\nThey are left out: {args.data_folder} is no folder.", soft_wrap=True)
    for name in names:
        try:
            yield load_case(name, args.data_folder, args.samples, args.threads)
        except (OSError, RuntimeError, ImportError) as error:
            CONSOLE.print(f"{name} is left out: {error}", soft_wrap=True)


def told(row: Row) -> str:
    """One row as a line."""
    labels = [row["model"], row["section"]]
    labels += [str(row[key]) for key in ("ratio", "target", "criterion", "mode", "method") if key in row]
    labels += ["compensated"] * bool(row.get("compensated"))
    keys = ("top1", "agreement", "macs", "latency", "seconds", "at", "peak")
    figures = {key: row[key] for key in keys if row.get(key) is not None}
    shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
    return f"{' '.join(labels)}: {row.get('error') or shown}"


def write(rows: list[Row], facts: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Write what there is so far."""
    if args.json:
        args.json.write_text(json.dumps({"facts": dict(facts), "rows": rows}, indent=1), encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(rows, facts), encoding="utf-8")
    if args.svg:
        args.svg.write_text(picture(rows), encoding="utf-8")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", choices=(*STORED, *SHIPPED), help="default: all there is data for")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER, help="CIFAR-10 and ImageNet files")
    parser.add_argument("--samples", type=int, help="calibration images (default: 1024 of CIFAR-10, 300 of ImageNet)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA), metavar="CRITERION")
    parser.add_argument("--macs", type=float, nargs="+", help="shares to remove (default: by network)")
    parser.add_argument("--latencies", type=float, nargs="+", help="shares to be left (default: by network)")
    every = dict.fromkeys((*TO_MACS, *METHODS))
    parser.add_argument("--methods", nargs="+", choices=every, metavar="METHOD", help=f"of {'; '.join(every)}")
    parser.add_argument("--seconds", type=float, default=6.0, help="to time each model of section latency for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write everything")
    parser.add_argument("--markdown", type=Path, help="where to write the tables")
    parser.add_argument("--svg", type=Path, help="where to draw accuracy against MACs and latency")
    parser.add_argument("--render", type=Path, nargs="+", help="measure nothing, take the rows of these JSON files")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    rows: list[Row] = []
    facts: dict[str, Any] = {"onnxruntime": ort.__version__, "threads": args.threads, "seed": args.seed}
    for file in args.render or []:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        rows += earlier["rows"]
        facts |= earlier["facts"]
    for case in () if args.render else cases(args):
        pruner = Pruner(case, seed=args.seed)
        CONSOLE.print(f"{case.name}: top-1 {case.unpruned:.4f} unpruned, {case.stats.macs / 1e6:.1f} M MACs")
        for section in args.section:
            for row in rows_of(section, pruner, args):
                rows.append(row)
                CONSOLE.print(told(row), soft_wrap=True)
                write(rows, facts, args)
    write(rows, facts, args)
    CONSOLE.print(markdown(rows, facts), soft_wrap=True)


if __name__ == "__main__":
    main()
