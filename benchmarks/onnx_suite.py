"""Everything that onnx brings along to test others with: its node and model tests, and nine architectures.

    python -m benchmarks.onnx_suite [PATTERN ...] [--kind node ...] [--ratio 0.3] [--json FILE] [--no-light]

Every model of the test suite that onnxruntime runs is pruned as it is, and in variants that give the tool something to
prune (see ``tests/suites/onnx_cases.py``); ``tests/suites/onnx_check.py`` says what must hold. The architectures get
random weights and go through the whole line with every lowering. The exit code is 1 if there is a defect.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.comparing import differences, run_model
from tests.suites.isolated import DiedError, Isolated
from tests.suites.light_models import NAMES, light_model
from tests.suites.onnx_cases import KINDS, VARIANTS, load_cases
from tests.suites.onnx_check import DEFECT, NOT_RUN, PRUNED, REFUSED, WHOLE, Outcome, check_case, weights
from ucpe_onnx import UcpeError, masked_model, prune

LOWERINGS = ("union", "gather", "slice")


def check_light(job: tuple[str, str], ratio: float) -> tuple[Outcome, dict[str, Any]]:
    """Prune one architecture with one lowering: how it ended, and its figures."""
    name, lowering = job
    model = light_model(name)
    stored = {tensor.name for tensor in model.graph.initializer}
    value = next(v for v in model.graph.input if v.name not in stored)
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    start = time.perf_counter()
    try:
        result = prune(model, ratio=ratio, mode="unconstrained", lowering=lowering, bench_seconds=0)
    except UcpeError as error:
        return Outcome(DEFECT, str(error)), {}
    seconds = time.perf_counter() - start
    for left in result.report.left_alone:
        return Outcome(DEFECT, f"segment {left.segment} was left alone: {left.reason}"), {}
    masks = result.plan.masks()
    problem = differences(run_model(result.model, feed), run_model(masked_model(model, masks), feed))
    figures = {
        "consumers": len(result.plan.consumers),
        "masked": len(masks),
        "weights": weights(result.model) / weights(model),
        "seconds": round(seconds, 2),
    }
    kind = DEFECT if problem else PRUNED if masks else WHOLE
    return Outcome(kind, problem), figures


def run_suite(kinds: list[str], patterns: list[str], ratio: float) -> dict[str, dict[str, Outcome]]:
    """Outcomes by variant and case."""
    found: dict[str, dict[str, Outcome]] = {variant: {} for variant in VARIANTS}
    cases = [case for case in load_cases(kinds) if any(fnmatch(case.name, pattern) for pattern in patterns)]
    with Isolated(partial(check_case, ratio=ratio), 120) as check:
        for case in track(cases, "test suite", console=Console(stderr=True)):
            for variant, make in VARIANTS.items():
                if (made := make(case)) is not None:
                    try:
                        found[variant][case.name] = check(made)
                    except DiedError as error:
                        found[variant][case.name] = Outcome(DEFECT, str(error))
    return found


def run_light(ratio: float) -> dict[str, tuple[Outcome, dict[str, Any]]]:
    """Outcomes and figures by architecture and lowering."""
    found = {}
    jobs = [(name, lowering) for name in NAMES for lowering in LOWERINGS]
    with Isolated(partial(check_light, ratio=ratio), 600) as check:
        for job in track(jobs, "architectures", console=Console(stderr=True)):
            try:
                found[" ".join(job)] = check(job)
            except DiedError as error:
                found[" ".join(job)] = Outcome(DEFECT, str(error)), {}
    return found


def suite_table(found: dict[str, dict[str, Outcome]]) -> Table:
    """Counts by variant."""
    table = Table(title="ONNX's test suite: models by outcome")
    kinds = (WHOLE, PRUNED, REFUSED, DEFECT, NOT_RUN)
    for column in ("variant", "models", *kinds):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant, outcomes in found.items():
        counts = Counter(outcome.kind for outcome in outcomes.values())
        table.add_row(variant, str(len(outcomes)), *(str(counts[kind]) for kind in kinds))
    return table


def light_table(found: dict[str, tuple[Outcome, dict[str, Any]]]) -> Table:
    """One row for each architecture and lowering."""
    table = Table(title="architectures that onnx ships, with random weights")
    for column in ("model, lowering", "outcome", "masked", "weights", "seconds"):
        table.add_column(column, justify="left" if column in ("model, lowering", "outcome") else "right")
    for name, (outcome, figures) in found.items():
        cells = [f"{figures['masked']} of {figures['consumers']}", f"{figures['weights']:.0%}", f"{figures['seconds']}"]
        table.add_row(name, outcome.kind, *(cells if figures else [""] * 3))
    return table


def reasons(outcomes: list[tuple[str, Outcome]], kind: str) -> list[str]:
    """Lines for the outcomes of one kind that ask for an explanation."""
    return [f"{kind}: {name}: {outcome.reason}" for name, outcome in outcomes if outcome.kind == kind]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--no-light", action="store_true", help="leave the architectures out")
    args = parser.parse_args()
    console = Console(width=120)
    suite = run_suite(args.kind, args.patterns, args.ratio)
    light = {} if args.no_light else run_light(args.ratio)
    console.print(suite_table(suite))
    if light:
        console.print(light_table(light))
    every = [(f"{name}, {variant}", o) for variant, outcomes in suite.items() for name, o in outcomes.items()]
    every += [(name, outcome) for name, (outcome, _) in light.items()]
    for kind in (REFUSED, DEFECT):
        for line in reasons(every, kind):
            console.print(line, soft_wrap=True, markup=False)
    if args.json:
        plain = [{"name": name, "kind": outcome.kind, "reason": outcome.reason} for name, outcome in every]
        figures = {name: figures for name, (_, figures) in light.items()}
        args.json.write_text(json.dumps({"ratio": args.ratio, "outcomes": plain, "architectures": figures}, indent=2))
    return int(any(outcome.kind == DEFECT for _, outcome in every))


if __name__ == "__main__":
    sys.exit(main())
