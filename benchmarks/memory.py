"""Peak memory of the main job with default options, over the size of the model.

    python -m benchmarks.memory [MODEL ...] [--stages] [--json FILE]

Each model is written by one process and pruned by another, `python -m ucpe_onnx in.onnx out.onnx --allow-slower`, whose
peak is what the system counts for it at its end: resident pages, those of mapped files too. Anonymous memory, which
no file stands behind, is sampled meanwhile. `--stages` runs the job once more with the peak of each stage of its own.

The large models have 2.1 GB of random weights in external data; they take about 8 GB of disk in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from benchmarks.compile_time import reset_peak
from models import build
from ucpe_onnx import prune, save_model

SMALL = ("resnet50", "vgg16_bn")
"""Architectures of :mod:`models` that are measured beside the large ones."""

PERIOD = 0.01
"""Seconds between two samples of anonymous memory."""


class Streamed:
    """A model whose weights go to a file as they are made."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "in.onnx"
        self.stream = (folder / "in.onnx.data").open("wb")
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, *shape: int) -> str:
        """A weight, scaled so that sums over all axes but the first have a variance near 2."""
        name = f"w{len(self.weights)}"
        value = self.random.standard_normal(shape, dtype=np.float32)
        value *= (2 / np.prod(shape[1:])) ** 0.5
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        offset = self.stream.tell()
        for key, entry in (("location", "in.onnx.data"), ("offset", offset), ("length", self.stream.write(value))):
            tensor.external_data.add(key=key, value=str(entry))
        self.weights.append(tensor)
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node; returns what it makes."""
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def write(self, inputs: list[int], out: str, outputs: list[int]) -> Path:
        """The file of the whole."""
        made = [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)]
        self.nodes.append(helper.make_node("Identity", [out], ["y"], name="y"))
        results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)]
        graph = helper.make_graph(self.nodes, "large", made, results, self.weights)
        opsets = [helper.make_opsetid("", 17)]
        self.stream.close()
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(self.file))
        return self.file


def mlp(folder: Path) -> Path:
    """Gemm and Relu in a row: 8 x 8192 x 8192."""
    net, x = Streamed(folder), "x"
    for _ in range(8):
        x = net.op("Relu", net.op("Gemm", x, net.weight(8192, 8192), transB=1))
    return net.write([1, 8192], x, [1, 8192])


def transformer(folder: Path) -> Path:
    """The feed-forward halves of 16 transformer layers, hidden width 2048, inner width 8192."""
    net, x = Streamed(folder), "x"
    for _ in range(16):
        inner = net.op("Relu", net.op("MatMul", x, net.weight(2048, 8192)))
        x = net.op("Add", x, net.op("MatMul", inner, net.weight(8192, 2048)))
    return net.write([1, 8, 2048], x, [1, 8, 2048])


def transposed(folder: Path) -> Path:
    """The same with weights that are stored the other way round, as some exporters write them."""
    net, x = Streamed(folder), "x"
    for _ in range(16):
        inner = net.op("Relu", net.op("MatMul", x, net.op("Transpose", net.weight(8192, 2048), perm=[1, 0])))
        turned = net.op("Transpose", net.weight(2048, 8192), perm=[1, 0])
        x = net.op("Add", x, net.op("MatMul", inner, turned))
    return net.write([1, 8, 2048], x, [1, 8, 2048])


def convolutions(folder: Path) -> Path:
    """3 x 3 convolutions in a row: 14 x 2048 x 2048 x 3 x 3."""
    net, x = Streamed(folder), "x"
    for _ in range(14):
        x = net.op("Relu", net.op("Conv", x, net.weight(2048, 2048, 3, 3), pads=[1, 1, 1, 1]))
    return net.write([1, 2048, 4, 4], x, [1, 2048, 4, 4])


LARGE: dict[str, Callable[[Path], Path]] = {f.__name__: f for f in (mlp, transformer, transposed, convolutions)}


def write_model(name: str, folder: Path) -> None:
    """Write ``in.onnx``, with its weights beside it where they are large."""
    if name in LARGE:
        LARGE[name](folder)
    else:
        onnx.save(build(name), str(folder / "in.onnx"))


def memory(field: str, process: int | str = "self") -> int:
    """A field of a process's status in bytes; 0 where there is no such file, or no longer."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def run_job(folder: Path) -> dict[str, float]:
    """The main job in a process of its own: peaks in bytes, and seconds."""
    command = [sys.executable, "-m", "ucpe_onnx", "in.onnx", "out.onnx", "--allow-slower", "-q"]
    start, anonymous = time.perf_counter(), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, cwd=folder, env=environment) as process:
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            anonymous = max(anonymous, memory("RssAnon", process.pid))
            time.sleep(PERIOD)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the main job failed with exit code {process.returncode}")
    return {"peak": usage.ru_maxrss * 1024, "anonymous": anonymous, "seconds": time.perf_counter() - start}


def run_stages(folder: Path) -> dict[str, dict[str, int]]:
    """The main job in this process: peaks in bytes by stage, a stage that runs twice with the larger ones."""
    peaks: dict[str, dict[str, int]] = {}
    stage = "start"

    def note(at: str) -> None:
        here = peaks.setdefault(at, {"peak": 0, "anonymous": 0})
        here["peak"] = max(here["peak"], memory("VmHWM"))
        here["anonymous"] = max(here["anonymous"], memory("RssAnon"))

    def enter(following: str) -> None:
        nonlocal stage
        note(stage)
        reset_peak()
        stage = following

    def sample() -> None:
        while not ended.wait(PERIOD):
            note(stage)

    ended = threading.Event()
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        result = prune(folder / "in.onnx", progress=enter)
        enter("save")
        save_model(result.model, folder / "out.onnx")
        enter("end")
    finally:
        ended.set()
        sampler.join()
    return peaks


def measured(name: str, stages: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one model: what is measured, and its numbers."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        module = [sys.executable, "-m", "benchmarks.memory", "--folder", scratch]
        subprocess.run([*module, "--write", name], check=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        yield "job", {"size": size, **run_job(folder)}
        if stages:
            for file in folder.glob("out.onnx*"):
                file.unlink()
            found = json.loads(subprocess.run([*module, "--in-stages"], check=True, capture_output=True).stdout)
            for stage, peaks in found.items():
                yield stage, {"size": size, **peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"{', '.join(LARGE)}, or one of models.ARCHITECTURES"
    )
    parser.add_argument("--stages", action="store_true", help="tell the peak of each stage too")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--in-stages", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_model(args.write, args.folder)
        return
    if args.in_stages:
        print(json.dumps(run_stages(args.folder)))
        return
    table = Table(title="peak memory of the main job over the size of the model")
    for column in ("model", "stage", "MB", "peak MB", "peak / size", "anonymous / size", "seconds"):
        table.add_column(column, justify="right")
    rows = []
    for name in args.models or (*LARGE, *SMALL):
        for stage, row in measured(name, args.stages):
            rows.append({"model": name, "stage": stage, **row})
            cells = (f"{row['size'] / 1e6:.0f}", f"{row['peak'] / 1e6:.0f}", f"{row['peak'] / row['size']:.2f}")
            seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
            table.add_row(name, stage, *cells, f"{row['anonymous'] / row['size']:.2f}", seconds)
            print(json.dumps(rows[-1]), file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
