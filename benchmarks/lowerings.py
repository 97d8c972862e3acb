"""Latency at equal masks: this compiler against every fixed lowering and against a straightforward exporter.

    python -m benchmarks.lowerings [MODEL.onnx | ARCHITECTURE ...] [--ratios .25 .5] [--threads 1 2] [--seconds 20]
        [--precision float32|int8] [--providers cpu] [--variants NAME ...] [--json FILE] [--markdown FILE]

For each model, ratio and number of threads the masks are chosen once (L2, local, unconstrained) and every variant is
built from them, compared with the masked model, and timed, all variants in turns in one process. Models have random
weights: what is measured depends on shapes and on which channels go, not on what they mean.

onnxsim (``pip install -e ".[bench]"``) prunes by its own constrained masks, at the sparsity that leaves as many
parameters as ours. ``--providers openvino`` needs the package onnxruntime-openvino in place of onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from benchmarks.lowerings_floor import free_if_selections_are, profile
from benchmarks.lowerings_models import DEFAULT, PRECISIONS, load
from benchmarks.lowerings_table import OURS, PREDICTED, markdown
from benchmarks.lowerings_variants import VARIANTS, Built, Case
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import UcpeError
from ucpe_onnx.masked import masked_model
from ucpe_onnx.plan import Plan
from ucpe_onnx.runtime.latency import measure
from ucpe_onnx.runtime.random_feeds import find_feeds, random_feeds
from ucpe_onnx.runtime.session import OPT_LEVELS, RunOptions, as_session, resolve_providers, run
from ucpe_onnx.runtime.verify import verify
from ucpe_onnx.samples.inputs import input_specs
from ucpe_onnx.selection.criteria import score_consumers
from ucpe_onnx.selection.select import Selection, select_masks

Row = dict[str, Any]
CONSOLE = Console(width=240, highlight=False, markup=False)


def cases(name: str, args: argparse.Namespace) -> Iterator[tuple[float, Case]]:
    """One model with every ratio and number of threads, and the ratio."""
    model = load(name, args.precision)
    start = time.perf_counter()
    traced = trace(model)
    seconds = time.perf_counter() - start
    scores = score_consumers(traced, "l2")
    options = RunOptions(providers=resolve_providers(args.providers), opt_level=args.opt_level)
    feed = find_feeds(model, options)
    constrained: dict[float, onnx.ModelProto] = {}
    for ratio in args.ratios:
        masks = select_masks(traced, scores, Selection(ratio))
        for threads in args.threads:
            chosen = replace(options, threads=threads)
            yield ratio, Case(Path(name).stem, model, traced, seconds, masks, chosen, feed, args.precision, constrained)


def build_variants(case: Case, names: Sequence[str]) -> tuple[dict[str, Built], Row]:
    """Build and check: what passed, and an entry for every variant."""
    reference = masked_model(case.model, case.masks)
    feeds = [case.feed, random_feeds(input_specs(case.model), 1, {k: v.shape for k, v in case.feed.items()})]
    built: dict[str, Built] = {}
    entries: Row = {}
    for name in names:
        variant = VARIANTS[name]
        try:
            made = variant.build(case)
            if variant.masked:
                found = verify(made.model, reference, feeds, case.options)
                found.raise_if_failed(name)
            else:
                check_shapes(case, made)
        except (UcpeError, ValueError, RuntimeError, ImportError) as error:
            entries[name] = {"error": " ".join(str(error).split())[:300]}
            continue
        entries[name] = {"seconds": made.seconds, "parameters": case.parameters(made.model), **made.facts}
        twin = next((other for other, earlier in built.items() if same_plan(earlier.plan, made.plan)), None)
        if twin is None:
            built[name] = made
        else:
            entries[name]["same_as"] = twin
    return built, entries


def check_shapes(case: Case, made: Built) -> None:
    """A model with other masks must at least run, with outputs of the same shapes."""
    expected, found = (run(as_session(each, case.options), case.feed) for each in (case.model, made.model))
    if [value.shape for value in found] != [value.shape for value in expected]:
        raise ValueError("the outputs have other shapes")


def same_plan(one: Plan | None, other: Plan | None) -> bool:
    """Whether two plans emit the same model."""
    if one is None or other is None:
        return False
    layouts = [[(s.order, s.blocks, dict(s.lowerings)) for s in plan.segments] for plan in (one, other)]
    return layouts[0] == layouts[1] and dict(one.consumers) == dict(other.consumers)


def measure_case(ratio: float, case: Case, args: argparse.Namespace) -> Row:
    """Build, verify and time one case."""
    built, entries = build_variants(case, args.variants)
    report = measure(
        {name: made.model for name, made in built.items()},
        case.feed,
        case.options,
        baseline="unpruned",
        seconds=args.seconds,
        reloads=args.reloads,
    )
    for name, entry in entries.items():
        if "error" not in entry:
            timed = report[entry.get("same_as", name)]
            entry |= {"ms": timed.median_ms, "ratio": timed.ratio, "low": timed.low, "high": timed.high}
    row: Row = {
        "model": case.name,
        "ratio": ratio,
        "threads": case.options.threads,
        "provider": case.options.providers[0].removesuffix("ExecutionProvider"),
        "opt_level": case.options.opt_level,
        "precision": case.precision,
        "rounds": report.rounds,
        "reloads": args.reloads,
        "variants": entries,
    }
    predicted, ours = (built.get(entries.get(name, {}).get("same_as", name)) for name in (PREDICTED, OURS))
    if predicted is not None:
        row["solver"] = solver_facts(predicted.plan)
    if ours is not None and args.floor and case.options.providers[0] == "CPUExecutionProvider":
        row["floor"] = floor(case, ours)
    return row


def solver_facts(plan: Plan | None) -> Row | None:
    """Seconds of the solver and the gap that it leaves; the time that it predicts, once plans say it."""
    if plan is None:
        return None
    objective, bound = (sum(getattr(s, field) for s in plan.segments) for field in ("objective", "bound"))
    return {
        "seconds": sum(s.seconds for s in plan.segments),
        "gap": abs(bound - objective) / max(abs(objective), abs(bound), 1e-9),
        "optimal": sum(s.status == "OPTIMAL" for s in plan.segments) / max(len(plan.segments), 1),
        "predicted_us": getattr(plan, "predicted_us", None),
    }


def floor(case: Case, ours: Built) -> Row:
    """Kernel times of ours, and of the aligned gather variant with its selections free."""
    gathered = VARIANTS["gather"].build(case).model
    found = profile({"ours": ours.model, "gather": gathered}, case.feed, case.options)
    free = free_if_selections_are(found["gather"], case.model)
    return {"us": found["gather"].total(free), "ours_us": found["ours"].total(), "gather_us": found["gather"].total()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="to time each case; up to three times as long")
    parser.add_argument(
        "--reloads", type=int, default=6, help="times that all sessions are made anew; 1 for a quick look"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--providers", nargs="+", default=["cpu"])
    parser.add_argument("--opt-level", choices=OPT_LEVELS, default="all")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--no-floor", dest="floor", action="store_false", help="skip the kernel times")
    parser.add_argument("--json", type=Path, help="where to write everything")
    parser.add_argument("--markdown", type=Path, help="where to write the tables")
    args = parser.parse_args()
    args.variants = list(dict.fromkeys(["unpruned", *args.variants]))
    rows: list[Row] = []
    for name in args.models or DEFAULT:
        for ratio, case in cases(name, args):
            rows.append(measure_case(ratio, case, args))
            ratios = {k: round(v["ratio"], 3) if "ratio" in v else "fails" for k, v in rows[-1]["variants"].items()}
            CONSOLE.print(f"{case.name}, ratio {ratio}, {case.options.threads} threads: {ratios}", soft_wrap=True)
            if args.json:
                args.json.write_text(json.dumps({"rows": rows}, indent=1))
            if args.markdown:
                args.markdown.write_text(markdown(rows))
    CONSOLE.print(markdown(rows), soft_wrap=True)


if __name__ == "__main__":
    main()
