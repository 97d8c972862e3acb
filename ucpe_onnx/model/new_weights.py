"""A model with other values in some of its initializers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.errors import MaskError, UcpeError
from ucpe_onnx.model.offload import copy_model
from ucpe_onnx.model.writing import partial_file

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NewWeight:
    """The value of a float32 initializer, as a plan keeps it.

    Attributes:
        shape: its shape.
        data: its elements, row by row, little-endian.
    """

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, value: Array) -> NewWeight:
        """Keep a value."""
        return cls(tuple(value.shape), np.ascontiguousarray(value, dtype="<f4").tobytes())

    @property
    def value(self) -> Array:
        """The value."""
        return np.frombuffer(self.data, dtype="<f4").reshape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"shape": list(self.shape), "float32": base64.b64encode(self.data).decode("ascii")}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> NewWeight:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: the data does not fit the shape, is no base64, or not finite.
        """
        shape = tuple(int(size) for size in raw["shape"])
        try:
            data = base64.b64decode(raw["float32"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"new weights are not base64 ({error})") from error
        if min(shape, default=1) < 0 or len(data) != 4 * math.prod(shape):
            raise ValueError(f"new weights of shape {list(shape)} have {len(data)} bytes")
        if not np.isfinite(np.frombuffer(data, dtype="<f4")).all():
            raise ValueError("new weights are NaN or infinite")
        return cls(shape, data)


def weights_sha256(weights: Mapping[str, NewWeight]) -> str:
    """SHA-256 of names, shapes and elements, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, new in weights.items():
        digest.update(f"{name!r}{list(new.shape)}".encode())
        digest.update(new.data)
    return digest.hexdigest()


def save_weights(weights: Mapping[str, NewWeight], path: str | os.PathLike[str]) -> None:
    """Write weights as an ``.npz`` file with the keys "0", "1" and so on, since not every name can be a key.

    Raises:
        UcpeError: the file can't be written.
    """
    arrays: dict[str, Any] = {str(index): new.value for index, new in enumerate(weights.values())}
    try:
        with partial_file(path) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        raise UcpeError(f"{os.fspath(path)}: can't be written ({error.strerror})") from error


def load_weights(path: Path, names: Sequence[str]) -> dict[str, NewWeight]:
    """Read what :func:`save_weights` wrote.

    Args:
        path: the file.
        names: of the weights, in their order.

    Raises:
        MaskError: the file can't be read, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed, as no plan's weights are")  # and might grow beyond all bounds
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[str(index)] for index, name in enumerate(names)}
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file; keep it beside its plan, or make a new plan") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise MaskError(f"{path}: not the weights of this plan ({error}); make a new plan") from error
    if any(value.dtype != np.float32 or not np.isfinite(value).all() for value in found.values()):
        raise MaskError(f"{path}: not the weights of this plan (not all are finite float32); make a new plan")
    return {name: NewWeight.of(value) for name, value in found.items()}


def with_weights(model: onnx.ModelProto, weights: Mapping[str, NewWeight]) -> onnx.ModelProto:
    """A copy of a model with other values in some float32 initializers; the model itself if there are none.

    Raises:
        MaskError: an initializer does not exist, or has another type or shape.
    """
    if not weights:
        return model
    places = {tensor.name: index for index, tensor in enumerate(model.graph.initializer)}
    for name, new in weights.items():
        tensor = model.graph.initializer[places[name]] if name in places else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or tuple(tensor.dims) != new.shape:
            raise MaskError(
                f"new weights of shape {list(new.shape)} for {name!r} don't fit: the model has no such float32"
                " initializer; make a new plan"
            )
    copy = copy_model(model, [places[name] for name in weights])
    for name, new in weights.items():
        tensor = copy.graph.initializer[places[name]]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        tensor.raw_data = new.data
    return copy
