"""Normalisation: per-channel statistics carry channels along, statistics over the channels fix them."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import normalized_axis
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer


def batch_normalization(tracer: Tracer, node: Node) -> None:
    """Scale, bias, mean and variance have one entry per channel and follow the channels."""
    _per_channel(tracer, node, parameters=4)


def instance_normalization(tracer: Tracer, node: Node) -> None:
    """Statistics are taken per channel over space: a channel's result depends on that channel alone."""
    _per_channel(tracer, node, parameters=2)


def _per_channel(tracer: Tracer, node: Node, parameters: int) -> None:
    data, out = node.inputs[0], node.outputs[0]
    keys = [tracer.operand(node, i) for i in range(1, parameters + 1)]
    averages = [name for name in node.outputs[1:] if name]  # of training: one number for each channel too
    if any(not isinstance(key, tuple) for key in keys) or any(tracer.rank(name) != 1 for name in averages):
        tracer.freeze_node(node, f"statistics computed at run time: {node.op_type} at {node.name}")
        return
    rank = tracer.rank(data) or 0
    if node.op_type == "InstanceNormalization":
        for tensor in (data, out):
            tracer.freeze(tensor, f"spatial axis of {node.op_type} at {node.name}", range(2, rank))
        tracer.pass_through(node, data, out, range(min(rank, 2)))
    else:
        tracer.pass_through(node, data, out)
    for key in (*keys, *averages):
        if key is not None:
            tracer.link((out, 1), (key, 0), node)


def lrn(tracer: Tracer, node: Node) -> None:
    """Each channel is divided by a sum over its neighbours: channels stay, at their places."""
    tracer.pass_through(node, node.inputs[0], node.outputs[0])
    tracer.freeze(node.outputs[0], f"channel-mixing op LRN at {node.name}", [1])


def softmax(tracer: Tracer, node: Node) -> None:
    """The normalised axis mixes; before opset 13 all axes from ``axis`` on are one."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data)
    tracer.pass_through(node, data, out)
    if rank is None:
        return
    default = -1 if tracer.graph.opset >= 13 else 1
    axis = normalized_axis(int(node.attributes.get("axis", default)), rank)
    mixed = [axis] if tracer.graph.opset >= 13 else range(axis, rank)
    tracer.freeze(out, f"channel-mixing op {node.op_type} at {node.name}", mixed)


def layer_normalization(tracer: Tracer, node: Node) -> None:
    """Mean and variance run over the axes from ``axis`` on: these stay."""
    data = node.inputs[0]
    rank = tracer.rank(data)
    if rank is None or any(node.has(i) for i in range(1, len(node.outputs))):
        tracer.freeze_node(node, f"channel-mixing op LayerNormalization at {node.name}")
        return
    axis = normalized_axis(int(node.attributes.get("axis", -1)), rank)
    parameters = [key for index in (1, 2) if (key := tracer.operand(node, index)) is not None]
    if not all(_of_last_axes(tracer, key, rank - axis) for key in parameters):
        tracer.freeze_node(node, f"scale or bias that varies along other axes: {node.op_type} at {node.name}")
        return
    tracer.pass_through(node, data, node.outputs[0])
    tracer.freeze(node.outputs[0], f"channel-mixing op {node.op_type} at {node.name}", range(axis, rank))


def _of_last_axes(tracer: Tracer, key: TensorKey, count: int) -> bool:
    """Whether a tensor is broadcast along all but so many last axes."""
    dims = tracer.dims(key)
    return dims is not None and all(size == 1 for size in dims[: max(len(dims) - count, 0)])


def group_normalization(tracer: Tracer, node: Node) -> None:
    """Statistics are taken over the channels of a group: they stay or go together, and the result stays exact."""
    data, out = node.inputs[0], node.outputs[0]
    groups, channels = int(node.attributes["num_groups"]), tracer.size((data, 1))
    parameters = [tracer.operand(node, 1), tracer.operand(node, 2)]
    rank = tracer.rank(data)
    if rank is None or not channels or channels % groups or not all(isinstance(key, tuple) for key in parameters):
        tracer.freeze_node(node, f"channel-mixing op GroupNormalization at {node.name}")
        return
    tracer.pass_through(node, data, out, [0, 1])
    for tensor in (data, out):
        tracer.freeze(tensor, f"spatial axis of GroupNormalization at {node.name}", range(2, rank))
    size = channels // groups
    at = np.arange(channels, dtype=np.int64)
    tracer.tie((data, 1), at // size)
    for key in (key for key in parameters if key is not None):
        if tracer.size((key, 0)) == channels:
            tracer.link((out, 1), (key, 0), node)
        else:  # before opset 21: one entry per group
            tracer.link_positions((out, 1), at, (key, 0), at // size)

    def groups_follow(edit: NodeEdit) -> None:
        edit.set_attribute("num_groups", edit.size((data, 1)) // size)

    tracer.rewrite(node, groups_follow)


def over_axes(tracer: Tracer, node: Node) -> None:
    """Statistics over given axes: these stay, the others pass (MeanVarianceNormalization, LpNormalization)."""
    data = node.inputs[0]
    rank = tracer.rank(data)
    if rank is None:
        tracer.freeze_node(node, f"channel-mixing op {node.op_type} at {node.name}")
        return
    default = [0, 2, 3] if node.op_type == "MeanVarianceNormalization" else [-1]
    axes = node.attributes.get("axes", default)
    axes = [int(node.attributes["axis"])] if "axis" in node.attributes else axes
    tracer.pass_through(node, data, node.outputs[0])
    mixed = sorted(normalized_axis(int(axis), rank) for axis in axes)
    tracer.freeze(node.outputs[0], f"channel-mixing op {node.op_type} at {node.name}", mixed)


RULES = {
    "GroupNormalization": group_normalization,
    "MeanVarianceNormalization": over_axes,
    "LpNormalization": over_axes,
    "Hardmax": softmax,
    "RMSNormalization": layer_normalization,
    "SimplifiedLayerNormalization": layer_normalization,
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "LayerNormalization": layer_normalization,
}
