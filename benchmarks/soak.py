"""Whether jobs leave anything behind: hundreds of them in one process, and what the process then holds.

    python -m benchmarks.soak [--jobs 504] [--every 63] [--json FILE]

Jobs go round through models and options: the shipped network with samples and a target, small architectures in several
lowerings, models from files with external data, and jobs that fail. Every so often resident memory, threads, open files
and what lies in the folder for temporary files are noted; the first rounds, which fill caches, don't count. The exit
code is 1 if any of them has grown.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from models import build
from ucpe_onnx import UcpeError, prune, save_model

ROOT = Path(__file__).resolve().parents[1] / "models"

GROWTH_MB = 32.0
"""Resident memory that may come and go between two samples: allocators keep what they have freed."""

WARM_UP = 0.2
"""Share of the jobs that fill caches."""


@dataclass(frozen=True)
class Held:
    """What the process holds after so many jobs.

    Attributes:
        jobs: jobs so far.
        memory_mb: resident memory.
        threads: of the system, the runtime's among them.
        files: open files.
        temporary: entries in the folder for temporary files.
    """

    jobs: int
    memory_mb: float
    threads: int
    files: int
    temporary: int


def jobs(folder: Path) -> Iterator[Callable[[], object]]:
    """Jobs without end."""
    digits, samples = str(ROOT / "digits.onnx"), str(ROOT / "digits_calib.npz")
    small = build("mobilenet_v2", image=32)
    external = folder / "external.onnx"
    save_model(build("resnet20_cifar"), external, external_data=True)
    common = {"bench_seconds": 0, "threads": 1}
    masks = {"conv1": np.zeros(3, bool)}  # no such layer
    kinds: list[Callable[[], object]] = [
        lambda: prune(digits, data=samples, **common),
        lambda: prune(digits, target_macs=0.7, **common),
        lambda: prune(small, lowering="gather", ratio=0.5, mode="unconstrained", **common),
        lambda: prune(small, lowering="partial", ratio=0.5, solver_seconds=0.2, **common),
        lambda: save_model(prune(external, **common).model, folder / "out.onnx", external_data=True),
        lambda: prune(digits, masks=masks, **common),
        lambda: prune(digits, ratio=0.5, bench_seconds=0.2, threads=2),
    ]
    return cycle(kinds)


def held(done: int) -> Held:
    """Look at the process; Linux tells."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Held(
        done,
        round(int(status["VmRSS"].split()[0]) / 1024, 1),
        int(status["Threads"]),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir(tempfile.gettempdir())),
    )


def grown(found: list[Held]) -> list[str]:
    """What has grown from the first sample after the warm-up to the last."""
    first, last = next(each for each in found if each.jobs >= WARM_UP * found[-1].jobs), found[-1]
    names = [name for name in ("threads", "files", "temporary") if getattr(last, name) > getattr(first, name)]
    return names + (["memory_mb"] if last.memory_mb > first.memory_mb + GROWTH_MB else [])


def main() -> int:
    """Run jobs and print what is held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=504)
    parser.add_argument("--every", type=int, default=63, help="a multiple of the number of kinds of jobs, 7")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console, found = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tmp").mkdir()
        tempfile.tempdir = str(Path(folder) / "tmp")
        for done, job in zip(count(1), islice(jobs(Path(folder)), args.jobs), strict=False):
            with suppress(UcpeError):
                job()
            if done % args.every == 0:
                found.append(held(done))
                console.print(found[-1], f"{threading.active_count()} of Python's own threads")
    table = Table("jobs", "resident MB", "threads", "open files", "temporary files")
    for each in found:
        table.add_row(*(str(value) for value in asdict(each).values()))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in found]))
    left = grown(found)
    console.print(f"grown: {', '.join(left)}" if left else "nothing has grown")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
