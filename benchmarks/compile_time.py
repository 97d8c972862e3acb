"""Time and memory of the compiler itself: trace, select, solve, rewrite, on real architectures.

    python -m benchmarks.compile_time [ARCHITECTURE ...] [--ratio 0.5]

Each architecture runs in a process of its own, so that its peak memory is its own. The peak counts everything that the
stages hold at once, the input model included, over the process as it was before the model was loaded. Seconds are the
processor's, of every thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
from rich.console import Console
from rich.table import Table

from models import ARCHITECTURES, DEEP, build
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.selection.criteria import score_consumers
from ucpe_onnx.selection.select import Selection, select_masks

PUBLISHED = {"resnet18": 0.7, "resnet50": 8.7, "densenet121": 7.2, "efficientnet_v2_s": 26.0}
"""Seconds that the published system (PyTorch) takes for the same stages on a comparable machine."""

STAGES = ("trace", "select", "solve", "rewrite")


def compile_once(path: str, ratio: float) -> dict[str, float]:
    """Run the stages on a file; seconds by stage, and the peak of memory over the start in bytes."""
    reset_peak()
    before = memory("VmRSS")
    model = onnx.load(path)
    marks = [time.process_time()]
    traced = trace(model)
    marks.append(time.process_time())
    scores = score_consumers(traced, "l2")
    masks = select_masks(traced, scores, Selection(ratio))
    marks.append(time.process_time())
    plan = make_plan(traced, masks, Settings(), scores)
    marks.append(time.process_time())
    emitted = emit(model, traced, plan)
    marks.append(time.process_time())
    result = {stage: b - a for stage, a, b in zip(STAGES, marks, marks[1:], strict=False)}
    return result | {"peak": memory("VmHWM") - before, "nodes": len(emitted.graph.node)}


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Forget earlier peaks of this process's memory, where Linux lets us."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        cold = compile_once(args.file, args.ratio)
        warm = compile_once(args.file, args.ratio)  # imports and page faults are behind us, as in the published figures
        print(json.dumps(warm | {"peak": cold["peak"]}))
        return
    table = Table(title=f"compile time at ratio {args.ratio}: seconds, and peak memory over the size of the model file")
    for column in ("architecture", "MB", *STAGES, "sum", "published", "share", "peak / file"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.architectures or (*ARCHITECTURES, *DEEP):
            file = Path(folder) / f"{name}.onnx"
            onnx.save(build(name), str(file))
            command = [sys.executable, "-m", "benchmarks.compile_time", "--file", str(file), "--ratio", str(args.ratio)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = file.stat().st_size
            file.unlink()
            total = sum(row[stage] for stage in STAGES)
            known = PUBLISHED.get(name)
            table.add_row(
                name,
                f"{size / 1e6:.1f}",
                *(f"{row[stage]:.3f}" for stage in STAGES),
                f"{total:.3f}",
                f"{known:.1f}" if known else "",
                f"{total / known:.2f}" if known else "",
                f"{row['peak'] / size:.2f}",
            )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
