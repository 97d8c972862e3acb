"""Whether the clock tells the truth: pairs of known ratio, timed while other programs keep the cores busy.

    python -m benchmarks.clock [--repeats 4] [--seconds 1.5] [--json FILE]

Pairs are a network against itself, whose ratio is 1, and against one of a half, or of nine tenths, of its layers, whose
ratio is measured at length beforehand, on the machine as it is then: nothing else may run. Then every pair is timed
beside 0, 2 and 8 processes that do nothing but compute, as important as the measurement or niced, and every verdict is
held against the truth: an interval should hold it in 95 of 100 cases, and nothing may be called faster that is not.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from ucpe_onnx.runtime.latency import LatencyReport, measure
from ucpe_onnx.runtime.session import RunOptions

LAYERS = 20
SIZES = {"0.5 ms": 14, "5 ms": 48, "40 ms": 136}
"""Heights and widths of the feature maps, by about what a network takes on one core."""

SHARES = {"itself": LAYERS, "nine tenths": LAYERS * 9 // 10, "half": LAYERS // 2}
"""Layers of the candidate."""

LOADS = ((0, 0), (2, 0), (2, 19), (8, 0), (8, 19))
"""Busy processes, and how nice they are."""

CHANNELS = 32
EQUAL = 0.005
"""What differs by less than this share from another may be called equal to it."""


@dataclass(frozen=True)
class Verdict:
    """One measurement beside the truth."""

    size: str
    pair: str
    threads: int
    processes: int
    nice: int
    truth: float
    ratio: float
    low: float
    high: float
    faster: bool
    slower: bool
    busy: str
    seconds: float
    interrupted: float

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth."""
        return self.low <= self.truth <= self.high

    @property
    def wrong(self) -> bool:
        """Whether something is called faster, or slower, that is not."""
        return (self.faster and self.truth > 1 - EQUAL) or (self.slower and self.truth < 1 + EQUAL)


def network(layers: int, size: int) -> onnx.ModelProto:
    """A chain of convolutions of 3x3, each with a Relu."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / math.sqrt(9 * CHANNELS)).astype(np.float32)
    nodes, tensors, x = [], [], "x"
    for index in range(layers):
        tensors.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        x = f"r{index}"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, size, size]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _burn(nice: int) -> None:
    os.nice(nice)
    while True:
        sum(range(10_000))


@contextmanager
def busy(processes: int, nice: int) -> Iterator[None]:
    """So many processes that compute."""
    burning = [multiprocessing.Process(target=_burn, args=(nice,), daemon=True) for _ in range(processes)]
    for process in burning:
        process.start()
    time.sleep(0.3 if processes else 0)
    try:
        yield
    finally:
        for process in burning:
            process.terminate()
            process.join()


def timed(size: str, pair: str, threads: int, *, seconds: float, seed: int, reloads: int) -> LatencyReport:
    """Time a pair."""
    models = {"input": network(LAYERS, SIZES[size]), "output": network(SHARES[pair], SIZES[size])}
    feed = {"x": np.ones((1, CHANNELS, SIZES[size], SIZES[size]), np.float32)}
    options = RunOptions(threads=threads)
    return measure(
        models,
        feed,
        options,
        baseline="input",
        seconds=seconds,
        limit=2 * seconds,
        reloads=reloads,
        seed=seed,
    )


def verdicts(repeats: int, seconds: float, truth_seconds: float, console: Console) -> Iterator[Verdict]:
    """All pairs beside all loads, over and over."""
    cases = list(product(SIZES, SHARES, (1, os.cpu_count() or 1)))
    truths = {}
    for size, pair, threads in cases:
        found = (
            1.0
            if pair == "itself"
            else timed(size, pair, threads, seconds=truth_seconds, seed=0, reloads=10)["output"].ratio
        )
        truths[size, pair, threads] = found
    console.print({" ".join(map(str, case)): round(truth, 3) for case, truth in truths.items()})
    for repeat, (processes, nice), (size, pair, threads) in product(range(repeats), LOADS, cases):
        with busy(processes, nice):
            start = time.perf_counter()
            report = timed(size, pair, threads, seconds=seconds, seed=repeat, reloads=6)
            spent = time.perf_counter() - start
        out = report["output"]
        yield Verdict(
            size, pair, threads, processes, nice, truths[size, pair, threads],
            out.ratio, out.low, out.high, out.faster, out.slower, report.busy, spent,
            report.interrupted / max(report.timings, 1),
        )  # fmt: skip


def table(found: list[Verdict], seconds: float) -> Table:
    """One row for each load of the machine."""
    columns = (
        "busy processes",
        "verdicts",
        "told to be busy",
        "intervals that hold the truth",
        "wrong",
        "median width",
    )
    shown = Table(*columns, "timings interrupted", "time over the asked")
    groups = defaultdict(list)
    for verdict in found:
        nice = " niced" if verdict.nice else ""
        groups[f"{verdict.processes}{nice}"].append(verdict)
        groups["all"].append(verdict)
    for name in [*(key for key in groups if key != "all"), "all"]:
        group = groups[name]
        decided = [verdict for verdict in group if not verdict.busy]
        holding = f"{np.mean([v.holds for v in decided]):.1%}" if decided else ""
        width = f"{np.median([v.high / v.low - 1 for v in decided]):.1%}" if decided else ""
        spent = [verdict.seconds / seconds for verdict in group]
        shown.add_row(
            name, str(len(group)), str(len(group) - len(decided)), holding, str(sum(v.wrong for v in decided)), width,
            f"{np.mean([v.interrupted for v in group]):.0%}", f"{np.median(spent):.2f} (most {max(spent):.2f})",
        )  # fmt: skip
    return shown


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--truth-seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console(width=140)
    found = []
    for verdict in verdicts(args.repeats, args.seconds, args.truth_seconds, console):
        found.append(verdict)
        if args.json:
            args.json.write_text(json.dumps([asdict(each) for each in found]))
    console.print(table(found, args.seconds))
    console.print(Counter(verdict.busy.split(" interrupted")[0] for verdict in found if verdict.busy))


if __name__ == "__main__":
    main()
