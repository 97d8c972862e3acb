"""Training samples, read in batches as they are needed: a set may be larger than memory."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ucpe_onnx.errors import DataError
from ucpe_onnx.samples.dataset import LABELS, Dataset, load_data, stream_data
from ucpe_onnx.samples.inputs import Array, InputSpec
from ucpe_onnx.samples.reading import check_regular, check_unpacked

_LOCAL_HEADER = 30
"""Bytes of a zip file's local header before the name and the extra field, whose lengths its last two fields are."""


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        feeds: an array for each input, first axis samples.
        labels: class id or target of each sample; None if there are none.
        count: how many samples there are.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    count: int


@dataclass(frozen=True)
class TrainingSamples:
    """Training samples that can be gone through any number of times; :func:`open_samples` makes them.

    Attributes:
        source: where they come from, for messages.
        data: the samples, which may be mapped files; None for a stream.
        stream: ``module:callable`` or a callable, called anew for every epoch.
        specs: the inputs of the model.
    """

    source: str
    data: Dataset | None
    stream: Any
    specs: Sequence[InputSpec]

    @property
    def count(self) -> int | None:
        """Number of samples; None for a stream, which nobody has counted."""
        return None if self.data is None else self.data.samples

    @property
    def labelled(self) -> bool:
        """Whether there are labels; of a stream the first item tells."""
        if self.data is not None:
            return self.data.labels is not None
        return next(self.batches(1)).labels is not None

    def split(self, every: int) -> tuple[TrainingSamples, TrainingSamples]:
        """All samples but every N-th, and those.

        Raises:
            DataError: they are a stream, or too few.
        """
        if self.data is None:
            raise DataError(f"{self.source}: a stream can't be split; give samples to judge by with --val-data")
        parts = [replace(self, data=data) for data in self.data.split(every)]
        if not all(part.count for part in parts):
            raise DataError(f"{self.source}: {self.count} samples are too few to hold every {every}th out")
        return parts[0], parts[1]

    def batches(self, size: int, random: np.random.Generator | None = None) -> Iterator[Batch]:
        """Go through all samples once.

        Args:
            size: samples in a batch; feeds that the user cut stay whole. The last batch may be smaller.
            random: shuffles; None leaves the order as it is. A stream shuffles by itself.

        Raises:
            DataError: a stream yields what does not fit the model, or nothing.
        """
        if self.data is None:
            return self._streamed(size)
        return self._whole(self.data, random) if self.data.whole else self._cut(self.data, size, random)

    @staticmethod
    def _whole(data: Dataset, random: np.random.Generator | None) -> Iterator[Batch]:
        starts = np.cumsum([0, *data.counts])
        order = np.arange(len(data.parts)) if random is None else random.permutation(len(data.parts))
        for index in order.tolist():
            labels = None if data.labels is None else data.labels[starts[index] : starts[index + 1]]
            yield Batch(data.parts[index], labels, data.counts[index])

    @staticmethod
    def _cut(data: Dataset, size: int, random: np.random.Generator | None) -> Iterator[Batch]:
        order = np.arange(data.samples) if random is None else random.permutation(data.samples)
        for start in range(0, data.samples, size):
            chosen = np.sort(order[start : start + size])  # in the order of the file, which may lie on a disk
            feeds = {name: np.ascontiguousarray(array[chosen]) for name, array in data.parts[0].items()}
            yield Batch(feeds, None if data.labels is None else data.labels[chosen], len(chosen))

    def _streamed(self, size: int) -> Iterator[Batch]:
        """Cut what a stream yields into batches; items that are larger stay whole."""
        waiting: list[Dataset] = []
        item = None
        for item in stream_data(self.stream, self.specs):
            waiting.append(item)
            if sum(data.samples for data in waiting) >= size:
                yield _joined(waiting)
                waiting = []
        if item is None:
            raise DataError(f"{self.source}: yields no samples; it is called anew for every epoch")
        if waiting:
            yield _joined(waiting)


def open_samples(source: Any, specs: Sequence[InputSpec], labels: Array | None = None) -> TrainingSamples:
    """Open training samples.

    Args:
        source: as ``--data`` takes it, a folder of ``<input>.npy`` files, or what
            :func:`ucpe_onnx.samples.dataset.load_data` takes in Python. Files are mapped into memory, not
            read, unless they are compressed. ``module:callable``, or a callable, is called anew for every epoch, and
            what it yields is forgotten at once.
        specs: the inputs of the model, with batch axes open.
        labels: class ids of all samples, if the source does not hold them.

    Raises:
        DataError: the source can't be read or does not fit the model.
    """
    where = os.fspath(source) if isinstance(source, str | os.PathLike) else "the data"
    if _is_stream(source):
        if labels is not None:
            raise DataError(f"{where}: labels of a stream must be in its items, as {LABELS!r}")
        return TrainingSamples(where, None, source, specs)
    data = load_data(_mapped(source), specs, where)
    if labels is not None:
        if len(labels) != data.samples:
            raise DataError(f"{where}: there are {data.samples} samples but {len(labels)} labels")
        data = replace(data, labels=labels)
    return TrainingSamples(where, data, None, specs)


def _joined(items: list[Dataset]) -> Batch:
    feeds = {name: np.concatenate([item.parts[0][name] for item in items]) for name in items[0].parts[0]}
    labels = [item.labels for item in items if item.labels is not None]
    return Batch(feeds, np.concatenate(labels) if len(labels) == len(items) else None, sum(i.samples for i in items))


def _is_stream(source: Any) -> bool:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return not path.exists() and path.suffix != ".npz" and ":" in os.fspath(source)
    return callable(source)


def _mapped(source: Any) -> Any:
    """Arrays that are mapped into memory, where the source is files that allow it."""
    if not isinstance(source, str | os.PathLike):
        return source
    path = Path(source)
    try:
        if path.is_dir() and (files := sorted(path.glob("*.npy"))):
            return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
        if path.suffix == ".npz" and path.exists():
            return _mapped_archive(path)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: can't be read ({error}); write it with numpy.save or numpy.savez") from error
    return source


def _mapped_archive(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file; those that are not compressed stay on the disk until they are looked at."""
    found: dict[str, Array] = {}
    check_regular(path)
    with np.load(path, allow_pickle=False) as archive, zipfile.ZipFile(path) as members:
        if any(member.compress_type for member in members.infolist()):
            check_unpacked(path, members)
        for name in archive.files:
            inside = members.NameToInfo.get(f"{name}.npy")
            mapped = None if inside is None or inside.compress_type else _mapped_member(path, inside.header_offset)
            found[name] = archive[name] if mapped is None else mapped
    return found


def _mapped_member(path: Path, offset: int) -> Array | None:
    with path.open("rb") as file:
        file.seek(offset)
        name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
        file.seek(offset + _LOCAL_HEADER + name + extra)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            return None
        shape, fortran, dtype = read(file)
        if dtype.hasobject or 0 in shape:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
