"""The shapes of a model's tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.analysis.shapes.bodies import inferred_with_bodies
from ucpe_onnx.analysis.shapes.partial import Shape
from ucpe_onnx.analysis.shapes.refine import Refinement, dimensions
from ucpe_onnx.model.skeleton import inferred, skeleton

_NO_NAMES = frozenset({"None", "?", "*", "-1", "unk"})
"""Names that some converters give every dimension that they don't know; equal ones need not be equally long."""


def infer_shapes(
    model: onnx.ModelProto,
    constants: Constants,
    input_shapes: Mapping[str, tuple[int, ...]],
    controls: Mapping[str, onnx.NodeProto] = MappingProxyType({}),
) -> tuple[dict[str, Shape], dict[str, int], dict[str, npt.NDArray[Any]]]:
    """Infer shapes and element types.

    An integer holds for every input that the model accepts and that has no axis of length 0. Equal symbols are equal
    lengths as long as the inputs follow the symbols that they declare; symbols that only outputs or inner tensors
    declare are not believed.

    Args:
        model: the model; not changed.
        constants: its constants.
        input_shapes: shapes to infer the others from instead of the declared ones, by input name.
        controls: the nodes whose bodies have been unfolded, by name.

    Returns:
        The shape of every tensor whose rank is known, the element type of every tensor whose type is known, and the
        value of tensors that are computed from lengths alone and are the same for every input.
    """
    light = skeleton(model)
    _name_axes(light.graph.input)
    _forget_names((*light.graph.output, *light.graph.value_info))
    if input_shapes:
        _fix_inputs(light, input_shapes)
    declared = {dim.dim_param for value in light.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    with contextlib.suppress(Exception):  # inference stops at what it does not know; the declared shapes still serve
        light = inferred_with_bodies(light, controls) if controls else inferred(light)
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in (*light.graph.value_info, *light.graph.input, *light.graph.output):
        if not value.type.HasField("tensor_type"):
            continue
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = dimensions(tensor.shape)
    refinement = Refinement(model, constants, shapes, types, declared)
    nodes = model.graph.node
    if any(node.op_type == "Shape" or any(map(refinement.is_open, node.output)) for node in nodes):
        refinement.run(model.graph.node)
    return shapes, types, _lengths(model, shapes, refinement)


def _lengths(
    model: onnx.ModelProto, shapes: Mapping[str, Shape], refinement: Refinement
) -> dict[str, npt.NDArray[Any]]:
    lengths = {name: value.known() for name, value in refinement.values.items() if value is not None}
    found = {name: value for name, value in lengths.items() if value is not None}
    for node in model.graph.node:
        if node.op_type != "Shape" or node.domain not in ("", "ai.onnx"):
            continue
        if node.output[0] not in found and node.input[0] in shapes:
            bounds = {attribute.name: attribute.i for attribute in node.attribute}
            dims = shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")]
            if all(isinstance(d, int) for d in dims):
                found[node.output[0]] = np.asarray(dims, dtype=np.int64)
    return found


def _name_axes(inputs: Iterable[onnx.ValueInfoProto]) -> None:
    """Give every open axis of an input that has no name of its own one, so that it is known where it is copied."""
    for value in inputs:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0 and (not dim.dim_param or dim.dim_param in _NO_NAMES):
                dim.dim_param = f"{value.name}.{axis}"


def _forget_names(values: Iterable[onnx.ValueInfoProto]) -> None:
    """Open the axes without a length. Converters name them carelessly: one name for outputs that differ in length."""
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value <= 0:
                dim.Clear()


def _fix_inputs(light: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Declare inputs with given shapes, and forget inner shapes that were declared for others."""
    for value in light.graph.input:
        if value.name in shapes:
            tensor = value.type.tensor_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, tensor.elem_type, shapes[value.name]))
    del light.graph.value_info[:]
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
