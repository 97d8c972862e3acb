"""External data: weights in files beside the model's, read with suspicion and written at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from ucpe_onnx.model.limits import all_tensors, bodies, machine_memory, most_bytes, tensor_bytes
from ucpe_onnx.model.offload import (
    LEAST_MODEL,
    LEAST_TENSOR,
    PAGE,
    VALUE_FIELDS,
    Offload,
    copy_model,
    is_offloaded,
    tensor_data,
)

_SMALL = 1024
"""Tensors of fewer bytes stay in the model: shape inference wants to see them, and they are no burden."""


class ExternalDataError(Exception):
    """A tensor's file is not where or what it has to be; the message names both."""


def external_locations(model: onnx.ModelProto) -> set[str]:
    """Where the model says that its weights are, as it says it."""
    return {_entries(t).get("location", "") for t in all_tensors(model) if uses_external_data(t)}


def read_external_data(model: onnx.ModelProto, folder: Path, offload: Offload | None = None) -> None:
    """Read all external data into the model.

    Args:
        model: the model, changed in place.
        folder: where its file is. Nothing outside of it is read, whatever paths or links say.
        offload: where large initializers of a large model go instead, one after the other.

    Raises:
        ExternalDataError: a path leaves the folder, a file is missing or none, or does not hold what its tensor needs.
        OSError: a file can't be read.
    """
    tensors = [tensor for tensor in all_tensors(model) if uses_external_data(tensor)]
    total, limit = sum(tensor_bytes(tensor) for tensor in tensors), machine_memory()
    if total > limit:
        raise ExternalDataError(f"its tensors take {total:,} bytes, and this machine has {limit:,} of memory")
    if offload is not None:
        _offload(model, folder, offload)
    for tensor in tensors:
        if not is_offloaded(tensor):
            tensor.raw_data = _read(tensor, folder)
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def _offload(model: onnx.ModelProto, folder: Path, offload: Offload) -> None:
    """Move large external initializers of a large model from the user's files to our own."""
    large = [t for t in model.graph.initializer if uses_external_data(t) and tensor_bytes(t) >= LEAST_TENSOR]
    if sum(tensor_bytes(tensor) for tensor in large) < LEAST_MODEL:
        return
    with offload.file() as file:
        for tensor in large:
            data = _read(tensor, folder)
            if len(data) == tensor_bytes(tensor):
                file.put(tensor, data)


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _read(tensor: TensorProto, folder: Path) -> bytes:
    entries = _entries(tensor)
    file = _inside(folder, entries.get("location", ""), tensor.name)
    size, needed = file.stat().st_size, tensor_bytes(tensor)
    offset = _number(entries.get("offset", "0"), tensor.name)
    length = _number(entries.get("length", str(max(size - offset, 0))), tensor.name)
    if offset + length > size:
        raise ExternalDataError(
            f"tensor {tensor.name!r} is at {offset:,} to {offset + length:,} of {file.name}, which has {size:,} bytes"
        )
    if length < needed:
        raise ExternalDataError(
            f"tensor {tensor.name!r} declares the shape {list(tensor.dims)}, which takes {needed:,} bytes, but has"
            f" {length:,} in {file.name}"
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(min(length, most_bytes(tensor)))  # a file without an end may lie behind it


def _inside(folder: Path, location: str, name: str) -> Path:
    windows = PureWindowsPath(location)
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ExternalDataError(f"tensor {name!r} is in {location!r}, outside of the model's folder; move it there")
    if not location or "\0" in location:
        raise ExternalDataError(f"tensor {name!r} names no file ({location!r})")
    base, file = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / location))
    if not file.is_relative_to(base):
        raise ExternalDataError(f"tensor {name!r} is in {location!r}, a link out of the model's folder; copy it there")
    if not file.exists():
        raise ExternalDataError(f"tensor {name!r} is in {location!r}, but there is no such file beside the model")
    if not file.is_file():
        raise ExternalDataError(f"tensor {name!r} is in {location!r}, which is no regular file")
    return file


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ExternalDataError(f"tensor {name!r} has the offset or length {text[:40]!r}, which is no size of a file")
    return int(text)


def move_weights(model: onnx.ModelProto, location: str, stream: BinaryIO) -> onnx.ModelProto:
    """Write the large initializers to a stream, one after the other.

    Args:
        model: the model; not changed.
        location: what the file is called, relative to the model's.
        stream: where to write to.

    Returns:
        A copy that says where each of them is.
    """
    places = [index for index, tensor in enumerate(model.graph.initializer) if _is_movable(tensor)]
    copy = copy_model(model, places)
    for index in places:
        _move(copy.graph.initializer[index], _data(model.graph.initializer[index]), location, stream)
    for tensor in _movable_inside(copy.graph.node):
        _move(tensor, _data(tensor), location, stream)
    return copy


def _move(tensor: TensorProto, data: bytes, location: str, stream: BinaryIO) -> None:
    """Write a tensor's data and leave in the tensor where it is."""
    if len(data) >= LEAST_TENSOR:
        stream.write(bytes(-stream.tell() % PAGE))
    offset = stream.tell()
    length = stream.write(data)
    for field in VALUE_FIELDS:
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def has_weights_to_move(model: onnx.ModelProto) -> bool:
    """Whether :func:`move_weights` would write anything."""
    return any(map(_is_movable, model.graph.initializer)) or any(True for _ in _movable_inside(model.graph.node))


def _movable_inside(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for body in bodies(node):
            yield from filter(_is_movable, body.initializer)
            yield from _movable_inside(body.node)


def _is_movable(tensor: TensorProto) -> bool:
    return tensor.data_type != TensorProto.STRING and tensor_bytes(tensor) >= _SMALL


def _data(tensor: TensorProto) -> bytes:
    """The bytes of a tensor, in whatever field it holds its value."""
    if tensor.HasField("raw_data") or is_offloaded(tensor):
        return tensor_data(tensor)
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
