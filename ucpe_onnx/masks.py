"""Mask files: which input channels each consumer keeps."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ucpe_onnx.errors import MaskError
from ucpe_onnx.model.limits import excess_of

Mask: TypeAlias = npt.NDArray[np.bool_]


_HEADER, _WIDEST = 4096, 16
"""Bytes that an array's header takes at most, and one of its elements."""


def load_masks(path: str | os.PathLike[str], channels: Mapping[str, int]) -> dict[str, Mask]:
    """Read a mask file.

    Args:
        path: ``.npz`` with one boolean array per consumer (True = keep), or ``.json`` ``{name: [kept indices]}``.
        channels: number of input channels of every consumer of the model.

    Returns:
        One mask of shape (C_in,) for each consumer that the file names.

    Raises:
        MaskError: the file can't be read, or a mask does not fit its consumer.
    """
    file = Path(path)
    if not file.is_file():
        raise MaskError(f"{file}: no such file; give an .npz or .json mask file")
    if excess := excess_of(file):
        raise MaskError(f"{file}: {excess}: not a mask file")
    raw = _read_json(file) if file.suffix == ".json" else _read_npz(file, channels)
    try:
        return check_masks(raw, channels)
    except MaskError as error:
        raise MaskError(f"{file}: {error}") from error


def check_masks(masks: Mapping[str, Any], channels: Mapping[str, int]) -> dict[str, Mask]:
    """Check masks against the consumers of a model.

    Args:
        masks: for each consumer a boolean array of shape (C_in,), or a list of kept indices.
        channels: number of input channels of every consumer of the model.

    Returns:
        The masks as boolean arrays.

    Raises:
        MaskError: an unknown consumer, a wrong length or type, an index out of range, or a mask that keeps nothing.
    """
    checked = {}
    for name, value in masks.items():
        if name not in channels:
            raise MaskError(
                f"mask for {name!r}: the model has no such consumer; `python -m ucpe_onnx.inspect MODEL` lists them"
            )
        mask = _as_mask(name, value, channels[name])
        if not mask.any():
            raise MaskError(f"mask for {name!r} keeps nothing: keep one channel at least, or leave the consumer out")
        checked[name] = mask
    return checked


def save_masks(path: str | os.PathLike[str], masks: Mapping[str, Mask]) -> None:
    """Write masks as ``.npz`` or, by the path's suffix, ``.json``."""
    file = Path(path)
    if file.suffix == ".json":
        kept = {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
        file.write_text(json.dumps(kept), encoding="utf-8")
        return
    with zipfile.ZipFile(file, "w") as archive:  # np.savez takes names as keywords: no slashes, no "file"
        for name, mask in masks.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.asarray(mask, dtype=bool))


def _as_mask(name: str, value: Any, channels: int) -> Mask:
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal length
        raise MaskError(f"mask for {name!r}: expected a list of channel indices") from error
    if array.dtype != np.bool_ and isinstance(value, (list, tuple)):
        if array.size and (array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)):
            raise MaskError(f"mask for {name!r}: expected a list of channel indices")
        mask = np.zeros(channels, dtype=bool)
        outside = [int(i) for i in array if not 0 <= i < channels]
        if outside:
            raise MaskError(f"mask for {name!r}: index {outside[0]} is outside of its {channels} input channels")
        mask[array.astype(np.int64)] = True
        return mask
    if array.dtype != np.bool_:
        raise MaskError(f"mask for {name!r}: expected a boolean array (True = keep), got {array.dtype}")
    if array.shape != (channels,):
        raise MaskError(f"mask for {name!r} has shape {array.shape}, the consumer reads {channels} input channels")
    return array


def _read_npz(file: Path, channels: Mapping[str, int]) -> dict[str, Any]:
    most = _HEADER + _WIDEST * max(channels.values(), default=0)
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise MaskError(f"{file}: holds one bare array; expected an .npz with one boolean array per consumer")
        with archive:
            for member in archive.zip.infolist() if archive.zip else ():
                if member.file_size > most:  # before it is unpacked: a few bytes may stand for gigabytes
                    raise MaskError(f"{file}: {member.filename} takes {member.file_size:,} bytes, more than any mask")
            return {name: archive[name] for name in archive.files}
    except (MemoryError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise MaskError(f"{file}: not an .npz mask file ({error})") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise MaskError(f"{file}: not a .json mask file ({error})") from error
    if not isinstance(raw, dict):
        raise MaskError(f"{file}: expected an object {{consumer name: [kept indices]}}")
    for name, kept in raw.items():
        if not isinstance(kept, list):
            raise MaskError(f"{file}: mask for {name!r}: expected a list of kept channel indices")
    return raw
