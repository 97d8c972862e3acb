"""Seconds and peak memory of whole jobs with calibration samples, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.accuracy_cases import Case
from benchmarks.accuracy_methods import Row

SAMPLES = 512
RATIO = "0.25"

JOBS: Mapping[str, Sequence[str]] = {
    "without data": ("--criterion", "l2"),
    "compensated": ("--criterion", "l2", "--data"),
    "statistics": ("--criterion", "reconstruction", "--no-compensate", "--data"),
    "statistics, compensated": ("--criterion", "reconstruction", "--data"),
}
"""Flags of the jobs, by the name in the table; the path of the samples follows ``--data``."""

_KIBIBYTE = 1024
"""What Linux counts resident memory in."""

_WATCHED = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a job between: a process counts the memory of the one that started it, until it has loaded its own program."""


def costs(case: Case) -> list[Row]:
    """One row for each job: seconds of its stages and of the whole process, and the most memory it had."""
    samples = {name: array[:SAMPLES] for name, array in case.calibration.items()}
    count = len(next(iter(samples.values())))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        onnx.save(case.model, str(folder / "in.onnx"))
        np.savez(folder / "samples.npz", **samples)
        for name, flags in JOBS.items():
            row = {"section": "cost", "model": case.name, "method": name, "samples": count if "--data" in flags else 0}
            rows.append(row | run_job(folder, flags, case.threads))
    return rows


def run_job(folder: Path, flags: Sequence[str], threads: int) -> Row:
    """Run the command line: seconds in all and by stage, and peak resident memory in bytes."""
    data = [str(folder / "samples.npz")] if "--data" in flags else []
    fixed = ["--ratio", RATIO, "--threads", str(threads), "--bench-seconds", "0", "-q"]
    command = [sys.executable, "-m", "ucpe_onnx", str(folder / "in.onnx"), str(folder / "out.onnx"), *flags, *data]
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *command, *fixed, "--json", str(report)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if not report.exists():
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return {"seconds": seconds, "stages": found["seconds"], "peak": int(done.stdout) * _KIBIBYTE}
