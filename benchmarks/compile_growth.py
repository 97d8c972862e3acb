"""How the compiler's own time grows with the depth and the width of a network.

    python -m benchmarks.compile_growth [--svg FILE] [--json FILE] [--ratio 0.5] [--depths 18 ...] [--widths 1 ...]
    python -m benchmarks.compile_growth --operands 1000 4000    # a Concat of so many convolutions, as a table
    python -m benchmarks.compile_growth --blocks 500 1000       # so many residual blocks, as a table

Networks are ResNets of basic blocks on small images, whose longest trunk gets most of the further layers, so that the
number of consumers that one channel order has to suit grows with the depth. At width 1 the stages have 16 to 128
channels. Seconds are medians of three runs in one process, after one that nobody counts; those of the tables are of one
run. All are of the processor's time, of every thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from models.builder import Net
from models.resnet import basic_block
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.selection.criteria import score_consumers
from ucpe_onnx.selection.select import Selection, select_masks

STAGES = ("trace", "plan", "emit")
BASE = 16
"""Channels of the first stage at width 1."""

Row = Mapping[str, float]


def residual_network(depth: int, width: int) -> onnx.ModelProto:
    """A ResNet of about so many layers, ``width`` times as wide as the narrowest."""
    net = Net(f"resnet{depth}x{width}", seed=0, opset=17, fold_bn=False, shape=(1, 3, 32, 32), classes=10)
    blocks = max(4, (depth - 2) // 2)
    counts = [blocks // 8, blocks // 4, 0, blocks // 8]
    counts = [max(1, count) for count in counts]
    counts[2] = max(1, blocks - counts[0] - counts[1] - counts[3])
    x = net.relu(net.conv_bn(net.input, "conv1", "bn1", BASE * width, 3), "relu")
    for stage, count in enumerate(counts):
        for index in range(count):
            stride = 2 if stage and index == 0 else 1
            x = basic_block(net, x, f"layer{stage}.{index}", (BASE * width) << stage, stride)
    return net.finish(net.classify(x, "fc"))


def joined_network(operands: int) -> onnx.ModelProto:
    """A Concat of so many convolutions of eight channels, and a classifier that reads it."""
    net = Net(f"concat{operands}", seed=0, opset=17, fold_bn=False, shape=(1, 3, 8, 8), classes=10)
    x = net.concat([net.conv(net.input, f"conv{index}", 8, 1) for index in range(operands)], "concat")
    return net.finish(net.classify(x, "fc"))


def print_once(title: str, networks: Mapping[int, onnx.ModelProto], ratio: float) -> None:
    """A table of one run for each network."""
    table = Table(title=f"CPU seconds at ratio {ratio}")
    for column in (title, *STAGES, "sum"):
        table.add_column(column, justify="right")
    for number, model in networks.items():
        row = compile_once(model, ratio)
        total = sum(row[stage] for stage in STAGES)
        table.add_row(str(number), *(f"{row[stage]:.2f}" for stage in STAGES), f"{total:.2f}")
    Console(width=120).print(table)


def compile_once(model: onnx.ModelProto, ratio: float) -> dict[str, float]:
    """Seconds of the stages, and how far the solver's bound is from what it chose."""
    marks = [time.process_time()]
    traced = trace(model)
    marks.append(time.process_time())
    masks = select_masks(traced, score_consumers(traced, "l2"), Selection(ratio))
    start = time.process_time()
    plan = make_plan(traced, masks, Settings())
    planned = time.process_time()
    emit(model, traced, plan)
    done = time.process_time()
    objective, bound = (sum(getattr(s, field) for s in plan.segments) for field in ("objective", "bound"))
    return {
        "trace": marks[1] - marks[0],
        "plan": planned - start,
        "emit": done - planned,
        "gap": abs(bound - objective) / max(abs(bound), abs(objective), 1e-9),
        "nodes": len(model.graph.node),
        "megabytes": model.ByteSize() / 1e6,
    }


def measured(depth: int, width: int, ratio: float) -> Row:
    """Median of three, after a warm-up."""
    model = residual_network(depth, width)
    runs = [compile_once(model, ratio) for _ in range(4)][1:]
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


@dataclass(frozen=True)
class Panel:
    """One chart: lines over a common horizontal axis.

    Attributes:
        title: what the horizontal axis counts.
        rows: figures by its values.
    """

    title: str
    rows: Mapping[int, Row]


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 300, 52, 74, 34, 44
COLOURS = {"trace": "#2563a8", "plan": "#c2571a", "emit": "#3a8a4d", "gap": "#777777"}


