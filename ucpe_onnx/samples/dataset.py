"""Sample data of the user's (``--data``), read from any of its forms and checked against the model's inputs.

The forms: an ``.npz`` file, a directory in the layout of the ONNX model zoo, ``module:callable``, and in Python a
dict of arrays, an iterable of feeds or a calibration reader of onnxruntime's. All become one ``Dataset``.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ucpe_onnx.errors import DataError, UcpeError, UsageError
from ucpe_onnx.samples.inputs import Array, Feed, InputSpec
from ucpe_onnx.samples.reading import FORMS, read_npz, read_zoo, reason

LABELS = "labels"
"""Name of the optional array of class ids, unless the model has an input of that name."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples that fit a model's inputs; may be iterated any number of times.

    Attributes:
        source: where the samples come from, for messages and reports.
        parts: arrays by input name; each part is cut into batches on its own.
        counts: number of samples in each part.
        samples: number of samples in all.
        labels: class id of each sample, if the source has them.
        batch: size of the model's batch axis if it is fixed, else None.
        whole: whether a model with an open batch axis gets each part as it is, whatever batch size is asked for:
            true of feeds that the user cut, false of arrays that hold all samples.
    """

    source: str
    parts: tuple[Feed, ...]
    counts: tuple[int, ...]
    samples: int
    labels: Array | None
    batch: int | None
    whole: bool

    def batches(self, batch_size: int = 32) -> Iterator[Feed]:
        """Yield feeds for the model; see ``counted_batches``."""
        return (feed for feed, _ in self.counted_batches(batch_size))

    def counted_batches(self, batch_size: int = 32) -> Iterator[tuple[Feed, int]]:
        """Yield feeds for the model, each with its number of samples.

        Where the model fixes its batch axis, every feed has that size: the last one is padded with copies of its last
        sample, and the number tells how many are real.

        Args:
            batch_size: most samples in a feed, if the model leaves its batch axis open.

        Raises:
            UsageError: the batch size is below 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is below 1; give a positive number")
        for part, count in zip(self.parts, self.counts, strict=True):
            size = self.batch or (count if self.whole else batch_size)
            if size == count:
                yield part, count
                continue
            for start in range(0, count, size):
                cut = {name: array[start : start + size] for name, array in part.items()}
                real = min(size, count - start)
                yield _pad(cut, size - real if self.batch else 0), real

    def first(self, count: int) -> Dataset:
        """The first samples, about so many: feeds that the user cut stay whole."""
        return self._where(np.arange(self.samples) < count)

    def split(self, every: int) -> tuple[Dataset, Dataset]:
        """All samples but every N-th, and those; of feeds that the user cut every N-th feed."""
        chosen = np.arange(self.samples) % every == every - 1
        if self.whole:
            chosen = np.repeat(np.arange(len(self.counts)) % every == every - 1, self.counts)
        return self._where(~chosen), self._where(chosen)

    def apart(self, every: int) -> tuple[Dataset, Dataset]:
        """The same, but all samples twice where they are too few to be told apart."""
        rest, chosen = self.split(every)
        return (rest, chosen) if rest.samples and chosen.samples else (self, self)

    def _where(self, chosen: Array) -> Dataset:
        parts: list[Feed] = []
        counts: list[int] = []
        places: list[Array] = []
        start = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            inside = np.flatnonzero(chosen[start : start + count])
            if self.whole and chosen[start]:
                inside = np.arange(count)
            if inside.size == count:
                parts.append(part)
            elif inside.size and not self.whole:
                parts.append({name: array[inside] for name, array in part.items()})
            if len(parts) > len(counts):
                counts.append(int(inside.size))
                places.append(start + inside)
            start += count
        labels = None if self.labels is None or not places else self.labels[np.concatenate(places)]
        return replace(self, parts=tuple(parts), counts=tuple(counts), samples=sum(counts), labels=labels)


