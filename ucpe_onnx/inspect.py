"""``python -m ucpe_onnx.inspect MODEL``: what may be pruned, what is frozen, and why; what onnxruntime makes of it."""

from __future__ import annotations

if __name__ == "__main__":  # before what follows is imported, which the child alone needs
    from ucpe_onnx.commands.supervisor import supervise

    supervise()

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.commands.guard import guarded, library_output_to_stderr
from ucpe_onnx.commands.shared import (
    Parser,
    add_common,
    check_outputs,
    make_console,
    write_json,
)
from ucpe_onnx.errors import EXIT_DONE, ModelError
from ucpe_onnx.flags import add_flag, given
from ucpe_onnx.model.files import external_files
from ucpe_onnx.model.source import ModelSource, open_source
from ucpe_onnx.options import Options
from ucpe_onnx.runtime.optimised import KINDS, Finding, OptimisedGraph, read_optimised
from ucpe_onnx.runtime.optimised_pair import attributed
from ucpe_onnx.runtime.random_feeds import input_shapes
from ucpe_onnx.runtime.session import RunOptions, resolve_providers
from ucpe_onnx.samples.inputs import input_specs

_KINDS = 8
"""Kinds of nodes that were not followed that the listing names."""

_LISTED = 30
"""Findings that are listed without being asked for all."""


def listing(model: ModelSource) -> dict[str, Any]:
    """List consumers and segments in the public format.

    Args:
        model: path, ModelProto or graphsurgeon Graph.

    Returns:
        ``{"consumers": [{"name", "op_type", "weight", "channels", "prunable", "segment"}],
        "segments": [{"id", "producers", "consumers", "slots", "frozen", "reason", "frozen_by"}],
        "not_followed": [...]}``:
        ``prunable`` holds channel indices, ``slots`` a count, ``frozen`` slot numbers, ``reason`` why they are ("" if
        none is), ``frozen_by`` how many of them each reason was the first to freeze, ``not_followed`` sentences on
        other nodes.

    Raises:
        ModelError: the model can't be read.
    """
    return describe(trace(open_source(model).model))


def describe(traced: Trace) -> dict[str, Any]:
    """The listing of an analysed model; see :func:`listing`."""
    return {
        "consumers": [
            {
                "name": name,
                "op_type": consumer.use.node.op_type,
                "weight": consumer.use.weight,
                "channels": consumer.channels,
                "prunable": np.flatnonzero(consumer.prunable).tolist(),
                "segment": consumer.segment,
            }
            for name, consumer in traced.consumers.items()
        ],
        "segments": [
            {
                "id": segment.id,
                "producers": list(segment.producers),
                "consumers": list(segment.consumers),
                "slots": len(segment.classes),
                "frozen": np.flatnonzero(segment.frozen).tolist(),
                "reason": "; ".join(segment.reasons),
                "frozen_by": dict(segment.frozen_by),
            }
            for segment in traced.segments
        ],
        "not_followed": not_followed(traced),
    }


def prunable_share(traced: Trace) -> float:
    """Share of the consumers' weights that read a prunable channel, or make one."""
    slots = traced.slots
    known = [use for use in traced.producers if use.tensor_axis in slots.axes]
    stays = {use.node.name: float(slots.frozen[slots.axes[use.tensor_axis]].mean()) for use in known}
    weights = total = 0.0
    for consumer in traced.consumers.values():
        size = math.prod(traced.graph.constants.shape(consumer.use.weight) or ())
        total += size
        weights += size * (1.0 - float((~consumer.prunable).mean()) * stays.get(consumer.use.node.name, 1.0))
    return weights / total if total else 0.0


def not_followed(traced: Trace) -> list[str]:
    """Why nodes were not followed, where no segment tells: of what they touch not even the shapes are known, maybe."""
    told = {reason for segment in traced.segments for reason in segment.reasons}
    kinds = Counter(reason.rpartition(" at ")[0] or reason for reason in traced.stopped if reason not in told)
    lines = [
        f"not followed: {kind}" + (f" ({count} nodes)" if count > 1 else "") for kind, count in kinds.most_common()
    ]
    return lines[:_KINDS] + (
        [f"not followed: {len(lines) - _KINDS} more kinds of nodes"] if len(lines) > _KINDS else []
    )


