"""What an operator is called with: its node and the state of the pass, and what all families need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from torch import Tensor

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.errors import ModelError

Result: TypeAlias = "Tensor | Sequence[Tensor | None]"
"""What an operator gives: its only output, or one tensor for each, None where nothing reads it."""

Operator: TypeAlias = "Callable[..., Result]"
"""A function of a :class:`Call` and the node's inputs in order, None for one that is left out before others."""

_FLOATING = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
"""Types that are computed in the network's own type, float32 unless the user has moved it to another."""

_DTYPES: dict[int, torch.dtype] = {
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
}
"""Torch computes little with unsigned integers of more than one byte: the next wider signed type stands for them."""

_WIDER: dict[str, npt.DTypeLike] = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


@dataclass(frozen=True)
class ForwardPass:
    """The state of one pass through the network.

    Attributes:
        training: whether dropout is active.
        updated: names of the running means and variances that this pass updates; normalisations that read others use
            them as they are.
        floating: type that float32 and narrower floats are computed in.
        device: where the weights lie.
    """

    training: bool
    updated: Collection[str]
    floating: torch.dtype
    device: torch.device

    def dtype(self, elem_type: int) -> torch.dtype | None:
        """The torch type that stands for an element type; None if nothing does (strings, packed types)."""
        return self.floating if elem_type in _FLOATING else _DTYPES.get(elem_type)


@dataclass(frozen=True)
class Call:
    """One node in one pass.

    Attributes:
        node: the node.
        opset: version of the standard operators.
        run: the pass.
        label: what to call the model in messages.
    """

    node: Node
    opset: int
    run: ForwardPass
    label: str = "the model"

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(self.node.attributes.get(name, default))

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.node.attributes.get(name, default))

    def flag(self, name: str) -> bool:
        """An integer attribute that says yes or no, which is the default."""
        return bool(self.node.attributes.get(name, 0))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.node.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> list[int] | None:
        """An attribute that is a list of integers, None where there is none."""
        value = self.node.attributes.get(name)
        return None if value is None else [int(v) for v in value]

    def axes(self, given: Tensor | None) -> list[int] | None:
        """The axes that newer opsets give as an input and older ones as an attribute; None if neither does."""
        return self.integers("axes") if given is None else integers(given)

    def dtype(self, elem_type: int) -> torch.dtype:
        """The torch type that stands for an element type.

        Raises:
            ModelError: nothing does.
        """
        dtype = self.run.dtype(elem_type)
        if dtype is None:
            raise self.refused(f"tensors of type {TensorProto.DataType.Name(elem_type).lower()}")
        return dtype

    def refused(self, what: str) -> ModelError:
        """The error for a form of the operator that is not supported, to be raised."""
        return ModelError(
            f"{self.label}: node {self.node.name!r} is a {self.node.op_type} with {what}, which can't be trained"
            " through yet: prune without training (python -m ucpe_onnx)"
        )


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of its own memory with the values of an array; half precision becomes float32."""
    if array.dtype.kind not in "fiub" or array.dtype == np.float16:  # kind "V": bfloat16, where numpy knows of it
        array = array.astype(np.float32)
    array = array.astype(_WIDER.get(array.dtype.name, array.dtype.newbyteorder("=")), order="C")
    return torch.from_numpy(array)


def filled(given: Sequence[Tensor | None], count: int) -> list[Tensor | None]:
    """Optional inputs, None for those at the end that the node leaves out."""
    return [*given, *(None for _ in range(count - len(given)))]


def integers(tensor: Tensor) -> list[int]:
    """The elements of an integer tensor that says a shape, axes or the like."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: what is computed from shapes lies on the CPU, activations may lie elsewhere."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1:
        return tensors
    device = next(device for device in devices if device.type != "cpu")
    return tuple(tensor.to(device) for tensor in tensors)


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of a tensor with a value; negative widths cut off instead.

    Args:
        x: the tensor.
        before: width in front of each of the last axes.
        after: width behind each of them.
        value: what to pad with.
    """
    if not any(before) and not any(after):
        return x
    pairs = zip(reversed(before), reversed(after), strict=True)
    return torch.nn.functional.pad(x, [width for pair in pairs for width in pair], value=value)
