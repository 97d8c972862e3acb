"""What it takes for a reader of channels that must stay to select half of them: predicted beside measured.

    python -m benchmarks.selecting [--threads 1] [--positions 197]

A feed-forward block of a transformer, four times as wide inside, behind a LayerNormalization. Ratios are latencies with
half of the channels selected for its first layer, over those of the block as it is.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from tests.builders import Net
from ucpe_onnx import prune
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.rates import Rates, default_rates
from ucpe_onnx.planning.selecting import selecting_readers
from ucpe_onnx.runtime.latency import measure
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import Target, target_for

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)


def block(width: int, positions: int) -> onnx.ModelProto:
    """The block."""
    net = Net()
    x = net.input("x", (1, positions, width))
    scale, shift = net.weight(np.ones(width)), net.weight(np.zeros(width))
    normal = net.op("LayerNormalization", x, scale, shift, axis=-1)
    up = net.op("MatMul", normal, net.weight(net.normal(width, 4 * width)), name="up")
    down = net.op("MatMul", net.op("Relu", up), net.weight(net.normal(4 * width, width)), name="down")
    return net.output(net.op("Add", x, down)).model()


def costs_of(traced: Trace, target: Target, rates: Rates) -> Costs:
    """What its nodes are predicted to cost."""
    return Costs(traced, target, rates, lambda axis: traced.slots.axes[axis].size, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--positions", type=int, default=197)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    options = RunOptions(threads=args.threads)
    target = target_for(options.providers, options.opt_level, "float32")
    rates = default_rates(target, args.threads)
    table = Table("width", "offered", "first layer, predicted", "block, measured", "95 %")
    for width in WIDTHS:
        model = block(width, args.positions)
        costs = costs_of(trace(model), target, rates)
        mask = np.arange(width) % 2 == 0
        selected = prune(model, masks={"up": mask}, lowering="gather", threads=args.threads, bench_seconds=0).model
        consumer = costs.trace.consumers["up"]
        whole, half = costs.reads_us(consumer, np.array([width, width // 2]))
        predicted = (half + costs.selects_us(str(consumer.use.tensor_axis[0]), 2, width, width // 2)) / whole
        feeds = {"x": np.random.default_rng(0).normal(size=(1, args.positions, width)).astype(np.float32)}
        found = measure(
            {"input": model, "selected": selected}, feeds, options, baseline="input", seconds=args.seconds, reloads=10
        )
        ratio = found["selected"]
        measured = ("busy", "") if found.busy else (f"{ratio.ratio:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}")
        offered = "up" in selecting_readers(costs.trace, target, rates, lambda _: 0.5)
        table.add_row(str(width), "yes" if offered else "no", f"{predicted:.2f}", *measured)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
