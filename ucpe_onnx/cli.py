"""The command line of the main job."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ucpe_onnx.commands.config import apply_config
from ucpe_onnx.commands.guard import guarded, library_output_to_stderr
from ucpe_onnx.commands.progress import shown_progress, stages_told
from ucpe_onnx.commands.shared import Parser, add_common, add_config, add_json, check_outputs, make_console, write_json
from ucpe_onnx.commands.supervisor import WRITTEN, note_stage
from ucpe_onnx.errors import EXIT_DONE, NotFasterError, UsageError
from ucpe_onnx.flags import add_flags, given
from ucpe_onnx.model.files import external_files, save_model, weights_file
from ucpe_onnx.model.writing import all_or_nothing, write_text
from ucpe_onnx.options import BUDGETS, CHECKS, CHOICE, DEFECTS, LAYOUT, LIMITS, SAMPLES, Options
from ucpe_onnx.passes import PASS_NAMES, dump_path
from ucpe_onnx.pipeline import Result, prune
from ucpe_onnx.report.html import render_html
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.summary import print_summary
from ucpe_onnx.version import __version__

_EPILOG = """\
exit codes: 0 done; 1 the model, the data or the verification failed, nothing is written; 2 usage;
3 verified, but onnxruntime was not faster with it: nothing is written unless --allow-slower is given.

siblings: python -m ucpe_onnx.inspect MODEL lists consumers, segments and what is frozen.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m ucpe_onnx``."""
    parser = Parser(
        prog="python -m ucpe_onnx",
        usage="%(prog)s in.onnx out.onnx [options]",
        allow_abbrev=False,
        description="Prune an ONNX model's channels, verify it against the masked model and measure it in onnxruntime.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="in.onnx", type=Path, help="model to prune")
    parser.add_argument("output", metavar="out.onnx", type=Path, help="where to write the pruned model")
    parser.add_argument("--version", action="version", version=f"ucpe-onnx {__version__}")
    for group in (CHOICE, BUDGETS, LIMITS, SAMPLES, LAYOUT, CHECKS):
        add_flags(parser, group, Options)
    _add_results(parser)
    add_flags(parser, DEFECTS, Options)
    add_common(parser)
    return parser


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to write besides")
    group.add_argument("--save-plan", type=Path, metavar="FILE.json", help="write all decisions, for --plan")
    group.add_argument("--report", type=Path, metavar="FILE.html", help="write a report to look at")
    add_json(group, "write the report for machines, - for standard output")
    group.add_argument(
        "--save-external-data",
        action="store_true",
        help="write the weights to out.onnx.data beside the output (always done above 2 GiB)",
    )
    add_config(group, "take flags from a file; the command line wins")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the main job.

    Args:
        arguments: the command line, without the program's name.

    Returns:
        The exit code.
    """
    parser = build_parser()
    args = apply_config(parser, arguments)
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    json_file = None if args.json in (None, "-") else Path(args.json)
    _check_files(args, json_file)
    result = _prune(args)
    report = result.report
    measures = args.bench_seconds is None or args.bench_seconds > 0
    refused = measures and not report.faster and not args.allow_slower
    account = {**report.to_dict(), "written": not refused}
    written = _write(args, result, account, json_file, model=not refused)  # before anything that may fail to be printed
    if not args.quiet:
        console = make_console(stderr=args.json == "-")
        print_summary(report, console, verbose=args.verbose)
        if written:
            console.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)
    if args.json == "-":
        write_json("-", account)
    if refused:
        raise NotFasterError(_not_faster(args, report))
    return EXIT_DONE


def _write(
    args: argparse.Namespace, result: Result, account: dict[str, Any], json_file: Path | None, *, model: bool
) -> list[Path]:
    """Write what was asked for, all or nothing; the model only if it is wanted. Returns the files."""
    files: dict[Path, Callable[[Path], None]] = {}
    if model:
        files[args.output] = lambda path: save_model(result.model, path, external_data=args.save_external_data)
    if args.report:
        files[args.report] = lambda path: write_text(path, render_html(result.report, result.plan))
    if args.save_plan:
        files[args.save_plan] = result.plan.save
    if args.save_stats and result.statistics is not None:
        files[args.save_stats] = result.statistics.save
    if json_file:
        files[json_file] = lambda path: write_json(str(path), account)
    with all_or_nothing():
        for path, write in files.items():
            write(path)
    note_stage(WRITTEN)
    return list(files)


def _check_files(args: argparse.Namespace, json_file: Path | None) -> None:
    data, test = (Path(path) if path and os.path.exists(path) else None for path in (args.data, args.test_data))
    outputs = {"out.onnx": args.output, "--save-plan": args.save_plan, "--report": args.report, "--json": json_file}
    outputs["--save-stats"] = args.save_stats
    for name in PASS_NAMES if "all" in args.dump_after else args.dump_after:
        outputs[f"--dump-after {name}"] = dump_path(args.output, name)
    inputs = {
        "in.onnx": args.input,
        "--masks": args.masks,
        "--plan": args.plan,
        "--config": args.config,
        "--data": data,
        "--test-data": test,
    }
    if any(path is not None and os.path.exists(path) for path in outputs.values()):
        inputs |= {f"the weights of in.onnx, {path}": path for path in external_files(args.input)}
    if args.save_external_data:
        outputs["the weights of out.onnx"] = weights_file(args.output)
    check_outputs(outputs, inputs)
    if args.save_external_data and args.output.exists() and not args.output.is_file():
        raise UsageError(f"{args.output}: --save-external-data needs a regular file to write weights beside")


def _not_faster(args: argparse.Namespace, report: Report) -> str:
    speed = report.speed
    if report.latency is not None and report.latency.busy:
        return (
            f"{args.input}: verified, but busy: undecided ({report.latency.busy}); {args.output} is not written:"
            " measure when the machine is idle, give --bench-seconds a larger number, or pass --allow-slower"
        )
    if not any(segment.consumers and segment.frozen < segment.slots for segment in report.segments):
        advice = f"no channel may be pruned, python -m ucpe_onnx.inspect {args.input} tells why"
    elif args.masks or args.plan:
        advice = "prune more, or pass --allow-slower"
    elif args.target_macs or args.target_params:
        advice = "choose a smaller target, skip the measurement with --bench-seconds 0, or pass --allow-slower"
    elif args.target_latency or args.max_accuracy_drop is not None:
        advice = "choose another target, or pass --allow-slower"
    else:
        advice = "raise --ratio, or pass --allow-slower"
    if speed is None or speed.faster:
        return f"{args.input}: nothing could be removed, so it is no faster; {args.output} is not written: {advice}"
    return (
        f"{args.input}: verified, but not shown to be faster in onnxruntime (latency x{speed.ratio:.3f} of the input's,"
        f" 95 % interval {speed.low:.3f} to {speed.high:.3f}); {args.output} is not written: {advice}"
    )


def _prune(args: argparse.Namespace) -> Result:
    options = Options(**given(args, Options), dump_beside=args.output if args.dump_after else None)
    with shown_progress(quiet=args.quiet) as tell, library_output_to_stderr():
        return prune(args.input, options, progress=stages_told(tell))


if __name__ == "__main__":
    sys.exit(main())
