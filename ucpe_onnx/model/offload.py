"""Weights of large models in files of our own while a job runs, so that memory holds only what is computed with.

A model in memory keeps its weights for as long as any part of it is in use, and onnxruntime makes packed copies of its
own. A offloaded tensor says where its bytes are instead, as external data does: onnxruntime, onnx.checker and numpy map
the file and let go of it again.
"""

from __future__ import annotations

import ctypes
import io
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.model.limits import tensor_bytes

LEAST_MODEL = 2**25
"""Bytes of weights from which a model is offloaded; smaller ones are faster in memory, and no burden."""

LEAST_TENSOR = 2**20
"""Bytes from which a tensor is. What shape inference wants to see the value of is smaller."""

PAGE = 4096
"""Large tensors begin at the start of a page, so that runtimes can map them."""

VALUE_FIELDS = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
"""Where a tensor may hold its value."""

_EMPTIED = (*VALUE_FIELDS, "data_location", "external_data")

_MAPPED: dict[int, npt.DTypeLike] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT16: np.int16,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32,
    TensorProto.UINT32: np.uint32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT64: np.uint64,
    TensorProto.BOOL: np.bool_,
}
"""Types that numpy maps as they are; others are read."""

_open: set[str] = set()
"""Folders of running jobs: a tensor is offloaded if it lies in one of these, whatever else a model may claim."""


