"""Model files in and out: clear errors on the way in, nothing half-written on the way out."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from ucpe_onnx.errors import ModelError, UcpeError, UsageError

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes that one protobuf message may hold (2 GiB), less a margin for the graph around the weights."""

_LFS_POINTER = b"version https://git-lfs"


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file, its external data included.

    Args:
        path: the ``.onnx`` file.

    Returns:
        The model, with every weight in memory.

    Raises:
        ModelError: the path is missing, a directory, empty or not an ONNX model, or its external data is missing.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise ModelError(f"{file}: is a directory; give the path of an .onnx model")
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
        raise ModelError(f"{file}: not an ONNX model, or truncated ({_first_line(error)}); export it again") from error
    except OSError as error:
        raise ModelError(f"{file}: can't be read ({error.strerror})") from error
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{file}: holds no ONNX graph; is it an ONNX model?")
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # onnx raises several types here, from OSError to its own ValidationError
        raise ModelError(f"{file}: external data can't be read ({_first_line(error)})") from error
    return model


def check_model(model: onnx.ModelProto, where: str) -> None:
    """Run ``onnx.checker`` with full shape inference.

    Args:
        model: the model to check.
        where: what to call it in the message, usually its path.

    Raises:
        ModelError: the checker refuses the model; the message holds its first line.
    """
    try:
        if model.ByteSize() < PROTOBUF_LIMIT:
            onnx.checker.check_model(model, full_check=True)
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
    """SHA-256 of a model in memory, in its deterministic serialisation, in hexadecimal."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Fail before hours of work, not after, when an output can't be written.

    Raises:
        UsageError: the path is a directory, or its folder does not exist or can't be written to.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise UsageError(f"{file}: is a directory; give the path of a file to write")
        if not file.parent.is_dir():
            raise UsageError(f"{file}: can't be written, {file.parent} is not a directory; make it first")
        with partial_file(file) as partial:
            if partial != file:
                partial.touch()
                partial.unlink()
    except OSError as error:
        raise UsageError(f"{file}: can't be written ({error.strerror}); give a path in a writable folder") from error


@contextmanager
def partial_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` if the block ends well, removed if it does not.

    Links stay links. What is no regular file, such as ``/dev/null``, is written to directly: renaming would replace it.
    """
    file = Path(path)
    if file.exists() and not file.is_file():
        yield file
        return
    file = Path(os.path.realpath(file))
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.exists():
            os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file at once: a reader sees the old content or the new, never half.

    Raises:
        UcpeError: the file can't be written.
    """
    try:
        with partial_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UcpeError(f"{os.fspath(path)}: can't be written ({error.strerror})") from error


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write an ONNX file at once; above protobuf's 2 GiB the weights go to ``<name>.data`` beside it.

    Raises:
        ModelError: the file can't be written.
    """
    file = Path(path)
    try:
        if model.ByteSize() < PROTOBUF_LIMIT:
            with partial_file(file) as partial:
                onnx.save_model(model, str(partial), format="protobuf")
        else:
            _save_with_external_data(model, Path(os.path.realpath(file)))
    except (OSError, EncodeError, ValueError) as error:
        raise ModelError(f"{file}: can't be written ({_first_line(error)})") from error


def _save_with_external_data(model: onnx.ModelProto, file: Path) -> None:
    """Write both files in a folder of their own: onnx appends to a file of weights that is there already."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # onnx moves the weights out of the proto that it saves
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", suffix=".partial", dir=file.parent) as folder:
        partial, weights = Path(folder, file.name), Path(folder, f"{file.name}.data")
        onnx.save_model(copy, str(partial), format="protobuf", save_as_external_data=True, location=weights.name)
        for written in (weights, partial):
            os.replace(written, file.with_name(written.name))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__
