"""Pruning while training: PDP against gradual magnitude pruning and one-shot with the same fine-tuning.

    python -m benchmarks.pdp [--models resnet20 digits] [--settings channel:.5 channel:.7 1:4 unstructured:.9]
        [--methods pdp gradual one-shot] [--seeds 3] [--epochs N] [--jobs 2] [--json FILE] [--markdown FILE]
        [--svg FILE] [--render FILE ...]

Every method gets the same samples, epochs, optimiser and layers, and is judged by the hard masks that it ends with, in
onnxruntime, on test images that nothing else sees. Then the channel masks of PDP's first seed are compiled: the emitted
network must name the same class for every test image, and is timed against the input in turns in one process.

ResNet-20 needs the folder of data that ``benchmarks.accuracy`` names; the digits come with the repository
(``pip install -e ".[train,recipes]"``). Networks have been trained before: what is measured is the way back.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console

from benchmarks.accuracy_cases import CIFAR, DATA_FOLDER, Case, load_case, read_images
from benchmarks.pdp_picture import picture
from ucpe_onnx import prune
from ucpe_onnx.runtime.accuracy import predicted_classes
from ucpe_onnx.runtime.latency import LEAST_RELOADS, measure
from ucpe_onnx.runtime.session import as_session
from ucpe_onnx.samples.dataset import load_data
from ucpe_onnx.samples.inputs import input_specs
from ucpe_onnx.train.options import METHODS, TrainOptions
from ucpe_onnx.train.run import train

Row = dict[str, Any]
CONSOLE = Console(width=160, highlight=False, markup=False)

SETTINGS = ("channel:0.5", "channel:0.7", "1:4", "unstructured:0.9")
EPOCHS: Mapping[str, int] = {"resnet20": 8, "digits": 10}
"""With these all runs together take less than 30 minutes on two cores."""

LEARNING: Mapping[str, Mapping[str, Any]] = {
    "resnet20": {"lr": 0.05, "batch": 16, "augment": ("flip", "crop")},
    "digits": {"lr": 0.02, "batch": 64, "augment": ("crop",)},
}
"""How each network is trained, whatever the method: chosen on training images, by what one-shot gains from it."""

OWN: Mapping[str, Mapping[str, Any]] = {"gradual": {"ramp": 0.25}}
"""What suits a method better than the defaults, chosen likewise."""

NORMALISED: Mapping[str, str] = {"resnet20": "resnet20_cifar10_bn.onnx"}
"""Files with batch normalisations, which training is better off with."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        model: name of the network.
        setting: granularity, and the ratio behind a colon unless it is N:M.
        method: of ``METHODS``.
        seed: of everything random.
        epochs: passes over the samples.
        folder: of the data.
        extra: options that replace the network's own.
    """

    model: str
    setting: str
    method: str
    seed: int
    epochs: int
    folder: Path
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def options(self) -> TrainOptions:
        """The run's options."""
        kind, _, ratio = self.setting.partition(":")
        what: dict[str, Any] = {"granularity": self.setting}
        if not kind.isdigit():
            what = {"granularity": kind, "ratio": float(ratio)}
        given = {**LEARNING[self.model], **OWN.get(self.method, {}), **what, **dict(self.extra)}
        return TrainOptions(method=self.method, seed=self.seed, epochs=self.epochs, threads=1, **given).checked()


@cache
def _case(name: str, folder: Path) -> tuple[Case, dict[str, Any]]:
    """A network with its test samples, and the samples to train on with their labels."""
    case = load_case(name, folder, None, 1)
    if name in NORMALISED:
        case = replace(case, model=onnx.load(str(folder / "models" / NORMALISED[name])))
    return case, training_samples(name, folder)


def training_samples(name: str, folder: Path) -> dict[str, Any]:
    """Labelled samples that a network is trained on."""
    if name == "digits":
        from models.recipes.digits_data import load_split  # noqa: PLC0415  # needs scikit-learn

        split = load_split()
        return {"input": split.train_images, "labels": split.train_labels}
    pixels, labels = read_images(folder / CIFAR.calibration)
    return {"input": pixels, "labels": labels}


def run(job: Job) -> tuple[Row, bytes, Mapping[str, Any]]:
    """Train, and judge in onnxruntime: the row, the trained model and the masks."""
    case, samples = _case(job.model, job.folder)
    start = time.perf_counter()
    result = train(case.model, samples, job.options)
    row = {
        "model": job.model,
        "setting": job.setting,
        "method": job.method,
        "seed": job.seed,
        "epochs": job.epochs,
        "unpruned": case.unpruned,
        "top1": case.accuracy(result.model),
        "sparsity": result.sparsity,
        "seconds": time.perf_counter() - start,
        "curve": [epoch.accuracy for epoch in result.epochs],
    }
    return row, result.model.SerializeToString(), result.masks