def picture(panels: Sequence[Panel]) -> str:
    """The charts side by side: seconds on the left axis, the solver's gap in percent, dashed, on the right one."""
    drawn = "".join(f'<g transform="translate({i * WIDTH} 0)">{_chart(p)}</g>' for i, p in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}"'
        f' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n'
    )


def _chart(panel: Panel) -> str:
    values = list(panel.rows)
    seconds = [panel.rows[v][stage] for v in values for stage in STAGES]
    top, top_gap = _round_up(max(seconds)), max(1.0, _round_up(max(100 * panel.rows[v]["gap"] for v in values)))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(value: float) -> float:
        return LEFT + (value - values[0]) / max(values[-1] - values[0], 1) * (right - LEFT)

    def up(share: float) -> float:
        return bottom - share * (bottom - TOP)

    parts = [f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{panel.title}</text>']
    parts.append(f'<text x="{LEFT}" y="18" text-anchor="middle">seconds</text>')
    parts.append(f'<text x="{right}" y="18" text-anchor="middle" fill="{COLOURS["gap"]}">gap, %</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = up(share)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
        parts.append(f'<text x="{right + 6}" y="{y + 4:.1f}" fill="{COLOURS["gap"]}">{top_gap * share:.3g}</text>')
    for value in values:
        parts.append(f'<text x="{across(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value}</text>')
    for key, scale in [*((stage, top) for stage in STAGES), ("gap", top_gap / 100)]:
        parts.append(_line(panel, key, across, lambda value, scale=scale: up(value / scale)))
    return "".join(parts) + _legend(right)


def _line(panel: Panel, key: str, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    points = [(across(value), up(row[key])) for value, row in panel.rows.items()]
    dashes = ' stroke-dasharray="4 3"' if key == "gap" else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{COLOURS[key]}"/>' for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{COLOURS[key]}" stroke-width="1.8"{dashes}/>{dots}'


def _legend(right: int) -> str:
    names = {"trace": "tracing", "plan": "planning", "emit": "emission", "gap": "gap"}
    return "".join(
        f'<rect x="{LEFT + 12}" y="{TOP + 6 + 16 * i}" width="12" height="3" fill="{COLOURS[key]}"/>'
        f'<text x="{LEFT + 30}" y="{TOP + 12 + 16 * i}">{name}</text>'
        for i, (key, name) in enumerate(names.items())
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten: ends of axes whose quarters are short numbers."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * 0.999))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--depths", type=int, nargs="+", default=[18, 34, 50, 102, 152, 202, 302])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 6, 8])
    parser.add_argument("--svg", type=Path, default=Path("compile_growth.svg"), help="where to draw it")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--operands", type=int, nargs="+", metavar="N", help="measure Concats of so many operands only")
    parser.add_argument("--blocks", type=int, nargs="+", metavar="N", help="measure so many residual blocks only")
    args = parser.parse_args()
    if args.operands or args.blocks:
        compile_once(residual_network(18, 1), args.ratio)  # imports are behind us
        if args.operands:
            print_once("operands", {number: joined_network(number) for number in args.operands}, args.ratio)
        if args.blocks:
            print_once("blocks", {n: residual_network(2 * n + 2, 1) for n in args.blocks}, args.ratio)
        return
    table = Table(title=f"compile time at ratio {args.ratio}")
    for column in ("depth", "width", "nodes", "MB", "trace s", "plan s", "emit s", "gap"):
        table.add_column(column, justify="right")
    panels = []
    for title, settings in (
        (f"layers, {BASE} to {BASE * 8} channels", {depth: (depth, 1) for depth in args.depths}),
        (f"width, times {BASE} to {BASE * 8} channels, 34 layers", {width: (34, width) for width in args.widths}),
    ):
        rows = {}
        for value, (depth, width) in settings.items():
            row = rows[value] = measured(depth, width, args.ratio)
            figures = (f"{row[stage]:.3f}" for stage in STAGES)
            table.add_row(
                str(depth), str(width), f"{row['nodes']:.0f}", f"{row['megabytes']:.1f}", *figures, f"{row['gap']:.1%}"
            )
        panels.append(Panel(title, rows))
    Console(width=120).print(table)
    args.svg.write_text(picture(panels), encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps({panel.title: panel.rows for panel in panels}, indent=1))


if __name__ == "__main__":
    main()
