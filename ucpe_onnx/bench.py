"""``python -m ucpe_onnx.bench MODEL ...``: latency of models against one another, in turns in one process."""

from __future__ import annotations

if __name__ == "__main__":  # before what follows is imported, which the child alone needs
    from ucpe_onnx.commands.supervisor import supervise

    supervise()

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from rich.console import Console
from rich.table import Table

from ucpe_onnx.calibration import calibrate
from ucpe_onnx.commands.bench_inputs import BESIDE, Inputs, data_sets, model_names, prepare_inputs
from ucpe_onnx.commands.config import apply_config
from ucpe_onnx.commands.guard import guarded, library_output_to_stderr
from ucpe_onnx.commands.progress import shown_progress
from ucpe_onnx.commands.shared import (
    Parser,
    add_common,
    add_config,
    add_json,
    check_outputs,
    make_console,
    write_json,
)
from ucpe_onnx.errors import EXIT_DONE, UsageError
from ucpe_onnx.flags import Range, add_flag, add_flags, check_values, documented, flag, given
from ucpe_onnx.model.files import external_files
from ucpe_onnx.options import Options
from ucpe_onnx.runtime.latency import LEAST_RELOADS, CandidateLatency, LatencyReport, measure
from ucpe_onnx.runtime.latency_stats import LEAST_ROUNDS

_EPILOG = """\
exit codes: 0 measured; 1 a model or the data can't be used; 2 usage. Which model is faster is no exit code: see
--json, where "faster" and "slower" are true of a model only if its whole interval lies below or above 1.
"""

HOW_LONG = "how long to measure"

SHARED = ("data", "input_shapes", "providers", "threads", "opt_level", "seed")
"""The options of the main job that this command has too."""


