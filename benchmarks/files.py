"""What can be pruned in ONNX files, and whether random masks come out right in every lowering.

    python -m benchmarks.files a.onnx b.onnx ... [--share 0.3] [--lowerings auto gather] [--markdown] [--json FILE]

For each file: its consumers, the share of their weights that reads or makes prunable channels, the same of all weights,
and what became of random masks: the emitted model equals the masked one in onnxruntime (and has fewer weights), or was
refused, or failed. Last, why segments hold frozen slots: the number of segments for each kind of reason. Each file is
examined in a process of its own, with a time limit, so that none can stop the table.

A second table has a line for each family of networks (``benchmarks/families.py``): how many files come out wrong, and
how many are prunable for more than half. The others follow by name, with the reasons for which most of their weights
stay.
The exit code is 1 if something failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.checker import check_model
from rich.console import Console
from rich.table import Table

from benchmarks.families import FAMILIES, family, kind, weights_of
from ucpe_onnx import UcpeError, masked_model
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.model.source import open_source
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.random_feeds import find_feeds
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.runtime.verify import verify

Row = dict[str, Any]

EQUAL, REFUSED, FAILED = "equal", "refused", "failed"
HALF = 0.5
SOLVER_SECONDS = 2.0
"""For each emission: random masks are hard to order, and how well is not the question here."""

COLUMNS = ("file", "consumers", "prunable", "of all", *LOWERING_RULES, "segments with frozen slots: why", "s")
FAMILY_COLUMNS = ("family", "files", "wrong", "more than half", "median", "more than half of all", "median of all")
LEFT = ("file", "family", COLUMNS[-2])
"""Columns of words."""


def random_masks(traced: Trace, share: float, seed: int) -> dict[str, Mask]:
    """Masks that drop whole slots at random: some everywhere, so that they can go, and some more for each consumer.

    Args:
        traced: the analysed model.
        share: of each segment's prunable slots that all of its consumers drop; of the others each consumer drops a
            third of that share, so that the lowerings have something to select.
        seed: of the choice.

    Returns:
        Masks by consumer; each keeps a channel at least.
    """
    random = np.random.default_rng(seed)
    gone = {segment.id: _some(random, np.flatnonzero(~segment.frozen), share) for segment in traced.segments}
    masks = {}
    for name, consumer in traced.consumers.items():
        everywhere = gone[consumer.segment]
        read = np.setdiff1d(np.unique(consumer.slots[consumer.prunable]), everywhere)
        dropped = np.concatenate([everywhere, _some(random, read, share / 3)])
        mask = ~(np.isin(consumer.slots, dropped) & consumer.prunable)
        mask[random.integers(consumer.channels)] |= not mask.any()
        if not mask.all():
            masks[name] = mask
    return masks


def _some(random: np.random.Generator, slots: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    return random.permutation(slots)[: round(share * slots.size)]


def frozen_reasons(traced: Trace) -> dict[str, int]:
    """How many segments hold frozen slots for each kind of reason, most frequent first."""
    held = [segment.reasons for segment in traced.segments if segment.consumers or segment.producers]
    return dict(Counter(found for reasons in held for found in sorted(set(map(kind, reasons)))).most_common())


def weights(model: onnx.ModelProto) -> int:
    """Number of elements of all initializers and Constant nodes."""
    stored = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    return sum(int(np.prod(tensor.dims)) for tensor in stored)


def examine(path: str, share: float, seed: int, lowerings: Sequence[str]) -> None:
    """Look at one file; prints a row after each step, the last of which is complete."""
    try:
        model = open_source(path).model
        row: Row = {"family": family(model)}
        traced = trace(model)
        masks = random_masks(traced, share, seed)
        stored = weights_of(model, traced)
        row |= {
            "nodes": len(model.graph.node),
            "consumers": len(traced.consumers),
            "masked": len(masks),
            "prunable": round(stored.share, 4),
            "of_all": round(stored.share_of_all, 4),
            "staying": stored.staying,
            "frozen": frozen_reasons(traced),
            "lowerings": {},
        }
        print(json.dumps(row), flush=True)
        feeds = find_feeds(model)
    except UcpeError as error:
        print(json.dumps(row | {"refused": " ".join(str(error).split())}))
        return
    for lowering in lowerings if masks else ():
        row["lowerings"][lowering] = emitted_result(model, traced, masks, lowering, feeds)
        print(json.dumps(row), flush=True)


def emitted_result(
    model: onnx.ModelProto, traced: Trace, masks: dict[str, Mask], lowering: str, feeds: dict[str, Any]
) -> Row:
    """Emit with one lowering and compare with the masked model."""
    try:
        plan = make_plan(traced, masks, Settings(Target(blocked=False), lowering, seconds=SOLVER_SECONDS))
        emitted = emit(model, traced, plan)
        check_model(emitted, full_check=True)
        verify(emitted, masked_model(model, plan.masks()), [feeds]).raise_if_failed(lowering)
    except Exception as error:  # whatever it is: the other lowerings and files go on
        message = " ".join(str(error).split())[:300]
        kind = REFUSED if isinstance(error, UcpeError) and "its own outputs" in message else FAILED
        return {"result": kind, "reason": f"{type(error).__name__}: {message}"}
    return {"result": EQUAL, "removed": round(1 - weights(emitted) / weights(model), 4)}


def measure(file: Path, share: float, seed: int, lowerings: Sequence[str], limit: float) -> Row:
    """One file, in a process of its own: what is known of it, with "error" if that is not all."""
    command = [sys.executable, "-m", "benchmarks.files", "--row", str(file), "--share", str(share), "--seed", str(seed)]
    command += ["--lowerings", *lowerings]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
        output, said = done.stdout, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        problem: Row = {"error": said[:300]} if done.returncode else {}
    except subprocess.TimeoutExpired as expired:
        found = expired.stdout or b""  # bytes, even where text was asked for
        output = found if isinstance(found, str) else found.decode()
        problem = {"error": f"not done after {limit:g} s"}
    lines = [line for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    row: Row = json.loads(lines[-1]) if lines else {}
    return row | problem | {"seconds": round(time.perf_counter() - start, 1)}


def cells(name: str, row: Row) -> list[str]:
    """One line of the table."""
    if "prunable" not in row:
        kind, reason = (REFUSED, row["refused"]) if "refused" in row else (FAILED, row["error"])
        return [name, "", "", "", *[kind] * len(LOWERING_RULES), reason[:90], f"{row['seconds']:.0f}"]
    results = row["lowerings"]
    shown = [_shown(results[lowering]) if lowering in results else "" for lowering in LOWERING_RULES]
    notes = [f"{count} {kind[:50]}" for kind, count in list(row["frozen"].items())[:3]]
    trouble = [f"{lowering}: {found['reason'][:120]}" for lowering, found in results.items() if "reason" in found]
    trouble += [row["error"][:120]] if "error" in row else []
    why = "; ".join(trouble or notes)
    return [
        name,
        str(row["consumers"]),
        f"{row['prunable']:.0%}",
        f"{row['of_all']:.0%}",
        *shown,
        why,
        f"{row['seconds']:.0f}",
    ]


def _shown(found: Row) -> str:
    return f"{EQUAL}, {-found['removed']:+.0%}" if found["result"] == EQUAL else str(found["result"])


def failed(row: Row) -> bool:
    """Whether the row shows a defect."""
    return "error" in row or any(found["result"] == FAILED for found in row.get("lowerings", {}).values())


def wrong(row: Row) -> bool:
    """Whether an emitted model was not what it should have been."""
    return any(found["result"] == FAILED for found in row.get("lowerings", {}).values())


def family_lines(rows: dict[str, Row]) -> list[list[str]]:
    """A line for each family: files, wrong ones, those that are prunable for more than half, medians."""
    lines = []
    for name in FAMILIES:
        found = [row for row in rows.values() if row.get("family") == name and "prunable" in row]
        if found:
            cells = [name, str(len(found)), str(sum(map(wrong, found)))]
            for key in ("prunable", "of_all"):
                shares = [row[key] for row in found]
                half = sum(share > HALF for share in shares)
                cells += [f"{half} ({half / len(found):.0%})", f"{np.median(shares):.0%}"]
            lines.append(cells)
    return lines


def less_than_half(rows: dict[str, Row]) -> list[str]:
    """A line for each file of which not more than half is prunable, or that was not looked at, with the reasons."""
    lines = []
    for name, row in rows.items():
        if "prunable" not in row:
            lines.append(f"{name}: {row.get('refused') or row.get('error')}")
        elif min(row["prunable"], row["of_all"]) <= HALF:
            why = [f"{share:.0%} {reason}" for reason, share in list(row["staying"].items())[:3] if share >= 0.01]
            shares = f"{row['prunable']:.0%} of its consumers' weights, {row['of_all']:.0%} of all"
            lines.append(
                f"{name} ({row['family']}): {shares}; stay: {', '.join(why) or 'nothing is read by a consumer'}"
            )
    return lines


def totals(rows: Sequence[Row]) -> str:
    """The line below the table."""
    looked = [row["prunable"] for row in rows if "prunable" in row]
    return (
        f"{len(rows)} files: {sum(share > HALF for share in looked)} over half prunable,"
        f" {sum(share == 0 for share in looked)} not at all, mean {np.mean(looked or [0]):.0%};"
        f" {sum('refused' in row for row in rows)} refused, {sum(map(failed, rows))} failed"
    )


def printed(rows: dict[str, Row], *, markdown: bool) -> None:
    """Print the table and the totals."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    tables = {
        "random masks on files": (COLUMNS, [cells(name, row) for name, row in rows.items()]),
        "families": (FAMILY_COLUMNS, family_lines(rows)),
    }
    for title, (columns, lines) in tables.items():
        right = [column not in LEFT and column not in LOWERING_RULES for column in columns]
        if markdown:
            aligned = ["--:" if flag else "---" for flag in right]
            for line in (list(columns), aligned, *lines):
                print("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")
            print()
            continue
        table = Table(title=title)
        for column, flag in zip(columns, right, strict=True):
            table.add_column(column, overflow="fold", justify="right" if flag else "left")
        for line in lines:
            table.add_row(*line)
        console.print(table, markup=False)
    for line in (*less_than_half(rows), "", totals(list(rows.values()))):
        console.print(line, markup=False, soft_wrap=True)