def load_data(source: Any, specs: Sequence[InputSpec], where: str = "the data") -> Dataset:
    """Read sample data for a model.

    Args:
        source: a path or ``module:callable`` as ``--data`` takes it, a mapping of names to arrays of all samples,
            an iterable of feeds (dicts), or an object with ``get_next()`` that returns feeds and then None.
        specs: the inputs of the model, from ``samples.inputs.input_specs``.
        where: what messages call a source that is no path.

    Returns:
        The checked samples.

    Raises:
        DataError: the source can't be read, holds no samples, or does not fit the inputs.
    """
    if isinstance(source, Dataset):
        return source
    if not isinstance(source, str | os.PathLike):
        return _from_object(source, specs, where)
    text = os.fspath(source)
    path = Path(text)
    if path.is_dir():
        return _dataset(read_zoo(path, specs), specs, text, whole=True)
    if path.suffix == ".npz":
        return _dataset([read_npz(path)], specs, text, whole=False)
    with _working_directory_importable():
        return _from_object(_named(text), specs, text)


def stream_data(source: Any, specs: Sequence[InputSpec]) -> Iterator[Dataset]:
    """Read feeds one at a time, each as a set of samples of its own: there may be more than fit in memory.

    Args:
        source: ``module:callable``, or a callable, that returns an iterable of feeds (dicts).
        specs: the inputs of the model.

    Raises:
        DataError: the source can't be read, or a feed does not fit the inputs.
    """
    where = source if isinstance(source, str) else "the data"
    with _working_directory_importable():
        made = _named(source) if isinstance(source, str) else _called(source, where)
        for index, item in enumerate(_feeds(made, where)):
            yield _dataset([item], specs, f"{where}, item {index}", whole=True)


def _named(text: str) -> Any:
    """What ``module:callable`` returns."""
    match = re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)", text)
    if match is None:
        path = Path(text)
        problem = f"can't read a {path.suffix or 'nameless'} file" if path.exists() else "no such file or directory"
        raise DataError(f"{text}: {problem}; give {FORMS}")
    return _call(text, match[1], match[2])


def _from_object(source: Any, specs: Sequence[InputSpec], where: str) -> Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, Mapping):
        return _dataset([dict(source)], specs, where, whole=False)
    return _dataset(list(_feeds(source, where)), specs, where, whole=True)


def _feeds(source: Any, where: str) -> Iterator[dict[str, Any]]:
    """The feeds of an iterable or a calibration reader, one by one."""
    if hasattr(source, "get_next"):
        source = iter(source.get_next, None)
    if not isinstance(source, Iterable) or isinstance(source, str | bytes | np.ndarray):
        raise DataError(f"{where}: is a {type(source).__name__}; give an iterable of dicts of input name to array")
    try:
        for index, item in enumerate(source):
            if not isinstance(item, Mapping):
                raise DataError(f"{where}: item {index} is a {type(item).__name__}; yield dicts of input name to array")
            yield dict(item)
    except UcpeError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise DataError(f"{where}: raised {reason(error)} while it was read; fix the loader") from error


def _call(text: str, module_name: str, attribute: str) -> Any:
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except ImportError as error:
        raise DataError(f"{text}: can't import {module_name} ({reason(error)}); give {FORMS}") from error
    except AttributeError as error:
        raise DataError(f"{text}: module {module_name} has no {attribute!r}; name a function of it") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise DataError(f"{text}: importing {module_name} raised {reason(error)}; fix the module") from error
    return _called(target, text) if callable(target) else target


def _called(function: Callable[[], Any], text: str) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        raise DataError(f"{text}: raised {reason(error)}; it is called without arguments") from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Let the console script import what ``python -m`` would find in the working directory."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _dataset(items: list[dict[str, Any]], specs: Sequence[InputSpec], source: str, whole: bool) -> Dataset:
    """Check every part and put them together; the only place where a ``Dataset`` is made."""
    batch = _fixed_batch(specs)
    parts, counts, labels = [], [], []
    for index, item in enumerate(items):
        where = f"{source}, item {index}" if len(items) > 1 else source
        if LABELS in item and all(spec.name != LABELS for spec in specs):
            labels.append(np.asarray(item.pop(LABELS)))
        _check_names(item, specs, where)
        part = {spec.name: _checked(item[spec.name], spec, where) for spec in specs}
        parts.append(part)
        counts.append(_count(part, specs, batch, where, whole))
    samples = sum(counts)
    if not samples or 0 in counts:
        where = f"{source}, item {counts.index(0)}" if samples else source
        raise DataError(f"{where}: holds no samples; give at least one")
    return Dataset(source, tuple(parts), tuple(counts), samples, _joined(labels, counts, source), batch, whole)