@documented
@dataclass(frozen=True)
class Rounds:
    """How long and how often models are run."""

    seconds: float = flag(
        3.0,
        HOW_LONG,
        "time to measure for, with loading; 1.8 times as long if a ratio is not clear by then (default %(default)s)",
        metavar="S",
        valid=Range("is no time to measure for; give a number above 0", above=0, below=math.inf),
    )
    warmup: int = flag(
        2,
        HOW_LONG,
        "untimed runs before (default %(default)s)",
        metavar="N",
        valid=Range("is too few; give at least 1", least=1),
    )
    rounds: int = flag(
        LEAST_ROUNDS,
        HOW_LONG,
        "least rounds, however long they take (default %(default)s)",
        metavar="N",
        valid=Range("is too few; give at least 2", least=2),
    )
    reloads: int = flag(
        10,
        HOW_LONG,
        "load all models so many times, because where their memory lies makes a percent or two: 1, or at least"
        f" {LEAST_RELOADS} (default %(default)s; less if loading takes longer than the rounds)",
        metavar="N",
    )

    def checked(self) -> Rounds:
        """These options.

        Raises:
            UsageError: one makes no sense; the line names its flag.
        """
        check_values(self)
        if self.reloads != 1 and self.reloads < LEAST_RELOADS:
            raise UsageError(f"--reloads: {self.reloads} loads say too little; give 1, or at least {LEAST_RELOADS}")
        return self


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m ucpe_onnx.bench``."""
    parser = Parser(
        prog="python -m ucpe_onnx.bench",
        usage="%(prog)s a.onnx [b.onnx ...] [options]",
        allow_abbrev=False,
        description="Compare the latency of models that take the same inputs, interleaved in one process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", metavar="a.onnx", nargs="*", type=Path, help="models to compare")
    parser.add_argument("--baseline", metavar="NAME", help="the model that ratios refer to (default: the first)")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const="float32",
        choices=("float32", "int8"),
        help="measure this machine instead (default for float32), and keep the result for the choice of layouts",
    )
    add_flag(add_flags(parser, HOW_LONG, Rounds), Options, "seed")
    _add_runtime(parser)
    add_json(parser, "write the result for machines, - for standard output")
    add_config(parser, "take flags from a file")
    add_common(parser)
    return parser


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to run")
    data = (
        ".npz with arrays named like the inputs, a folder of test_data_set_N, or a callable that returns feeds;"
        f" {BESIDE}: the test_data_set_N beside the first model (default: random)"
    )
    add_flag(group, Options, "data", help=data)
    for name in ("input_shapes", "providers", "threads", "opt_level"):
        add_flag(group, Options, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    args = apply_config(parser, arguments)
    if not args.models and not args.calibrate:
        parser.error("the following arguments are required: a.onnx")
    if args.models and args.calibrate:
        parser.error("--calibrate measures the machine: it takes no models")
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    rounds, options = Rounds(**given(args, Rounds)).checked(), Options(**given(args, Options, SHARED)).checked()
    files = model_names(args.models)
    _check_json(args, files)
    if args.calibrate:
        return _calibrate(args, options)
    baseline = _find_baseline(args.baseline, files)
    with shown_progress(quiet=args.quiet) as tell, library_output_to_stderr():
        tell("load")
        inputs = prepare_inputs(files, options)
        report = measure(
            files,
            inputs.feeds,
            options.run_options(),
            baseline=baseline,
            seconds=rounds.seconds,
            warmup=rounds.warmup,
            min_rounds=rounds.rounds,
            reloads=rounds.reloads,
            seed=options.seed,
            progress=lambda done, total: tell("measure", done / total),
        )
    if args.json:
        write_json(args.json, account(report, files, inputs, options))
    if not args.quiet:
        console = make_console(stderr=args.json == "-")
        print_report(report, console)
        console.print(f"{_setting(options)}; inputs: {inputs.describe()}")
        if args.verbose:
            spent = f"{report.seconds:.1f} s in rounds, {report.runs_per_timing} runs in each timing"
            console.print("; ".join([spent, *(f"{name} is {file}" for name, file in files.items())]))
        first = args.models[0]
        if args.data is None and (sets := data_sets(first.parent)):
            console.print(f"beside {first} lie {len(sets)} test_data_set_N: --data {BESIDE} measures with them")
    return EXIT_DONE


def _check_json(args: argparse.Namespace, files: Mapping[str, Path]) -> None:
    target = None if args.json in (None, "-") else Path(args.json)
    read: dict[str, Path | None] = {f"the model {name}": file for name, file in files.items()}
    if target is not None and target.exists():
        read |= {
            f"the weights of {name}, {path}": path for name, file in files.items() for path in external_files(file)
        }
    check_outputs(
        {"--json": target}, read | {"--config": args.config, "--data": Path(args.data) if args.data else None}
    )


def _find_baseline(wanted: str | None, files: Mapping[str, Path]) -> str:
    if wanted is None or wanted in files:
        return wanted or next(iter(files))
    found = [name for name, file in files.items() if wanted in (str(file), file.name, file.stem)]
    if len(found) != 1:
        problem = "fits several models" if found else "is none of the models"
        raise UsageError(f"--baseline: {wanted!r} {problem}; choose from {', '.join(files)}")
    return found[0]


def account(report: LatencyReport, files: Mapping[str, Path], inputs: Inputs, options: Options) -> dict[str, Any]:
    """The result as plain values, for JSON."""
    candidates = {
        name: {"file": str(files[name]), **values, "slower": report[name].slower, "verdict": _verdict(report, name)}
        for name, values in report.to_dict()["candidates"].items()
    }
    return {
        **report.to_dict(),
        "candidates": candidates,
        "data": inputs.source,
        "feeds": len(inputs.feeds),
        "inputs": inputs.shapes(),
        **{key: options.recorded()[key] for key in ("providers", "threads", "opt_level", "seed")},
        "onnxruntime": onnxruntime.__version__,
    }


def print_report(report: LatencyReport, console: Console) -> None:
    """Print the table of a measurement and what it rests on."""
    table = Table()
    table.add_column("model", overflow="fold")
    for column in ("p50 ms", "p90 ms", "p99 ms", "ratio (95 % interval)"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, entry in report.candidates.items():
        times = (f"{value:.3f}" for value in (entry.median_ms, entry.p90_ms, entry.p99_ms))
        ratio = "" if name == report.baseline or report.busy else _ratio(entry)
        table.add_row(name, *times, ratio, _verdict(report, name))
    console.print(table)
    rounds = f"{report.rounds} rounds" if len(report.candidates) == 1 else f"{report.rounds} interleaved rounds"
    if report.loads > 1:
        console.print(f"latency: {rounds} over {report.loads} loads of the models")
    else:
        console.print(f"latency: {rounds}, all in one load: the intervals don't cover where memory lies")
    if report.busy:
        console.print(f"busy: undecided: {report.busy}; measure when the machine is idle, or for more --seconds")
    elif any(_verdict(report, name) == "undecided" for name in report.candidates):
        console.print("undecided: the interval holds 1; more --seconds make it narrower")


def _ratio(entry: CandidateLatency) -> str:
    return f"x{entry.ratio:.3f} ({entry.low:.3f} to {entry.high:.3f})"


def _verdict(report: LatencyReport, name: str) -> str:
    entry = report[name]
    if name == report.baseline:
        return "baseline"
    if report.busy:
        return "busy: undecided"
    return "faster" if entry.faster else "slower" if entry.slower else "undecided"


def _setting(options: Options) -> str:
    used = options.run_options().used_threads
    threads = f"{used} threads" if used > 1 else "1 thread"
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in options.providers)
    return f"onnxruntime {onnxruntime.__version__}, {providers}, {threads}, optimisation {options.opt_level}"


def _calibrate(args: argparse.Namespace, options: Options) -> int:
    with shown_progress(quiet=args.quiet) as tell, library_output_to_stderr():
        rates = calibrate(
            options.run_options(),
            precision=args.calibrate,
            progress=lambda share: tell("calibrate", share),
        )
    if args.json:
        write_json(args.json, rates.to_dict())
    if not args.quiet:
        table = Table(show_header=False)
        for label, value in rates.describe():
            table.add_row(label, value)
        make_console(stderr=args.json == "-").print(table)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