def names_of(files: Sequence[Path]) -> list[str]:
    """Stems, with the folder in front where two files share one."""
    shared = Counter(file.stem for file in files)
    return [file.stem if shared[file.stem] == 1 else f"{file.parent.name}/{file.stem}" for file in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.onnx")
    parser.add_argument("--share", type=float, default=0.3, help="share of the prunable slots that goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lowerings", nargs="+", choices=LOWERING_RULES, default=list(LOWERING_RULES), metavar="NAME")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each file")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write everything")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        examine(args.row, args.share, args.seed, args.lowerings)
        return 0
    if not args.files:
        parser.error("give at least one file")
    progress = Console(stderr=True, highlight=False)
    rows: dict[str, Row] = {}
    for name, file in zip(names_of(args.files), args.files, strict=True):
        rows[name] = measure(file, args.share, args.seed, args.lowerings, args.limit)
        line = f"[{len(rows)}/{len(args.files)}] {'; '.join(cell for cell in cells(name, rows[name]) if cell)} s"
        progress.print(line, markup=False, soft_wrap=True)
        if args.json:
            found = {"share": args.share, "seed": args.seed, "files": rows, "totals": totals(list(rows.values()))}
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    printed(rows, markdown=args.markdown)
    return int(any(map(failed, rows.values())))


if __name__ == "__main__":
    sys.exit(main())
