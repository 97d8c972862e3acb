"""Share of the parameters that constrained pruning at ratio 0.5 removes from each architecture, and onnxsim's share.

    python -m benchmarks.coverage [MODEL.onnx | ARCHITECTURE ...] [--ratio 0.5] [--json FILE] [--markdown FILE]

Without models: every architecture of ``models/``, at a small image size. A row of ours counts if ``prune`` verified the
emitted model against the masked one in onnxruntime, a row of onnxsim's if its model loads, runs, and has outputs of the
same shapes. Each row runs in a process of its own, with a time limit, so that none can stop the table.

Ours runs at onnxruntime's ``extended`` optimisation level, at which widths are not rounded to the blocked layout: the
table is about what can go, not about how fast the rest is (``benchmarks.main_job`` is about that).

onnxsim (``pip install -e ".[bench]"``) expects batch normalisations to be folded, so it gets the model as its own
``simplify`` leaves it. What its pruning removes of that is told as a share of the original, like ours: that simplifying
drops the unused rows of a table is no pruning. It prunes channels (residual streams among them) and whole
heads; the column after it says whether that is exact: whether its outputs are those of the simplified model with zeros
for what layers read no longer. *With blocks and vocabulary* is what it removes with its other two passes besides. These
are no pruning of channels: what a dropped block computed is lost, and tokens must be numbered anew to be fed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.numpy_helper import from_array, to_array
from rich.console import Console

from models import ARCHITECTURES, build
from models.emitter import graphs
from ucpe_onnx import prune
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.runtime.random_feeds import find_feeds
from ucpe_onnx.runtime.session import as_session, run

Row = dict[str, Any]

HEADER = (
    "| model | parameters | ours | seconds | onnxsim | seconds | its outputs | with blocks and vocabulary"
    " | most frozen channels: why |"
)

READ_AXES = {"Conv": 1, "ConvTranspose": 0, "MatMul": -2, "Gemm": 0}
"""The axis of a weight that belongs to the channels that are read; transB turns a Gemm's."""
EXACT = 1e-3


def ours(path: str, ratio: float) -> Row:
    """Prune: what is left, and why channels had to stay."""
    report = prune(path, ratio=ratio, mode="constrained", opt_level="extended", bench_seconds=0).report
    for left in report.left_alone:
        raise RuntimeError(f"segment {left.segment} was left alone: {left.reason}")
    frozen: Counter[str] = Counter()
    for segment in report.segments:
        frozen.update(segment.frozen_by)
    return {
        "before": report.before.parameters,
        "after": report.after.parameters,
        "frozen": dict(frozen.most_common(5)),
    }


def onnxsim(path: str, ratio: float) -> Row:
    """Simplify, prune channels and heads, run, and compare with the masked model; then blocks and vocabulary."""
    import onnxsim as tool  # noqa: PLC0415  # an optional dependency

    model = onnx.load(path)
    feeds = find_feeds(model)
    shapes = {name: value.shape for name, value in feeds.items()}
    simplified, _ = tool.simplify(model)
    pruned = tool.apply_structured_pruning(simplified, sparsity=ratio)
    pruned = tool.apply_attention_head_pruning(pruned, sparsity=ratio)
    expected, masked, found = (run(as_session(m), feeds) for m in (model, masked_as(simplified, pruned), pruned))
    if [value.shape for value in found] != [value.shape for value in expected]:
        raise ValueError("the outputs have other shapes")
    further = tool.apply_transformer_block_pruning(pruned, sparsity=ratio)
    further = tool.apply_embedding_vocab_magnitude_pruning(further, sparsity=ratio).model
    whole, before, after, last = (model_stats(each, shapes).parameters for each in (model, simplified, pruned, further))
    return {
        "before": whole,
        "after": whole - (before - after),
        "apart": farthest(found, masked),
        "further": (before - last) / max(whole, 1),
    }


