"""Operators that pick positions: Gather, TopK, GridSample, RoiAlign and their like."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import broadcast_axis, normalized_axis
from ucpe_onnx.analysis.rules.rearrange import gather_follows
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def gather(tracer: Tracer, node: Node) -> None:
    """Constant indices pick channels, and are adapted; a constant table (an embedding) makes channels."""
    data, indices, out = tracer.operand(node, 0), tracer.operand(node, 1), node.outputs[0]
    ranks = (None if key is None else tracer.rank(key) for key in (data, indices))
    rank, extra = ranks
    if data is None or indices is None or rank is None or extra is None or tracer.rank(out) != rank - 1 + extra:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    axis = normalized_axis(int(node.attributes.get("axis", 0)), rank)
    _picked_axis(tracer, node, data, indices, axis)
    for other in (a for a in range(rank) if a != axis):
        target = (out, other if other < axis else other - 1 + extra)
        if isinstance(data, str):
            tracer.link((data, other), target, node)
        elif other == rank - 1:
            tracer.produce(tracer.weight_use(node, target, 0, other), (data, other))
        else:
            tracer.link(target, (data, other), node)


def _picked_axis(tracer: Tracer, node: Node, data: TensorKey, indices: TensorKey, axis: int) -> None:
    """Free to reorder if a constant list picks channels; else what is picked from stays, and so does what is picked."""
    out, extra = node.outputs[0], tracer.rank(indices) or 0
    value = tracer.graph.value(node.inputs[1]) if isinstance(indices, tuple) else None
    size = tracer.size((data, axis))
    if isinstance(data, str) and value is not None and extra == 1 and size and tracer.is_live((data, axis)):
        at = value.astype(np.int64)
        at = np.where(at < 0, at + size, at)
        if at.size and at.min() >= 0 and at.max() < size:
            tracer.link_positions((data, axis), at, (out, axis), np.arange(at.size, dtype=np.int64), free=True)
            gather_follows(tracer, node, data, axis, at)
            return
    reason = f"positions picked by Gather at {node.name}"
    tracer.freeze(data, reason, [axis])
    tracer.freeze(indices, reason)
    tracer.freeze(out, reason, range(axis, axis + extra))


def along_axis(tracer: Tracer, node: Node) -> None:
    """What happens along one axis (TopK's choice, CumSum's sum) leaves the others to pass."""
    data = node.inputs[0]
    rank = tracer.rank(data)
    if rank is None or any(name and tracer.rank(name) != rank for name in node.outputs):
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    if node.op_type == "CumSum":
        value = tracer.graph.value(node.inputs[1])
        given = None if value is None else int(value.reshape(-1)[0])
    else:
        given = int(node.attributes.get("axis", -1))
    axis = None if given is None else normalized_axis(given, rank)
    reason = f"order along the axis matters: {node.op_type} at {node.name}"
    tracer.freeze(data, reason, None if axis is None else [axis])
    for name in (name for name in node.outputs if name):
        for other in range(rank):
            if axis is not None and other != axis:
                tracer.link((data, other), (name, other), node)
            else:
                tracer.freeze(name, reason, [other])


def triangle(tracer: Tracer, node: Node) -> None:
    """Trilu looks at the places along the last two axes."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data) or 0
    tracer.pass_through(node, data, out)
    tracer.freeze(out, f"triangle of {node.op_type} at {node.name}", range(max(rank - 2, 0), rank))


def sampled(tracer: Tracer, node: Node) -> None:
    """GridSample: the batch, which data and grid share, and channels pass; space is sampled at given places."""
    data, grid, out = node.inputs[0], tracer.operand(node, 1), node.outputs[0]
    rank = tracer.rank(data)
    reason = f"spatial axis of {node.op_type} at {node.name}"
    if rank is None or tracer.rank(out) != rank or grid is None or tracer.rank(grid) != rank:
        tracer.freeze_node(node, reason)
        return
    tracer.freeze(grid, reason, range(1, rank))
    broadcast_axis(tracer, node, [(data, 0), (grid, 0)], (out, 0))
    tracer.pass_through(node, data, out, [1])
    for tensor in (data, out):
        tracer.freeze(tensor, reason, range(2, rank))


def regions(tracer: Tracer, node: Node) -> None:
    """RoiAlign and MaxRoiPool: every channel is pooled by itself, in each region."""
    data, out = node.inputs[0], node.outputs[0]
    reason = f"regions of {node.op_type} at {node.name}"
    for index in range(1, len(node.inputs)):
        tracer.freeze(tracer.operand(node, index), reason)
    if tracer.rank(data) != 4 or tracer.rank(out) != 4:
        tracer.freeze_node(node, reason)
        return
    for tensor in (data, out):
        tracer.freeze(tensor, reason, [0, 2, 3])
    tracer.link((data, 1), (out, 1), node)


RULES = {
    "CumSum": along_axis,
    "Gather": gather,
    "GridSample": sampled,
    "MaxRoiPool": regions,
    "RoiAlign": regions,
    "TopK": along_axis,
    "Trilu": triangle,
}
