"""``python -m ucpe_onnx.pdp in.onnx masks.npz``: prune while training, from an ONNX file."""

from __future__ import annotations

if __name__ == "__main__":  # before what follows is imported, which the child alone needs
    from ucpe_onnx.commands.supervisor import supervise

    supervise()

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ucpe_onnx.commands.config import apply_config
from ucpe_onnx.commands.guard import guarded, library_output_to_stderr
from ucpe_onnx.commands.progress import Tell, shown_progress
from ucpe_onnx.commands.shared import (
    Parser,
    add_common,
    add_config,
    add_json,
    check_outputs,
    make_console,
    write_json,
)
from ucpe_onnx.errors import EXIT_DONE, NotFasterError, UsageError
from ucpe_onnx.flags import add_flags, given
from ucpe_onnx.model.files import save_model
from ucpe_onnx.model.writing import all_or_nothing
from ucpe_onnx.report.summary import print_summary
from ucpe_onnx.train.options import GOES, TRAINING, TrainOptions

if TYPE_CHECKING:
    from ucpe_onnx import Result
    from ucpe_onnx.train.loop import Epoch
    from ucpe_onnx.train.run import Trained

_EPILOG = """\
examples:
  python -m ucpe_onnx.pdp in.onnx masks.npz --data train.npz --ratio 0.5 --epochs 20 --emit out.onnx
  python -m ucpe_onnx.pdp in.onnx masks.npz --data loader:batches --val-data val.npz --checkpoint run.pt
  python -m ucpe_onnx.pdp in.onnx masks.npz --data train.npz --granularity 2:4

masks.npz holds what each consumer keeps, as --masks takes it. Beside it, masks.onnx is the input with the weights that
were trained. `python -m ucpe_onnx masks.onnx out.onnx --masks masks.npz` makes the small model, as --emit does at once.
Needs torch: pip install "ucpe-onnx[train]".
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m ucpe_onnx.pdp",
        usage="%(prog)s in.onnx masks.npz --data TRAIN [options]",
        allow_abbrev=False,
        description="Train an ONNX model to need fewer channels or weights, by parameter-free differentiable pruning.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="in.onnx", type=Path, help="the model; it is not changed")
    parser.add_argument("masks", metavar="masks.npz", type=Path, help="where to write what is kept")
    _add_files(parser)
    for group in (GOES, TRAINING):
        add_flags(parser, group, TrainOptions)
    add_common(parser)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument(
        "--data",
        metavar="PATH|MODULE:CALLABLE",
        help=".npz with arrays named like the inputs and optional 'labels', a folder of <input>.npy files (both are"
        " mapped, not read), or a callable that returns an iterable of feeds, called anew for every epoch",
    )
    group.add_argument("--labels", metavar="FILE.npy", type=Path, help="class ids, if --data does not hold them")
    group.add_argument(
        "--val-data",
        metavar="PATH|MODULE:CALLABLE",
        help="samples to judge by after every epoch (default: every tenth sample of --data, which is not trained on)",
    )
    group.add_argument(
        "--trained", metavar="FILE.onnx", type=Path, help="the trained model (default: masks.npz with .onnx at its end)"
    )
    group.add_argument(
        "--emit", metavar="out.onnx", type=Path, help="compile the masks too: order, lower, verify, measure"
    )
    group.add_argument(
        "--allow-slower", action="store_true", help="--emit writes the model even if it is not faster than the input"
    )
    group.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="written after every epoch; if it is there, go on from it"
    )
    add_json(group, "write the account of the run, - for standard output")
    add_config(group, "take flags from a file; the command line wins")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = build_parser()
    args = apply_config(parser, arguments)
    return guarded(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> int:
    options = _options(args)
    trained = args.trained or args.masks.with_suffix(".onnx")
    _check_files(args, trained, options)
    if importlib.util.find_spec("torch") is None:
        raise UsageError('training needs torch: python -m pip install "ucpe-onnx[train]" (or torch alone)')
    from ucpe_onnx.train.run import train  # noqa: PLC0415  # needs torch

    with shown_progress(quiet=args.quiet) as tell, library_output_to_stderr():
        result = train(
            args.input,
            args.data,
            options,
            labels=args.labels,
            validation=args.val_data,
            checkpoint=args.checkpoint,
            progress=_shown(tell),
        )
        compiled = None if args.emit is None else result.compiled(threads=args.threads, data=args.val_data)
    refused = compiled is not None and not compiled.report.faster and not args.allow_slower
    account = {**result.to_dict(), "emitted": None if compiled is None else compiled.report.to_dict()}
    with all_or_nothing():
        result.save_masks(args.masks)
        save_model(result.model, trained)
        if compiled is not None and not refused:
            save_model(compiled.model, args.emit)
        if args.json and args.json != "-":
            write_json(args.json, account)
    if not args.quiet:
        _print(result, compiled, args)
        written = [args.masks, trained, *([args.emit] if compiled is not None and not refused else [])]
        make_console(stderr=args.json == "-").print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)
    if args.json == "-":
        write_json("-", account)
    if refused:
        raise NotFasterError(
            f"{args.emit}: not written, since onnxruntime does not run it faster; masks and weights were"
        )
    return EXIT_DONE


def _options(args: argparse.Namespace) -> TrainOptions:
    if args.data is None:
        raise UsageError("give training samples with --data: an .npz file, a folder of .npy files, or module:callable")
    return TrainOptions(**given(args, TrainOptions)).checked()


def _check_files(args: argparse.Namespace, trained: Path, options: TrainOptions) -> None:
    if args.emit is not None and not options.structured:
        raise UsageError(
            f"--emit: {options.granularity} zeroes single weights, which no layout makes smaller; leave --emit out: the"
            f" trained model is {trained}"
        )
    samples = {"--data": args.data, "--val-data": args.val_data}
    read = {flag: Path(text) for flag, text in samples.items() if text is not None and os.path.exists(text)}
    check_outputs(
        {
            "masks.npz": args.masks,
            "the trained model": trained,
            "--emit": args.emit,
            "--checkpoint": args.checkpoint if args.checkpoint is not None and not args.checkpoint.exists() else None,
            "--json": None if args.json in (None, "-") else Path(args.json),
        },
        {"in.onnx": args.input, "--labels": args.labels, "--config": args.config, **read},
    )


def _print(result: Trained, compiled: Result | None, args: argparse.Namespace) -> None:
    console = make_console(stderr=args.json == "-")
    table = Table(title=f"{args.input.name}: {args.method}, {args.granularity}, {result.sparsity:.0%} gone")
    for column in ("epoch", "loss", "judged", "accuracy", "gone", "undecided", "seconds"):
        table.add_column(column, justify="right")
    for epoch in result.epochs if args.verbose else _some(result.epochs):
        accuracy = "" if epoch.accuracy is None else f"{epoch.accuracy:.1%}"
        figures = (f"{value:.4f}" for value in (epoch.loss, epoch.judged))
        shares = (f"{value:.0%}" for value in (epoch.sparsity, epoch.undecided))
        table.add_row(str(epoch.number), *figures, accuracy, *shares, f"{epoch.seconds:.1f}")
    console.print(table)
    shown = "{:.1%}" if result.measure == "accuracy" else "{:.4f}"
    console.print(
        f"{result.measure} on samples that are not trained on: {shown.format(result.before)} before,"
        f" {shown.format(result.after)} after, with what is dropped at zero"
    )
    if args.verbose:
        for layer in result.layers:
            console.print(f"  {layer.name}: {layer.dropped} of {layer.prunable} gone")
    for name, reason in list(result.left.items())[: None if args.verbose else 3]:
        console.print(f"left alone: {reason if reason.startswith(name) else f'{name}: {reason}'}")
    if compiled is not None:
        print_summary(compiled.report, console, verbose=args.verbose)


def _some(epochs: Sequence[Epoch], most: int = 12) -> list[Epoch]:
    """Not more than so many, evenly spread, the last among them."""
    if len(epochs) <= most:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (most - 1))] for i in range(most)]


def _shown(tell: Tell) -> Callable[[str, float, Any], None]:
    """For :func:`train`, with the latest epoch beside the share that is done."""

    def show(stage: str, share: float, epoch: Any) -> None:
        if epoch is None:
            tell(stage, share)
            return
        accuracy = "" if epoch.accuracy is None else f", accuracy {epoch.accuracy:.1%}"
        tell(stage, share, f"epoch {epoch.number}: loss {epoch.loss:.3f}{accuracy}, {epoch.sparsity:.0%} gone")

    return show


if __name__ == "__main__":
    sys.exit(main())