def masked_as(model: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto:
    """The model with zeros for what layers of a pruned one read no longer: what that should compute.

    Which input channels a layer has kept is seen from its weights' values, which are random and so tell it.

    Raises:
        ValueError: the pruned model has no weight of this name.
    """
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    stored = {tensor.name: tensor for graph in graphs(masked.graph) for tensor in graph.initializer}
    left = {tensor.name: to_array(tensor) for graph in graphs(pruned.graph) for tensor in graph.initializer}
    for node in (node for graph in graphs(model.graph) for node in graph.node):
        name = node.input[1] if node.op_type in READ_AXES else ""
        if name not in stored:
            continue
        if name not in left:
            raise ValueError(f"the weight of {node.name} has gone")
        weight = to_array(stored[name])
        if left[name].shape != weight.shape:
            zeroed = np.where(_kept(node, weight, left[name]), weight, weight.dtype.type(0))
            stored[name].CopyFrom(from_array(zeroed, name))
    return masked


def _kept(node: onnx.NodeProto, weight: npt.NDArray[Any], left: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which elements of a weight read channels, each group its own, of which something is left."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    axis = numbers.get("transB", 0) if node.op_type == "Gemm" else READ_AXES[node.op_type] % weight.ndim
    groups = numbers.get("group", 1) if node.op_type == "Conv" else 1
    parted = np.isin(weight, left).reshape(groups, -1, *weight.shape[1:])
    others = tuple(other for other in range(1, parted.ndim) if other != axis + 1)
    present = parted.mean(axis=others, keepdims=True)  # by chance some always are
    kept: npt.NDArray[np.bool_] = np.broadcast_to(present > 0.5 * present.max(), parted.shape).reshape(weight.shape)
    return kept


def farthest(found: list[npt.NDArray[Any]], expected: list[npt.NDArray[Any]]) -> float:
    """The largest difference of outputs, over the largest element where that is above one."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.size and a.dtype.kind == "f"]
    return max((float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs), default=0.0)


TOOLS = {"ours": ours, "onnxsim": onnxsim}


def measure(tool: str, file: Path, ratio: float, limit: float) -> Row:
    """One tool on one model, in a process of its own: a row, with "error" if there is no result."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--row", tool, str(file), "--ratio", str(ratio)]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit:.0f} s", "seconds": limit}
    row: Row = {"seconds": round(time.perf_counter() - start, 1)}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return row | {"error": said[:300]}
    row |= json.loads(lines[-1])
    return row | {"removed": 1 - row["after"] / max(row["before"], 1)}


def table_line(name: str, rows: dict[str, Row]) -> str:
    """One line of the table."""
    cells = [name, f"{rows['ours'].get('before', 0):,}"]
    for tool in TOOLS:
        row = rows.get(tool, {"error": "not run", "seconds": 0})
        cells += [f"fails: {row['error'][:60]}" if "error" in row else f"{row['removed']:.1%}", f"{row['seconds']:.0f}"]
    row = rows.get("onnxsim", {})
    cells += [
        ("exact" if row["apart"] <= EXACT else f"{row['apart']:.1g} apart") if "apart" in row else "",
        f"{row['further']:.1%}" if "further" in row and round(row["further"] - row["removed"], 3) else "",
    ]
    frozen = rows["ours"].get("frozen", {})
    cells.append("; ".join(f"{count}: {reason[:70]}" for reason, count in list(frozen.items())[:2]))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--json", type=Path, help="where to write everything")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each row")
    parser.add_argument("--only", choices=TOOLS, help="one tool alone")
    parser.add_argument("--row", choices=TOOLS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(TOOLS[args.row](args.models[0], args.ratio)))
        return
    results: dict[str, dict[str, Row]] = {}
    lines = [HEADER, "|---|--:|--:|--:|--:|--:|---|--:|---|"]
    console = Console(width=200, highlight=False)
    console.print("\n".join(lines), markup=False)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models or ARCHITECTURES:
            file = Path(name)
            if name in ARCHITECTURES:
                file = Path(folder) / f"{name}.onnx"
                onnx.save(build(name, image=ARCHITECTURES[name].small), str(file))
            tools = [args.only] if args.only else list(TOOLS)
            rows = {tool: measure(tool, file, args.ratio, args.limit) for tool in tools}
            results[file.stem] = rows
            lines.append(table_line(file.stem, {"ours": {"error": "not run", "seconds": 0}} | rows))
            console.print(lines[-1], markup=False, soft_wrap=True)
            if name in ARCHITECTURES:
                file.unlink()
            if args.json:
                args.json.write_text(json.dumps({"ratio": args.ratio, "models": results}, indent=1))
            if args.markdown:
                args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
