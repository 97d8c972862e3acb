"""What ``python -m ucpe_onnx.bench`` compares: models with names of their own, and feeds that fit all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

from ucpe_onnx.errors import DataError, ModelError
from ucpe_onnx.model.files import load_model
from ucpe_onnx.options import Options
from ucpe_onnx.runtime.random_feeds import find_feeds
from ucpe_onnx.samples.dataset import load_data
from ucpe_onnx.samples.inputs import Feed, InputSpec, input_specs

BESIDE = "beside"
"""Value of ``--data`` for the data sets in the first model's folder."""

MOST_FEEDS = 32
"""Samples of the user's data that the rounds use in turn; each is run once on every model before."""


def model_names(files: Sequence[Path]) -> dict[str, Path]:
    """Name models by as much of the end of their paths as tells them apart; a file given again gets a number."""
    absolute = [file.absolute() for file in files]
    names: dict[str, Path] = {}
    for file, path in zip(files, absolute, strict=True):
        others = {other for other in absolute if other != path}
        parts = next(n for n in range(1, len(path.parts) + 1) if all(o.parts[-n:] != path.parts[-n:] for o in others))
        name = str(Path(*path.parts[-parts:]))
        count = sum(known.absolute() == path for known in names.values())
        names[f"{name} #{count + 1}" if count else name] = file
    return names


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the models are fed.

    Attributes:
        feeds: an array per input, each; the rounds use them in turn.
        source: where they come from, None if they are random.
    """

    feeds: tuple[Feed, ...]
    source: str | None

    def shapes(self) -> dict[str, str]:
        """Shapes of the first feed's arrays, as text."""
        return {
            name: _dims(value.shape) if hasattr(value, "shape") else type(value).__name__
            for name, value in self.feeds[0].items()
        }

    def describe(self) -> str:
        """Where they come from and what they look like, in one line."""
        count = "random" if self.source is None else f"{len(self.feeds)} from {self.source}"
        return ", ".join([count, *(f"{name} {shape}" for name, shape in self.shapes().items())])


def prepare_inputs(files: Mapping[str, Path], options: Options) -> Inputs:
    """Read the user's data, or find a random feed that the models run on.

    Args:
        files: the models by name.
        options: data, input shapes and how to run the models.

    Raises:
        DataError: the data can't be read or does not fit the inputs.
        ModelError: a model can't be read, or takes other inputs than another.
    """
    by_file = {file: input_specs(load_model(file)) for file in dict.fromkeys(files.values())}
    specs = {name: by_file[file] for name, file in files.items()}
    check_inputs(specs)
    first = next(iter(specs))
    # Where some models fix an axis and others leave it open, what the strictest take is what all take.
    strictest = max(specs, key=lambda name: sum(isinstance(dim, int) for s in specs[name] for dim in s.shape or ()))
    if options.data is None:
        model, shapes = load_model(files[strictest]), options.input_shapes
        feed = find_feeds(model, options.run_options(), seed=options.seed, overrides=shapes, where=strictest)
        return Inputs((feed,), None)
    source, folder = options.data, files[first].parent
    if source == BESIDE:
        if not data_sets(folder):
            raise DataError(f"--data {BESIDE}: no test_data_set_N/input_M.pb beside {files[first]}; give a path")
        source = folder
    by_name = {spec.name: spec for spec in specs[strictest]}
    dataset = load_data(source, [by_name[spec.name] for spec in specs[first]])  # input_M.pb count in this order
    return Inputs(tuple(islice(dataset.batches(1), MOST_FEEDS)), dataset.source)


def data_sets(folder: Path) -> list[Path]:
    """The folders of a model zoo's data sets in a folder."""
    return sorted(path for path in folder.glob("test_data_set_*") if any(path.glob("input_*.pb")))


def check_inputs(specs: Mapping[str, Sequence[InputSpec]]) -> None:
    """Make sure that models can take the same feeds.

    Args:
        specs: the inputs of each model, by its name.

    Raises:
        ModelError: inputs of two models differ in name, type, or a length that both fix.
    """
    for (first, inputs), (other, others) in combinations(specs.items(), 2):
        ours, theirs = ({spec.name: spec for spec in some} for some in (inputs, others))
        for name in [*ours, *theirs]:
            problem = _difference(ours.get(name), theirs.get(name), first)
            if problem:
                raise ModelError(f"{other}: input {name!r} {problem}; compare models that take the same inputs")


def _difference(first: InputSpec | None, other: InputSpec | None, owner: str) -> str:
    if other is None:
        return f"is missing, which {owner} takes"
    if first is None:
        return f"is none of {owner}'s"
    if first.kind != other.kind:
        return f"is a {other.kind}, that of {owner} a {first.kind}"
    ours, theirs = first.shape, other.shape
    if ours is None or theirs is None:
        return ""
    fits = len(ours) == len(theirs) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(ours, theirs, strict=True)
    )
    return "" if fits else f"has the shape {_dims(theirs)}, that of {owner} {_dims(ours)}"


def _dims(shape: Sequence[int | str | None]) -> str:
    return "[" + ",".join("?" if dim is None else str(dim) for dim in shape) + "]"