def overridable_note(traced: Trace) -> str:
    """What pruning means for weights that callers may override, "" if there are none.

    From IR version 4 on an initializer that is a graph input too is a default value.
    """
    names = sorted(traced.graph.constants.overridable)
    if not names:
        return ""
    return (
        f"{len(names)} initializers ({names[0]!r} ...) are graph inputs too: they count as constants, and a caller who"
        " overrides a pruned one has to give it in its new shape"
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m ucpe_onnx.inspect``."""
    parser = Parser(
        prog="python -m ucpe_onnx.inspect",
        usage="%(prog)s in.onnx [options]",
        allow_abbrev=False,
        description="List what may be pruned in an ONNX model, what is frozen and why, or what onnxruntime makes of it."
        " Changes nothing.",
    )
    parser.add_argument("model", metavar="in.onnx", nargs="?", type=Path, help="model to look at")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write the listing as JSON (default: print it)"
    )
    _add_runtime(parser)
    add_common(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.model is None and args.json not in (None, "-"):  # "--json in.onnx" means what it looks like
        args.model, args.json = Path(args.json), "-"
    if args.model is None:
        parser.error("the following arguments are required: in.onnx")
    return guarded(lambda: _run(args), debug=args.debug)


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what onnxruntime makes of it")
    group.add_argument(
        "--runtime",
        action="store_true",
        help="show instead what its optimised graph holds beside the model's work: convolutions outside of the blocked"
        " layout, reorders, copies, Adds and activations that are not fused (with -v all of them)",
    )
    add_flag(group, Options, "input_shapes", help="shapes for inputs with dynamic dimensions, to count bytes for")
    for name in ("providers", "opt_level"):
        add_flag(group, Options, name)


def _run(args: argparse.Namespace) -> int:
    read = {"in.onnx": args.model} | {f"in.onnx's {file.name}": file for file in external_files(args.model)}
    check_outputs({"--json": None if args.json in (None, "-") else Path(args.json)}, read)
    with library_output_to_stderr():
        source = open_source(args.model)
        traced = trace(source.model)
        graph = _optimised(source.model, traced, args) if args.runtime else None
    if args.json:
        write_json(args.json, describe(traced) if graph is None else graph.to_dict())
    if not args.quiet and args.json != "-" and graph is not None:
        print_optimised(graph, make_console(), verbose=args.verbose)
    elif not args.quiet and args.json != "-":
        console = make_console()
        console.print(_consumers(traced, weights=args.verbose))
        console.print(_segments(traced))
        console.print(
            f"{prunable_share(traced):.0%} of the consumers' weights read or make channels that may be pruned"
        )
        for line in not_followed(traced):
            console.print(line)
        if note := overridable_note(traced):
            console.print(note)
    return EXIT_DONE


def _optimised(model: onnx.ModelProto, traced: Trace, args: argparse.Namespace) -> OptimisedGraph:
    """What onnxruntime makes of the model; bytes are counted only where the shapes of all inputs are known."""
    wanted = given(args, Options, ("input_shapes", "providers", "opt_level"))
    overrides = wanted["input_shapes"]
    try:
        shapes = input_shapes(input_specs(model), overrides)
    except ModelError:  # an open axis: the graph is the same whatever its size
        shapes = overrides
    options = RunOptions(resolve_providers(wanted["providers"]), opt_level=wanted["opt_level"])
    return attributed(read_optimised(model, options, shapes), traced)


def print_optimised(graph: OptimisedGraph, console: Console, *, verbose: bool = False) -> None:
    """Print what onnxruntime made of a model.

    Args:
        graph: its optimised graph.
        console: where to print.
        verbose: list all findings, not only the first.
    """
    layouts = (("in blocks", graph.blocked), ("in the plain layout", graph.plain), ("in int8", graph.quantised))
    console.print(
        f"{graph.nodes:,} nodes in onnxruntime's optimised graph; convolutions: "
        + (", ".join(f"{count:,} {layout}" for layout, count in layouts if count) or "none")
        + ("" if graph.block else "; this session has no blocked layout")
    )
    totals = Table(title="beside the model's work")
    for column in ("", "number", "bytes in one run"):
        totals.add_column(column, justify="right" if column else "left")
    for kind, count in graph.counts().items():
        moved = graph.bytes(kind) if kind in ("reorder", "copy") else 0
        totals.add_row(KINDS[kind][1], f"{count:,}", "unknown" if moved is None else f"{moved:,}" if moved else "")
    console.print(totals)
    if graph.findings:
        listed = graph.by_weight() if verbose else graph.by_weight()[:_LISTED]
        console.print(_findings(listed))
        if len(graph.findings) > len(listed):
            console.print(f"and {len(graph.findings) - len(listed):,} more: -v")


def _findings(findings: Sequence[Finding]) -> Table:
    table = Table(title="where and why")
    table.add_column("op", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("why", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("segment", justify="right", no_wrap=True)
    for finding in findings:
        moved = "" if finding.bytes is None else f"{finding.bytes:,}"
        segment = "" if finding.segment is None else str(finding.segment)
        table.add_row(finding.op, finding.name, finding.why, moved, segment)
    return table


def _consumers(traced: Trace, *, weights: bool) -> Table:
    table = Table(title="consumers")
    table.add_column("name", overflow="fold")
    table.add_column("op")
    for column in ("channels", "prunable", "segment"):
        table.add_column(column, justify="right", no_wrap=True)
    if weights:
        table.add_column("weight", overflow="fold")
    for name, consumer in traced.consumers.items():
        numbers = (consumer.channels, int(consumer.prunable.sum()), consumer.segment)
        weight = [consumer.use.weight] if weights else []
        table.add_row(name, consumer.use.node.op_type, *map(str, numbers), *weight)
    return table


def _segments(traced: Trace) -> Table:
    table = Table(title="segments")
    for column in ("id", "producers", "consumers", "slots", "frozen"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for segment in traced.segments:
        table.add_row(
            str(segment.id),
            str(len(segment.producers)),
            str(len(segment.consumers)),
            str(len(segment.classes)),
            str(int(segment.frozen.sum())),
            "; ".join(f"{reason} ({count:,})" if count else reason for reason, count in segment.frozen_by.items()),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
