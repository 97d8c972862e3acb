"""Trained values in the file that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.offload import VALUE_FIELDS, copy_model

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})


def with_trained(model: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]]) -> onnx.ModelProto:
    """A copy of a model with other values in some of its constants; nothing else of it changes.

    Args:
        model: the model that was trained, as it was given or with its functions expanded; not changed.
        values: new values by the name of the initializer, or of the output of a Constant node. They are stored in the
            constant's own type; what lay in an external file then lies in the model.

    Raises:
        ModelError: there is no such constant, or it is of another shape or no float.
    """
    graph = model.graph
    places = {tensor.name: index for index, tensor in enumerate(graph.initializer)}
    nodes = {node.output[0]: index for index, node in enumerate(graph.node) if node.op_type == "Constant"}
    for name, value in values.items():
        shape = None
        if name in places:
            shape = _shape(graph.initializer[places[name]])
        elif name in nodes:
            shape = _attribute_shape(graph.node[nodes[name]].attribute[0])
        if shape != value.shape:
            raise ModelError(
                f"trained values of shape {list(value.shape)} for {name!r} don't fit: the model has no such constant of"
                " floats; write them into the model that was trained"
            )
    copy = copy_model(model, [places[name] for name in values if name in places])
    for name, value in values.items():
        if name in places:
            _fill(copy.graph.initializer[places[name]], value)
        else:
            _fill_attribute(copy.graph.node[nodes[name]].attribute[0], value)
    return copy


def _shape(tensor: TensorProto) -> tuple[int, ...] | None:
    return tuple(tensor.dims) if tensor.data_type in _FLOATS else None


def _attribute_shape(attribute: onnx.AttributeProto) -> tuple[int, ...] | None:
    if attribute.name == "value":
        return _shape(attribute.t)
    return (len(attribute.floats),) if attribute.name == "value_floats" else None


def _fill_attribute(attribute: onnx.AttributeProto, value: npt.NDArray[Any]) -> None:
    if attribute.name == "value":
        _fill(attribute.t, value)
    else:
        attribute.floats[:] = value.tolist()


def _fill(tensor: TensorProto, value: npt.NDArray[Any]) -> None:
    for field in (*VALUE_FIELDS, "data_location", "external_data"):
        tensor.ClearField(field)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    tensor.raw_data = np.ascontiguousarray(value, dtype=dtype).tobytes()
