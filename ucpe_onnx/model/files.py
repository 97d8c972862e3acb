"""Model files in and out: clear errors on the way in, graph and weights that fit together on the way out."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from ucpe_onnx.errors import ModelError, UcpeError
from ucpe_onnx.model.external_data import (
    ExternalDataError,
    external_locations,
    has_weights_to_move,
    move_weights,
    read_external_data,
)
from ucpe_onnx.model.limits import check_tensors, excess_of
from ucpe_onnx.model.offload import Offload, has_offloaded, model_file
from ucpe_onnx.model.serialise import model_size, write_model
from ucpe_onnx.model.skeleton import skeleton
from ucpe_onnx.model.writing import all_or_nothing, partial_file, removed_afterwards

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes that one protobuf message may hold (2 GiB), less a margin for the graph around the weights."""

_LFS_POINTER = b"version https://git-lfs"


def load_model(path: str | os.PathLike[str], offload: Offload | None = None) -> onnx.ModelProto:
    """Read an ONNX file, its external data included.

    Args:
        path: the ``.onnx`` file.
        offload: where large weights go; None for memory.

    Returns:
        The model, with every weight in memory or offloaded.

    Raises:
        ModelError: the path is missing, no regular file, empty or not an ONNX model; its external data is missing or
            lies outside of its folder; or a tensor declares more than it holds.
    """
    file = Path(path)
    model = _parse(file)
    try:
        read_external_data(model, file.parent, offload)
    except (ExternalDataError, OSError) as error:
        raise ModelError(f"{file}: external data can't be read: {_first_line(error)}") from error
    check_tensors(model, str(file))
    return model if offload is None else offload.store(model)


def _parse(file: Path) -> onnx.ModelProto:
    """The model without its external data."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(f"{file}: is a directory; give the path of an .onnx model")
        if not stat.S_ISREG(mode):  # a pipe or device may never end, or never begin
            raise ModelError(f"{file}: is no regular file; write the model to one and give its path")
        if excess := excess_of(file):
            raise ModelError(f"{file}: {excess}; keep its weights in external data")
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
        if not start:
            raise ModelError(f"{file}: is empty; export the model again")
        if start == _LFS_POINTER:
            raise ModelError(f"{file}: is a git-lfs pointer, not the model itself; fetch it with git lfs pull")
        model = onnx.load(str(file), format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"{file}: no such file; give the path of an .onnx model") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{file}: not an ONNX model, truncated, or nested too deeply ({_first_line(error)}); export it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{file}: can't be read ({error.strerror})") from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{file}: holds no ONNX graph; is it an ONNX model?")
    return model


def external_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that hold a model's external data; none if the model can't be read."""
    try:
        locations = external_locations(_parse(Path(path)))
    except ModelError:
        return []
    return [Path(path).parent / location for location in sorted(locations) if location and "\0" not in location]


def check_model(model: onnx.ModelProto, where: str, *, shapes: bool = True) -> None:
    """Run ``onnx.checker``.

    Args:
        model: the model to check.
        where: what to call it in the message, usually its path.
        shapes: run full shape inference too.

    Raises:
        ModelError: the checker refuses the model; the message holds its first line.
    """
    try:
        if has_offloaded(model) and model.ByteSize() < PROTOBUF_LIMIT:
            with model_file(model) as file:
                onnx.checker.check_model(file, full_check=shapes)
            return
        subject = model if model_size(model) < PROTOBUF_LIMIT else skeleton(model)  # too large for the checker
        if model_size(subject) < PROTOBUF_LIMIT:
            onnx.checker.check_model(subject, full_check=shapes)
    except UcpeError:
        raise
    except Exception as error:  # the checker and shape inference raise unrelated types
        raise ModelError(f"{where}: onnx.checker refuses it: {_first_line(error)}") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def model_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 of a model in memory, as it is written to a file, in hexadecimal."""
    digest = hashlib.sha256()
    write_model(model, digest.update)
    return digest.hexdigest()


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str], *, external_data: bool = False) -> None:
    """Write an ONNX file at once.

    Args:
        model: the model; not changed.
        path: where to write it.
        external_data: write the weights to ``<name>.data`` beside it; above protobuf's 2 GiB they always go there.

    Raises:
        ModelError: a file can't be written.
    """
    file = Path(path)
    try:
        if (external_data or model_size(model) >= PROTOBUF_LIMIT) and has_weights_to_move(model):
            _save_with_external_data(model, file)
        else:
            with partial_file(file) as partial, partial.open("wb") as stream:
                write_model(model, stream.write)
    except (OSError, EncodeError, ValueError) as error:
        raise ModelError(f"{file}: can't be written ({_first_line(error)})") from error


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Where :func:`save_model` would write the weights of a model that it does not keep in one file.

    ``<name>.data`` unless there is such a file: what may be the weights of a model that is there now is not replaced,
    since somebody could read that model, or the process could die, before the new one is in its place.
    """
    file = Path(os.path.realpath(path))  # links stay links: the weights go beside the real file
    names = [f"{file.name}.data", *(f"{file.name}.{number}.data" for number in range(2, 10_000))]
    return next(file.with_name(name) for name in names if not os.path.lexists(file.with_name(name)))


def _save_with_external_data(model: onnx.ModelProto, file: Path) -> None:
    if file.exists() and not file.is_file():
        raise ValueError("it is no regular file, so that there is no place beside it for the weights")
    weights, old = weights_file(file), _own_weights(file)
    with all_or_nothing():
        with partial_file(weights) as partial, partial.open("wb") as stream:
            light = move_weights(model, weights.name, stream)
        with partial_file(file) as partial, partial.open("wb") as stream:
            write_model(light, stream.write)
        removed_afterwards(old)


def _own_weights(file: Path) -> list[Path]:
    """Files of weights that :func:`save_model` wrote for the model that is there now, and that no other one reads."""
    real = Path(os.path.realpath(file))
    ours = re.compile(re.escape(real.name) + r"(\.\d+)?\.data")
    found = {path for path in external_files(real) if ours.fullmatch(path.name) and path.parent == real.parent}
    for folder in (real.parent, real.parent.parent) if found else ():  # a model's weights lie beside it, or below
        for other in folder.glob("*.onnx"):
            if other != real:
                found.difference_update(Path(os.path.realpath(path)) for path in external_files(other))
    return sorted(found)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__