def _fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """The size that all inputs which fix their first axis agree on; an input without axes has no batch axis."""
    if any(spec.shape == () for spec in specs):
        return None
    sizes = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
    return sizes.pop() or None if len(sizes) == 1 else None


def _check_names(item: Mapping[str, Any], specs: Sequence[InputSpec], where: str) -> None:
    expected = [spec.name for spec in specs]
    missing = [name for name in expected if name not in item]
    extra = [str(name) for name in item if name not in expected]
    if len(missing) == len(extra) == 1:
        raise DataError(f"{where}: array {extra[0]!r} is not an input of the model; rename it to {missing[0]!r}")
    if missing:
        held = ", ".join(map(str, item)) or "nothing"
        raise DataError(f"{where}: no array for the input {missing[0]!r}; add it (the data holds {held})")
    if extra:
        raise DataError(
            f"{where}: array {extra[0]!r} is not an input; remove it (the model takes {', '.join(expected)})"
        )


def _checked(value: Any, spec: InputSpec, where: str) -> Array:
    """Return the value as an array of the input's type and rank; axis 0 is checked with the batch, in ``_count``."""
    if spec.dtype is None:
        if spec.kind.endswith("tensor"):
            raise DataError(
                f"{where}: {spec.name!r} is a {spec.kind}, which onnxruntime can't be fed from Python;"
                " cast this input inside of the model"
            )
        return value  # type: ignore[no-any-return]  # a sequence, an optional: onnxruntime judges
    array = np.asarray(value)
    if spec.dtype.kind == "O":
        if array.dtype.kind not in "OUS":
            raise DataError(f"{where}: {spec.name!r} is {array.dtype}, the model takes strings; convert it to str")
    elif array.dtype != spec.dtype:
        raise DataError(
            f"{where}: {spec.name!r} is {array.dtype}, the model takes {spec.dtype}; cast it to {spec.dtype}"
            + (" after the scaling that the model was trained with" if array.dtype == np.uint8 else "")
        )
    if spec.shape is None:
        return array
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise _misfit(spec, array, where, "reshape or transpose it")
    return array


def _count(part: Feed, specs: Sequence[InputSpec], batch: int | None, where: str, whole: bool) -> int:
    """Number of samples in a part; one whose inputs do not share a first axis can't be cut and is one batch."""
    sizes = {name: int(array.shape[0]) for name, array in part.items() if getattr(array, "ndim", 0)}
    shared = len(sizes) == len(part) and len(set(sizes.values())) == 1
    if not whole and not shared:
        found = ", ".join(f"{name!r} {sizes.get(name, 'none')}" for name in part)
        raise DataError(
            f"{where}: the first axis counts samples but differs between inputs ({found});"
            " make them equal, or give one feed at a time through module:callable"
        )
    if shared and batch:
        return next(iter(sizes.values()))
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], int) and spec.shape[0] != sizes[spec.name]:
            raise _misfit(spec, part[spec.name], where, "give feeds of exactly that shape through module:callable")
    return next(iter(sizes.values())) if shared else batch or 1


def _misfit(spec: InputSpec, array: Array, where: str, advice: str) -> DataError:
    declared = ", ".join("?" if dim is None else str(dim) for dim in spec.shape or ())
    shape = ", ".join(map(str, array.shape))
    return DataError(f"{where}: {spec.name!r} has shape ({shape}), the model takes ({declared}); {advice}")


def _joined(labels: list[Array], counts: list[int], source: str) -> Array | None:
    if not labels:
        return None
    if len(labels) != len(counts):
        raise DataError(f"{source}: {len(labels)} of {len(counts)} items have {LABELS!r}; give all of them, or none")
    for index, (label, count) in enumerate(zip(labels, counts, strict=True)):
        if label.ndim < 1 or label.shape[0] != count:
            found = label.shape[0] if label.ndim else "a single value"
            raise DataError(f"{source}: item {index} has {count} samples, {LABELS!r} has {found}; give one per sample")
    return np.concatenate(labels)


def _pad(feed: Feed, missing: int) -> Feed:
    if not missing:
        return feed
    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}