class Offload:
    """A temporary folder, made when it is first needed, that a block offloads weights in.

    Where it can't be written to, weights stay in memory.
    """

    def __init__(self) -> None:
        self._folder: TemporaryFolder | None = None
        self._files = 0

    def __enter__(self) -> Offload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            _open.discard(os.path.realpath(self._folder.name))
            self._folder.cleanup()

    def store(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Write the large initializers of a model to a file.

        Args:
            model: the model; not changed. Small ones are offloaded only beside a large one, so that runs of both
                compare.

        Returns:
            A copy that holds all but these weights; the model itself if there is nothing to offload.
        """
        sizes = {i: tensor_bytes(t) for i, t in enumerate(model.graph.initializer) if _may_offload(t)}
        if not sizes or (self._folder is None and sum(sizes.values()) < LEAST_MODEL):
            return model
        light = copy_model(model, sizes)
        with self.file() as file:
            for index in sizes:
                file.put(light.graph.initializer[index], model.graph.initializer[index].raw_data)
        return light

    @contextmanager
    def file(self) -> Iterator[OffloadFile]:
        """A new file for tensors to lie in."""
        stream: BinaryIO | None = None
        with suppress(OSError):
            stream = io.BufferedWriter(io.FileIO(self._new_path(), "w"))
        try:
            yield OffloadFile(stream)
        finally:
            if stream is not None:
                with suppress(OSError):  # what lies in it has been flushed
                    stream.close()

    def _new_path(self) -> str:
        if self._folder is None:  # Windows keeps mapped files, hence the errors to ignore
            self._folder = TemporaryFolder()
            _open.add(os.path.realpath(self._folder.name))
        self._files += 1
        return os.path.join(os.path.realpath(self._folder.name), f"weights-{self._files}")

    @staticmethod
    def discard(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
        """Remove the files that hold weights of a model, but none of another model's."""
        for file in _files(model) - _files(other):
            with suppress(OSError):
                os.unlink(file)


class OffloadFile:
    """A file that tensors are put into; with no stream, or on a full disk, they keep their data."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def put(self, tensor: TensorProto, data: bytes) -> None:
        """Give a tensor its bytes: in the file, or else in memory."""
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        try:
            if self._stream is None:
                raise OSError
            self._stream.write(bytes(-self._stream.tell() % PAGE))
            offset = self._stream.tell()
            self._stream.write(data)
            self._stream.flush()
        except OSError:
            self._stream = None
            tensor.raw_data = data
            return
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._stream.name), ("offset", offset), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))


@dataclass(frozen=True)
class _FiledArray:
    """An array in a file."""

    file: IO[bytes]
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class FiledArrays:
    """Arrays by name, of which large ones lie in files without names while a large model is in work.

    Such a file goes when this does; such an array is mapped anew whenever it is asked for, and let go of by the caller.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any] | _FiledArray] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def get(self, name: str) -> npt.NDArray[Any] | None:
        """The array, None if there is none."""
        found = self._arrays.get(name)
        if isinstance(found, _FiledArray):
            return np.asarray(np.memmap(found.file, found.dtype, "r", found.offset, found.shape))
        return found

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The array's shape, None if there is none."""
        return self._arrays[name].shape if name in self._arrays else None

    def update(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add arrays."""
        self._arrays.update(arrays)
        large = {n: a for n, a in arrays.items() if a.nbytes >= LEAST_TENSOR and not a.dtype.hasobject}
        if _open and large:
            with suppress(OSError):  # no space: they stay in memory
                file = tempfile.TemporaryFile(dir=next(iter(_open)))  # noqa: SIM115 (lives as long as the arrays)
                filed = {name: _write(array, file) for name, array in large.items()}
                file.flush()
                self._arrays.update(filed)


def _write(array: npt.NDArray[Any], file: IO[bytes]) -> _FiledArray:
    offset = file.tell()
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return _FiledArray(file, offset, array.dtype, array.shape)


def trim_memory() -> None:
    """Give memory back to the system that has been freed, which glibc keeps, if a large model is in work."""
    if _open:
        with suppress(AttributeError, OSError, TypeError):  # no glibc, and no need
            ctypes.CDLL(None).malloc_trim(0)


def is_offloaded(tensor: TensorProto) -> bool:
    """Whether a tensor's bytes lie in a file of a running job's."""
    if not _open or not uses_external_data(tensor):
        return False
    return any(entry.key == "location" and os.path.dirname(entry.value) in _open for entry in tensor.external_data)


def has_offloaded(model: onnx.ModelProto) -> bool:
    """Whether some initializer is offloaded."""
    return any(is_offloaded(tensor) for tensor in model.graph.initializer)


def tensor_value(tensor: TensorProto) -> npt.NDArray[Any]:
    """The value of a tensor, offloaded or not; a offloaded one is mapped, not read, where numpy knows its type.

    Raises:
        ValueError, TypeError: the tensor's bytes don't fit its shape and type.
    """
    if not is_offloaded(tensor):
        return numpy_helper.to_array(tensor)
    dtype = _MAPPED.get(tensor.data_type)
    if dtype is None:
        return numpy_helper.to_array(_complete(tensor))
    file, offset, _ = _place(tensor)
    return np.asarray(np.memmap(file, dtype, "r", offset, tuple(tensor.dims)))


def tensor_data(tensor: TensorProto) -> bytes:
    """The raw bytes of a tensor that is offloaded or has raw data."""
    if not is_offloaded(tensor):
        return bytes(tensor.raw_data)
    file, offset, length = _place(tensor)
    with open(file, "rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself if nothing of it is offloaded, else a copy with all weights in memory."""
    if not has_offloaded(model):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, tensor in enumerate(copy.graph.initializer):
        if is_offloaded(tensor):
            tensor.CopyFrom(_complete(model.graph.initializer[index]))
    return copy


@contextmanager
def model_file(model: onnx.ModelProto) -> Iterator[str]:
    """A file beside the offloaded weights of a model that others can load it from.

    Raises:
        ModelError: it can't be written.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    offloaded = [tensor for tensor in copy.graph.initializer if is_offloaded(tensor)]
    folder = os.path.dirname(_place(offloaded[0])[0])
    for tensor in offloaded:
        entry = next(entry for entry in tensor.external_data if entry.key == "location")
        entry.value = os.path.basename(entry.value)
    handle, path = tempfile.mkstemp(".onnx", "model-", folder)
    os.close(handle)
    try:
        try:
            onnx.save_model(copy, path, format="protobuf")
        except OSError as error:
            raise ModelError(f"the model can't be written to {folder} ({error.strerror}); free disk space") from error
        yield path
    finally:
        os.unlink(path)
        trim_memory()  # loading takes more than what is loaded


def copy_model(model: onnx.ModelProto, hollow: Collection[int]) -> onnx.ModelProto:
    """A copy in which some initializers, given by their places, say nothing of their values or where these lie.

    Protobuf frees what a message holds only with the whole message: deleting data from a copy would free nothing.
    """
    copy = onnx.ModelProto()
    if not hollow or _has_unknown(model) or _has_unknown(model.graph):
        copy.CopyFrom(model)
        for index in hollow:
            _hollow(copy.graph.initializer[index])
        return copy
    _copy_fields(model, copy, "graph")
    copy.graph.SetInParent()
    _copy_fields(model.graph, copy.graph, "initializer")
    for index, tensor in enumerate(model.graph.initializer):
        own = copy.graph.initializer.add()
        if index in hollow and not _has_unknown(tensor):
            _copy_fields(tensor, own, *_EMPTIED)
        else:
            own.CopyFrom(tensor)
        if index in hollow:
            _hollow(own)
    return copy


def held_bytes(tensor: TensorProto) -> int:
    """Bytes of a large tensor that is offloaded or has raw data; 0 for others."""
    if is_offloaded(tensor):
        return _place(tensor)[2]
    large = tensor.HasField("raw_data") and tensor_bytes(tensor) >= LEAST_TENSOR
    return len(tensor.raw_data) if large else 0


def _may_offload(tensor: TensorProto) -> bool:
    """Whether a tensor is large and has just the raw data that it declares: all else is for others to complain of."""
    size = tensor_bytes(tensor)
    if size < LEAST_TENSOR or tensor.HasField("data_location") or not tensor.HasField("raw_data"):
        return False
    if tensor.external_data or tensor.HasField("segment") or any(getattr(tensor, field) for field in VALUE_FIELDS[1:]):
        return False
    return len(tensor.raw_data) == size


def _place(tensor: TensorProto) -> tuple[str, int, int]:
    """File, offset and length of external data."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries.get("location", ""), int(entries.get("offset", "0")), int(entries.get("length", "0"))


def _files(model: onnx.ModelProto) -> set[str]:
    return {_place(tensor)[0] for tensor in model.graph.initializer if is_offloaded(tensor)}


def _complete(tensor: TensorProto) -> TensorProto:
    whole = TensorProto()
    whole.CopyFrom(tensor)
    _hollow(whole)
    whole.raw_data = tensor_data(tensor)
    return whole


def _hollow(tensor: TensorProto) -> None:
    for field in _EMPTIED:
        tensor.ClearField(field)


def _copy_fields(source: Any, target: Any, *but: str) -> None:
    """Copy what is set of a message, except for some fields, which are not looked at."""
    for field in source.DESCRIPTOR.fields:
        value = None if field.name in but else getattr(source, field.name)
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif value is None or not source.HasField(field.name):
            continue
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).SetInParent()
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _has_unknown(message: Any) -> bool:
    """Whether a message holds fields of a later ONNX than is installed, which only whole copies preserve."""
    try:
        from google.protobuf.unknown_fields import UnknownFieldSet  # noqa: PLC0415 (younger than protobuf itself)
    except ImportError:
        return True
    return len(UnknownFieldSet(message)) > 0
