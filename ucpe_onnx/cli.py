"""The command line of the main job."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ucpe_onnx.commands.config import apply_config
from ucpe_onnx.commands.shared import (
    add_common,
    check_outputs,
    guarded,
    library_output_to_stderr,
    make_console,
    write_json,
)
from ucpe_onnx.errors import EXIT_DONE, NotFasterError, UsageError
from ucpe_onnx.model.files import all_or_nothing, external_files, save_model, weights_file, write_text
from ucpe_onnx.options import DUMPS, MODES, SCOPES, Options
from ucpe_onnx.passes import PASS_NAMES, dump_path
from ucpe_onnx.pipeline import Result, prune
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.report.html import render_html
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.summary import print_summary
from ucpe_onnx.runtime.random_feeds import parse_input_shapes
from ucpe_onnx.runtime.session import OPT_LEVELS
from ucpe_onnx.selection.criteria import CRITERIA
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA
from ucpe_onnx.version import __version__

_EPILOG = """\
exit codes: 0 done; 1 the model, the data or the verification failed, nothing is written; 2 usage;
3 verified, but onnxruntime was not faster with it: nothing is written unless --allow-slower is given.

siblings: python -m ucpe_onnx.inspect MODEL lists consumers, segments and what is frozen.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``python -m ucpe_onnx``."""
    parser = argparse.ArgumentParser(
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
    _add_choice(parser)
    _add_targets(parser)
    _add_limits(parser)
    _add_data(parser)
    _add_layout(parser)
    _add_checks(parser)
    _add_results(parser)
    _add_debugging(parser)
    add_common(parser)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    default = Options()
    group = parser.add_argument_group("what to prune")
    group.add_argument(
        "--ratio",
        type=float,
        default=default.ratio,
        metavar="R",
        help="share of each consumer's input channels to remove, 0 <= R < 1 (default %(default)s)",
    )
    group.add_argument(
        "--criterion",
        choices=(*CRITERIA, *DATA_CRITERIA),
        default=default.criterion,
        help=f"importance of a channel, from weights or, with --data, from samples ({', '.join(DATA_CRITERIA)};"
        " default %(default)s)",
    )
    group.add_argument(
        "--scope",
        choices=SCOPES,
        default=default.scope,
        help="the ratio holds for each consumer, or for the model as a whole (default %(default)s)",
    )
    group.add_argument(
        "--mode",
        choices=MODES,
        default=default.mode,
        help="unconstrained: every consumer keeps what it needs; constrained: consumers of a channel keep"
        " it all or none; auto: unconstrained, and what costs nothing stays (default %(default)s)",
    )
    group.add_argument("--masks", type=Path, metavar="FILE", help="take masks from an .npz or .json file instead")
    group.add_argument("--plan", type=Path, metavar="FILE", help="apply a plan that --save-plan wrote")


def _add_layout(parser: argparse.ArgumentParser) -> None:
    default = Options()
    group = parser.add_argument_group("how to lay it out")
    group.add_argument(
        "--lowering",
        choices=LOWERING_RULES,
        default=default.lowering,
        help="how consumers get their channels (default %(default)s: the cheapest for each)",
    )
    group.add_argument(
        "--measure",
        action="store_true",
        help="choose lowerings by timing candidates on this machine, for ten times the --bench-seconds",
    )
    group.add_argument(
        "--calibrate",
        action="store_true",
        help="measure how fast onnxruntime's kernels are here, once, in about 20 seconds, and predict with that",
    )
    group.add_argument(
        "--solver-seconds",
        type=float,
        default=default.solver_seconds,
        metavar="S",
        help="time limit for ordering the channels (default %(default)s)",
    )
    group.add_argument("--seed", type=int, default=default.seed, help="seed of everything random (default %(default)s)")


def _add_targets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much in all: instead of a ratio, one of")
    group.add_argument(
        "--target-latency", type=float, metavar="F", help="share of the input's latency as measured here, e.g. 0.7"
    )
    group.add_argument("--target-macs", type=float, metavar="F", help="share of its multiply-accumulates")
    group.add_argument("--target-params", type=float, metavar="F", help="share of its parameters")
    group.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="P",
        help="points of accuracy (without labels: of agreement with the input) that may be lost on held-out samples of"
        " --data; the smallest latency that keeps to it is searched for",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much, layer by layer")
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="consumers that keep everything, by name (wildcards; may be repeated)",
    )
    group.add_argument(
        "--ratio-for",
        action="append",
        default=[],
        type=_pattern_ratio,
        metavar="PATTERN=R",
        help="another ratio for some consumers (may be repeated, the last match counts)",
    )
    group.add_argument(
        "--max-ratio",
        type=float,
        metavar="R",
        help="no consumer loses a larger share, also with --scope global or a target",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--data",
        metavar="PATH|MODULE:CALLABLE",
        help=".npz with arrays named like the inputs (and labels), a folder of test_data_set_N, or a"
        " callable that returns feeds",
    )
    group.add_argument(
        "--test-data",
        metavar="PATH|MODULE:CALLABLE",
        help="labelled samples to report accuracy on, likewise; nothing is fitted to them (default: those of --data)",
    )
    group.add_argument(
        "--steps",
        type=int,
        default=1,
        metavar="N",
        help="choose masks in N rounds of growing ratio, each by what the network of the round before reads"
        " (default %(default)s)",
    )
    group.add_argument(
        "--sensitivity",
        action="store_true",
        help="report how much the outputs mind the loss of channels, segment by segment",
    )
    group.add_argument(
        "--save-stats",
        type=Path,
        metavar="FILE.npz",
        help="write what the consumers read on the samples of --data: means, variances, second moments",
    )
    group.add_argument(
        "--compensate",
        action=argparse.BooleanOptionalAction,
        help="refit the weights that are left so that outputs are what they were (default: if there is --data; without,"
        " batch normalisations tell the means of what goes)",
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    default = Options()
    group = parser.add_argument_group("what to check it with")
    group.add_argument(
        "--input-shapes",
        nargs="+",
        default=[],
        metavar="NAME:[1,3,224,224]",
        help="shapes for inputs with dynamic dimensions",
    )
    group.add_argument(
        "--providers",
        nargs="+",
        default=list(default.providers),
        metavar="NAME",
        help="onnxruntime's execution providers, e.g. cpu or cuda (default cpu)",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=default.threads,
        metavar="N",
        help="threads within an operator (default: onnxruntime's choice)",
    )
    group.add_argument(
        "--opt-level",
        choices=OPT_LEVELS,
        default=default.opt_level,
        help="onnxruntime's graph optimisation level (default %(default)s)",
    )
    group.add_argument("--rtol", type=float, help="relative tolerance of the verification (default 1e-4)")
    group.add_argument("--atol", type=float, help="absolute tolerance of the verification (default 1e-4)")
    group.add_argument(
        "--bench-seconds",
        type=float,
        default=default.bench_seconds,
        metavar="S",
        help="time to measure latency for; 0 skips it (default %(default)s)",
    )
    group.add_argument("--allow-slower", action="store_true", help="write the output even if it is not faster")


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to write besides")
    group.add_argument("--save-plan", type=Path, metavar="FILE.json", help="write all decisions, for --plan")
    group.add_argument("--report", type=Path, metavar="FILE.html", help="write a report to look at")
    group.add_argument("--json", metavar="FILE|-", help="write the report for machines, - for standard output")
    group.add_argument(
        "--save-external-data",
        action="store_true",
        help="write the weights to out.onnx.data beside the output (always done above 2 GiB)",
    )
    group.add_argument("--config", type=Path, metavar="FILE.toml", help="take flags from a file; the command line wins")


def _add_debugging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("to find a defect of ours")
    group.add_argument(
        "--verify-each",
        action="store_true",
        help="run onnx.checker after every pass of the rewrite; with shapes where the draft has to add up",
    )
    group.add_argument(
        "--dump-after",
        action="append",
        choices=DUMPS,
        default=[],
        metavar="PASS",
        help="write the draft after a pass to out.after-PASS.onnx, even if the run fails (may be repeated):"
        f" {', '.join(PASS_NAMES)}, or all",
    )


def _pattern_ratio(text: str) -> tuple[str, float]:
    pattern, _, ratio = text.rpartition("=")
    if not pattern:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=RATIO")
    try:
        return pattern, float(ratio)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{ratio!r} is not a ratio") from None


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
    refused = report.speed is not None and not report.faster and not args.allow_slower
    account = {**report.to_dict(), "written": not refused}
    if not args.quiet:
        print_summary(report, make_console(stderr=args.json == "-"), verbose=args.verbose)
    if not refused:
        with all_or_nothing():
            save_model(result.model, args.output, external_data=args.save_external_data)
            if args.report:
                write_text(args.report, render_html(report, result.plan))
            if args.save_plan:
                result.plan.save(args.save_plan)
            if args.save_stats and result.statistics is not None:
                result.statistics.save(args.save_stats)
            if json_file:
                write_json(str(json_file), account)
        if not args.quiet:
            make_console(stderr=args.json == "-").print(f"wrote {args.output}", soft_wrap=True)
    if args.json == "-":
        write_json("-", account)
    if refused:
        raise NotFasterError(_not_faster(args, report))
    return EXIT_DONE


def _check_files(args: argparse.Namespace, json_file: Path | None) -> None:
    data, test = (Path(given) if given and os.path.exists(given) else None for given in (args.data, args.test_data))
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
    weights = weights_file(args.output)
    if any(path is not None and os.path.exists(path) for path in (weights, *outputs.values())):
        inputs |= {f"the weights of in.onnx, {path}": path for path in external_files(args.input)}
    if args.save_external_data or os.path.exists(weights):  # above 2 GiB it is written without being asked for
        outputs["the weights of out.onnx"] = weights
    check_outputs(outputs, inputs)
    if args.save_external_data and args.output.exists() and not args.output.is_file():
        raise UsageError(f"{args.output}: --save-external-data needs a regular file to write weights beside")


def _not_faster(args: argparse.Namespace, report: Report) -> str:
    speed = report.speed
    assert speed is not None, "nothing was measured, so nothing was refused"
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
    if speed.faster:
        return f"{args.input}: verified, but nothing could be removed, so it is no faster; nothing written: {advice}"
    return (
        f"{args.input}: verified, but not shown to be faster in onnxruntime (latency x{speed.ratio:.3f} of the input's,"
        f" 95 % interval {speed.low:.3f} to {speed.high:.3f}); nothing written: {advice}"
    )


def _prune(args: argparse.Namespace) -> Result:
    values = {field.name: getattr(args, field.name) for field in fields(Options) if field.name != "dump_beside"}
    values["input_shapes"] = parse_input_shapes(args.input_shapes)
    options = Options(**values, dump_beside=args.output if args.dump_after else None)
    console = make_console(stderr=True)
    if args.quiet or not console.is_terminal:
        with library_output_to_stderr():
            return prune(args.input, options)
    with console.status("load") as status, library_output_to_stderr():
        return prune(args.input, options, progress=status.update)


if __name__ == "__main__":
    sys.exit(main())
