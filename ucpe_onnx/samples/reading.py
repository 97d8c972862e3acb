"""Samples in files: archives of arrays, and folders in the layout of the ONNX model zoo; read with suspicion."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from ucpe_onnx.errors import DataError
from ucpe_onnx.model.limits import machine_memory
from ucpe_onnx.samples.inputs import Array, Feed, InputSpec

FORMS = "an .npz file, a directory with test_data_set_N/input_M.pb, or module:callable"


def reason(error: BaseException) -> str:
    """An error in one line, with its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file, by name.

    Raises:
        DataError: it can't be read, or takes more memory than there is.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; give {FORMS}")
    check_regular(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            check_unpacked(path, archive.zip)
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file ({reason(error)}); write it with numpy.savez") from error


def check_regular(path: Path) -> None:
    """Refuse pipes and devices, which may never end."""
    if not path.is_file():
        raise DataError(f"{path}: is no regular file; give {FORMS}")


def check_unpacked(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse what would fill the memory: a few bytes of an archive may stand for gigabytes."""
    needed = sum(member.file_size for member in archive.infolist())
    if needed > machine_memory() // 2:
        raise DataError(
            f"{path}: its arrays take {needed:,} bytes, more than half of this machine's memory; give fewer samples, or"
            " module:callable, which gives them one by one"
        )


def read_zoo(folder: Path, specs: Sequence[InputSpec]) -> list[Feed]:
    """The feeds of a folder in the layout of the ONNX model zoo: ``test_data_set_N/input_M.pb``.

    Raises:
        DataError: there are none, or one can't be read.
    """
    sets = [folder] if any(folder.glob("input_*.pb")) else [path for path in folder.iterdir() if path.is_dir()]
    feeds = []
    for path in sorted(sets, key=_natural):
        files = sorted(path.glob("input_*.pb"), key=_natural)
        if not files:
            continue
        if len(files) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise DataError(f"{path}: holds {len(files)} input_M.pb files; give one per model input, in order: {names}")
        feeds.append({spec.name: _read_tensor(file) for spec, file in zip(specs, files, strict=True)})
    if not feeds:
        raise DataError(f"{folder}: no test_data_set_N/input_M.pb in it; give {FORMS}")
    return feeds


def _read_tensor(file: Path) -> Array:
    check_regular(file)
    try:
        tensor = onnx.TensorProto.FromString(file.read_bytes())
        if uses_external_data(tensor):
            raise ValueError("its values lie in another file")
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (OSError, DecodeError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DataError(f"{file}: not a readable TensorProto ({reason(error)}); write the file again") from error


def _natural(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", path.name)], path.name
