"""Pooling and resizing over space: channels pass, spatial axes stay."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints
from ucpe_onnx.analysis.rules.reshape import shape_input_follows
from ucpe_onnx.analysis.tracer import Tracer


def pool(tracer: Tracer, node: Node) -> None:
    """Every channel is pooled by itself. MaxPool's indices output counts across channels and fixes them."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data)
    if rank is None or node.has(1):
        tracer.freeze_node(node, f"pooling indices or unknown rank: {node.op_type} at {node.name}")
        return
    tracer.pass_through(node, data, out, [0, 1])
    for tensor in (data, out):
        tracer.freeze(tensor, f"spatial axis of {node.op_type} at {node.name}", range(2, rank))


def crop(tracer: Tracer, node: Node) -> None:
    """Crop, of ONNX's first years, cuts space and nothing else."""
    pool(tracer, node)


def scale_image(tracer: Tracer, node: Node) -> None:
    """ImageScaler, of ONNX's first years, holds one bias per channel as an attribute: channels stay."""
    pool(tracer, node)
    tracer.freeze(node.outputs[0], f"bias for each channel of ImageScaler at {node.name}", [1])


def resize(tracer: Tracer, node: Node) -> None:
    """Axes that keep their length and have scale 1 pass; the others stay. Sizes given as input are adapted."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data)
    mode = node.attributes.get("coordinate_transformation_mode", b"half_pixel")
    if rank is None or tracer.rank(out) != rank or mode == b"tf_crop_and_resize":
        tracer.freeze_node(node, f"crop or unknown rank: {node.op_type} at {node.name}")
        return
    scaled = _scaled_axes(tracer, node, rank)
    for axis in range(rank):
        known = tracer.size((data, axis))
        if axis in scaled or known is None or known != tracer.size((out, axis)):
            for tensor in (data, out):
                tracer.freeze(tensor, f"resized axis of {node.op_type} at {node.name}", [axis])
        else:
            tracer.link((data, axis), (out, axis), node)
    if len(node.inputs) > 3 and node.inputs[3] and "axes" not in node.attributes:
        shape_input_follows(tracer, node, 3)


def _scaled_axes(tracer: Tracer, node: Node, rank: int) -> set[int]:
    """Axes whose scale is not known to be 1."""
    if "scales" in node.attributes:
        scales = np.asarray(node.attributes["scales"], dtype=np.float64)
    else:
        index = 1 if node.op_type == "Upsample" or tracer.graph.opset < 11 else 2
        name = node.inputs[index] if index < len(node.inputs) else ""
        value = tracer.graph.value(name)
        if name and value is None:
            return set(range(2, rank))  # exporters compute spatial scales only; lengths are compared besides
        if value is None or value.size == 0:  # sizes: equal lengths say that the scale is 1
            return {int(axis) % rank for axis in node.attributes.get("axes", ())}  # chosen ones are not adapted
        scales = value.astype(np.float64)
    axes = constant_ints(tracer, node, "axes", len(node.inputs)) or list(range(rank))
    return {axis % rank for axis, scale in zip(axes, scales, strict=False) if scale != 1.0}


_POOLS = ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]

RULES = dict.fromkeys(_POOLS, pool) | {"Crop": crop, "ImageScaler": scale_image, "Resize": resize, "Upsample": resize}
