"""A few models of a few nodes, for tests of the command line and the pipeline, and what their runs are checked with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from tests.builders import Net
from ucpe_onnx.runtime.latency import CandidateLatency, LatencyReport


def branches(names: tuple[str, str, str, str] = ("/a/Conv", "/b/Conv", "/c/Conv", "fc")) -> onnx.ModelProto:
    """One producer of 16 channels with two consumers, whose sum of 8 channels a Gemm reads."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 8, 8)), 16, 3, name=names[0]))
    total = net.op("Add", net.conv(a, 8, 3, name=names[1]), net.conv(a, 8, name=names[2]))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", total)))
    weight, bias = net.weight(net.normal(4, 8)), net.weight(net.normal(4))
    net.ops("Gemm", pooled, weight, bias, transB=1, name=names[3], outputs=["y"])
    return net.output("y").model()


def wide() -> onnx.ModelProto:
    """A stem of 64 channels, two layers with a skip connection around them, a head of five classes."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 64, 3, name="stem"))
    b = net.op("Relu", net.conv(a, 64, name="left"))
    c = net.op("Add", net.conv(b, 64, name="right"), a)
    head = net.conv(c, 5, name="head")
    net.ops("GlobalAveragePool", head, outputs=["y"])
    return net.output("y").model()


def apart() -> onnx.ModelProto:
    """One producer of 64 channels with two consumers."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 16, 16, 16)), 64, 3, name="a"))
    return net.output(net.conv(a, 32, 3, name="b"), net.conv(a, 32, 3, name="c")).model()


def elementwise() -> onnx.ModelProto:
    """No consumer at all."""
    net = Net()
    net.ops("Relu", net.input("x", (1, 3, 8, 8)), outputs=["y"])
    return net.output("y").model()


def single_consumer() -> onnx.ModelProto:
    """A consumer that reads nothing but a graph input, all of whose channels are frozen."""
    net = Net()
    net.ops("Conv", net.input("x", (1, 3, 8, 8)), net.weight(net.normal(4, 3, 1, 1)), outputs=["y"], name="only")
    return net.output("y").model()


def write(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(model, str(path))
    return path


def sample(count: int = 4, dtype: type = np.float32) -> np.ndarray:
    """Data for the input of ``branches``."""
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(dtype)


def latency(*ratios: float, margin: float = 0.01, names: Iterable[str] = ("input", "output")) -> LatencyReport:
    """A measurement with given outcomes for all but the first candidate; the last one counts for the rest too."""
    baseline, *others = names
    given = [*ratios, *ratios[-1:] * len(others)]
    candidates = {baseline: CandidateLatency(1.0, 1.1, 1.2, 1.0, 1.0, 1.0)}
    for name, ratio in zip(others, given, strict=False):
        candidates[name] = CandidateLatency(ratio, ratio, ratio, ratio, ratio - margin, ratio + margin)
    return LatencyReport("input", candidates, rounds=30, runs_per_timing=1, seconds=0.1)
