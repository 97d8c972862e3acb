"""The main job with default options on many models: exit code, size, speed, accuracy.

    python -m benchmarks.main_job [MODEL.onnx | ARCHITECTURE ...] [--data FILE.npz] [-- FLAGS OF THE MAIN JOB]

Without models: the shipped network and every architecture of ``models/``. Latency ratios are medians over interleaved
rounds in one process, with their 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from models import ARCHITECTURES, build

DIGITS = Path(__file__).parents[1] / "models" / "digits.onnx"


def run_job(model: Path, folder: Path, flags: list[str]) -> tuple[int, dict[str, Any] | None, str]:
    """Run the command line on one model: exit code, report, last line on stderr."""
    out = folder / "out.onnx"
    command = [sys.executable, "-m", "ucpe_onnx", str(model), str(out), "-q", "--json", "-", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.stdout else None
    out.unlink(missing_ok=True)
    return done.returncode, found, (done.stderr.strip().splitlines() or [""])[-1]


def cells(code: int, report: dict[str, Any] | None, message: str) -> list[str]:
    """One row of the table."""
    if report is None:
        return [str(code), message[:60], *[""] * 5]
    before, after, latency = report["before"], report["after"], report["latency"]["candidates"]["output"]
    accuracy = report["accuracy"]
    return [
        str(code),
        report["mode"],
        f"{1 - after['parameters'] / before['parameters']:.0%}" if before["parameters"] else "",
        f"{1 - after['macs'] / before['macs']:.0%}" if before["macs"] and after["macs"] else "",
        " ".join(f"{count:+d} {op}" for op, count in report["copies_added"].items()),
        f"{latency['ratio']:.3f} ({latency['low']:.3f}-{latency['high']:.3f})",
        f"{accuracy['before']:.1%} -> {accuracy['after']:.1%}" if accuracy else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--data", help="labelled samples that fit all models")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    args, flags = parser.parse_args(given[:split]), given[split + 1 :]
    table = Table(title=f"main job {' '.join(flags) or 'with default options'}")
    for column in ("model", "exit", "mode", "parameters", "MACs", "copies", "latency ratio", "top-1"):
        table.add_column(column)
    names = args.models or [str(DIGITS), *ARCHITECTURES]
    with tempfile.TemporaryDirectory() as scratch, Live(table, console=Console(width=150)):
        folder = Path(scratch)
        for name in names:
            file, data = Path(name), ["--data", args.data] if args.data else []
            if name in ARCHITECTURES:
                file = folder / f"{name}.onnx"
                onnx.save(build(name), str(file))
            elif file == DIGITS and not data:
                data = ["--data", str(DIGITS.with_name("digits_test.npz"))]
            table.add_row(file.stem, *cells(*run_job(file, folder, [*data, *flags])))
            if name in ARCHITECTURES:
                file.unlink()


if __name__ == "__main__":
    main()