def exported(job: Job, model: onnx.ModelProto, masks: Mapping[str, Any], seconds: float) -> Row:
    """What the compiler makes of trained weights and masks: the same classes, and how much faster."""
    case, _ = _case(job.model, job.folder)
    found = prune(model, masks=dict(masks), compensate=False, threads=1, bench_seconds=seconds, allow_slower=True)
    dataset = load_data(dict(case.test), input_specs(case.model))
    classes = [predicted_classes(as_session(each, case.options), dataset) for each in (model, found.model)]
    models = {"input": case.model, "output": found.model}
    timed = measure(models, case.feed, case.options, baseline="input", seconds=seconds, reloads=LEAST_RELOADS)
    return {
        "layout": found.report.layout,
        "same_classes": int((classes[0] == classes[1]).sum()),
        "samples": len(classes[0]),
        "macs": case.macs_left(found.model),
        "parameters": case.weigh(found.model).parameters / case.stats.parameters,
        "latency": timed["output"].ratio,
        "low": timed["output"].low,
        "high": timed["output"].high,
    }


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """All runs, those of one setting after each other."""
    for model, setting, seed, method in product(args.models, args.settings, range(args.seeds), args.methods):
        extra = tuple((name, value) for name, value in (("detach", True),) if args.detach)
        yield Job(model, setting, method, seed, args.epochs or EPOCHS[model], args.data_folder, extra)


def markdown(rows: Sequence[Row]) -> str:
    """Tables of accuracies, and of what was exported."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    head = ["network", "setting", "unpruned", *methods, "best"]
    lines = []
    for model, setting in dict.fromkeys((row["model"], row["setting"]) for row in rows):
        of_setting = [row for row in rows if (row["model"], row["setting"]) == (model, setting)]
        found = {m: [row["top1"] for row in of_setting if row["method"] == m] for m in methods}
        means = {m: float(np.mean(values)) for m, values in found.items() if values}
        cells = [_spread(found[m]) for m in methods]
        lines.append([model, setting, f"{of_setting[0]['unpruned']:.1%}", *cells, max(means, key=lambda m: means[m])])
    parts = ["Top-1 on test images after training, mean (lowest to highest) over seeds.", _table(head, lines)]
    compiled = [row for row in rows if "exported" in row]
    if compiled:
        head = ["network", "setting", "same class", "MACs left", "parameters left", "latency (95 % interval)"]
        lines = [
            [
                row["model"],
                row["setting"],
                f"{row['exported']['same_classes']} of {row['exported']['samples']}",
                f"{row['exported']['macs']:.1%}",
                f"{row['exported']['parameters']:.1%}",
                "{latency:.3f} ({low:.3f} to {high:.3f})".format(**row["exported"]),
            ]
            for row in compiled
        ]
        parts += ["PDP's channel masks, compiled (seed 0).", _table(head, lines)]
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})" if values else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", "---", *["--:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="GRANULARITY:RATIO|N:M")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: by network")
    parser.add_argument("--detach", action="store_true", help="no gradient through PDP's mask")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each compiled network for")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER)
    parser.add_argument("--json", type=Path, help="where to write everything")
    parser.add_argument("--markdown", type=Path, help="where to write the tables")
    parser.add_argument("--svg", type=Path, help="where to draw accuracy after every epoch")
    parser.add_argument("--render", type=Path, nargs="+", default=[], help="train nothing, take these JSON files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    if args.render:
        rows = [row for path in args.render for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    else:
        if "resnet20" in args.models and not args.data_folder.is_dir():
            CONSOLE.print(f"resnet20 is left out: {args.data_folder} is no folder", soft_wrap=True)
            args.models = [name for name in args.models if name != "resnet20"]
        rows = trained(args)
    _write(args, rows)
    CONSOLE.print(markdown(rows), soft_wrap=True)


def trained(args: argparse.Namespace) -> list[Row]:
    """All runs, as many at a time as there may be, and then what is compiled of them."""
    rows: list[Row] = []
    kept: list[tuple[Row, Job, bytes, Mapping[str, Any]]] = []
    todo = list(jobs(args))
    # Fresh processes: torch and onnxruntime don't survive a fork with their threads.
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for job, (row, model, masks) in zip(todo, pool.map(run, todo), strict=True):
            rows.append(row)
            if job.method == "pdp" and job.seed == 0 and masks:
                kept.append((row, job, model, masks))
            CONSOLE.print(
                f"{job.model} {job.setting} {job.method} seed {job.seed}: {row['top1']:.4f}, {row['seconds']:.0f} s"
            )
            _write(args, rows)
    for row, job, model, masks in kept:  # once nothing else is running
        row["exported"] = exported(job, onnx.ModelProto.FromString(model), masks, args.seconds)
    return rows


def _write(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(rows), encoding="utf-8")
    if args.svg:
        args.svg.write_text(picture(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
