"""What a run of a model is fed: arrays by input name, and how the graph declares its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = dict[str, Array]

_NUMPY_TYPES: dict[int, npt.DTypeLike] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.INT8: np.int8,
    onnx.TensorProto.INT16: np.int16,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.INT64: np.int64,
    onnx.TensorProto.UINT8: np.uint8,
    onnx.TensorProto.UINT16: np.uint16,
    onnx.TensorProto.UINT32: np.uint32,
    onnx.TensorProto.UINT64: np.uint64,
    onnx.TensorProto.BOOL: np.bool_,
    onnx.TensorProto.STRING: np.object_,
}


@dataclass(frozen=True)
class InputSpec:
    """One input of a model as the graph declares it.

    Attributes:
        name: name of the input.
        dtype: numpy type, or None where numpy can't hold the input (bfloat16, a sequence, an optional).
        shape: a size, a symbolic name or None (unknown) per axis; None if the graph declares no shape.
        kind: the declared type in words, for messages.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Describe the inputs that a run must be fed: graph inputs that are not initializers, in graph order."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants.update(sparse.values.name for sparse in graph.sparse_initializer)
    return tuple(_input_spec(value) for value in graph.input if value.name not in constants)


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.WhichOneof("value") or "undeclared type"
    if kind != "tensor_type":
        return InputSpec(value.name, None, None, kind.removesuffix("_type"))
    tensor = value.type.tensor_type
    numpy_type = _NUMPY_TYPES.get(tensor.elem_type)
    dtype = None if numpy_type is None else np.dtype(numpy_type)
    shape = tuple(_axis(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return InputSpec(value.name, dtype, shape, f"{element} tensor")


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for "unknown"
    return dim.dim_param or None
