"""Convolutions: consumer of the input's channels and producer of the output's, or channel-wise."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import LAYER_OPS, Kind, LayerOp
from ucpe_onnx.analysis.quantised import codec_parameters
from ucpe_onnx.analysis.rules.common import broadcast_axis
from ucpe_onnx.analysis.slots import AxisKey, TensorKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_CHANNEL = 1


def convolution(tracer: Tracer, node: Node) -> None:
    """One axis of the weight reads channels and the other makes them, or there is one group for each channel.

    The weight is (C_out, C_in/groups, k...), of a transposed convolution (C_in, C_out/groups, k...). Its scale and zero
    point, and the bias, follow the output's channels.
    """
    op = LAYER_OPS[node.op_type]
    data, out = node.inputs[op.data], node.outputs[0]
    key = tracer.operand(node, op.weight)
    weight = tracer.dims(key) if isinstance(key, tuple) else None
    rank = tracer.rank(data)
    if weight is None or rank is None or tracer.rank(out) != rank or len(weight) != rank:
        tracer.freeze_node(node, f"weight computed at run time or unknown rank: {node.op_type} at {node.name}")
        return
    if any(not isinstance(size, int) or not size for size in weight):
        tracer.freeze_node(node, f"empty weight: {node.op_type} at {node.name}")
        return
    tracer.link((data, 0), (out, 0), node)
    for name in (data, out):
        tracer.freeze(name, f"spatial axis of {node.op_type} at {node.name}", range(2, rank))
    if not _parameters_are_constant(tracer, node, op):
        tracer.freeze(out, f"bias or scale computed at run time: {node.op_type} at {node.name}", [_CHANNEL])
    sizes = [size for size in weight if isinstance(size, int)]
    channels, groups = tracer.size((data, _CHANNEL)), int(node.attributes.get("group", 1))
    if channels is None:
        channels = sizes[0] if op.transposed else sizes[1] * groups
    added = None if op.added is None else tracer.operand(node, op.added)
    if isinstance(added, str):  # which is laid out before what it is added to
        tracer.pass_through(node, added, out)
    elif added is not None:
        tracer.freeze(out, f"constant that is added: {node.op_type} at {node.name}")
    if groups == channels and groups > 1:
        _channel_wise(tracer, node, op, sizes)
    else:
        _reads_and_makes(tracer, node, op, groups)


def _reads_and_makes(tracer: Tracer, node: Node, op: LayerOp, groups: int) -> None:
    data, out = (node.inputs[op.data], _CHANNEL), (node.outputs[0], _CHANNEL)
    reads, makes = op.weight_axes(node.attributes)
    tracer.consume(tracer.weight_use(node, data, op.weight, reads, groups))
    use = tracer.weight_use(node, out, op.weight, makes, groups)
    followers = _followers(tracer, node, op)
    if groups == 1 or not op.transposed:  # a grouped ConvTranspose holds C_out/groups there
        followers = [(use.constant, makes), *followers]
    tracer.produce(use, *followers)
    if groups == 1:
        return
    for axis in (data, out):
        size = tracer.size(axis)
        if size is None or size % groups:
            tracer.freeze(axis[0], f"channels bound to groups: {node.op_type} at {node.name}", [_CHANNEL])
        else:
            tracer.partition(axis, groups)
    within = out if op.transposed else data  # what axis 1 of the weight counts, anew in every group
    if any(codec_parameters(tracer.graph, use.constant, 1)):
        tracer.freeze(within[0], f"scales for each channel of a group: {node.op_type} at {node.name}", [_CHANNEL])


def _channel_wise(tracer: Tracer, node: Node, op: LayerOp, weight: list[int]) -> None:
    """One group per channel: input channel c makes output channels c*m .. c*m+m-1, which stay or go together."""
    data, out = (node.inputs[op.data], _CHANNEL), (node.outputs[0], _CHANNEL)
    channels = tracer.size(data)
    multiplier = weight[1] if op.transposed else weight[0] // (channels or 1)
    if channels is None or tracer.size(out) != channels * multiplier:
        tracer.freeze_node(node, f"dynamic channel axis: {node.op_type} at {node.name}")
        return
    if multiplier == 1:
        tracer.link(data, out, node)
    else:
        target = np.arange(channels * multiplier, dtype=np.int64)
        tracer.link_positions(data, target // multiplier, out, target)
    key = tracer.operand(node, op.weight)
    if isinstance(key, tuple):  # always: the caller has looked
        tracer.link(data if op.transposed else out, (key, 0), node)
    for follower in _followers(tracer, node, op):
        tracer.link(out, follower, node)

    def groups_follow(edit: NodeEdit) -> None:
        edit.set_attribute("group", edit.size(data))

    tracer.rewrite(node, groups_follow)


def _parameters(tracer: Tracer, node: Node, op: LayerOp) -> list[TensorKey]:
    keys = [tracer.operand(node, index) for index in op.followers]
    return [key for key in keys if key is not None]


def _parameters_are_constant(tracer: Tracer, node: Node, op: LayerOp) -> bool:
    """Whether every parameter is constant; those that are not stay as they are, and so must the output's channels."""
    computed = [key for key in _parameters(tracer, node, op) if isinstance(key, str)]
    for name in computed:
        tracer.freeze(name, f"parameter computed at run time: {node.op_type} at {node.name}")
    varying = [key for i in op.scalars if (key := tracer.operand(node, i)) is not None]
    return not computed and all(tracer.dims(key) in ((), (1,)) for key in varying)


def _followers(tracer: Tracer, node: Node, op: LayerOp) -> list[AxisKey]:
    """The axes of parameters that have one entry per output channel."""
    keys = [key for key in _parameters(tracer, node, op) if isinstance(key, tuple)]
    out = tracer.size((node.outputs[0], _CHANNEL))
    return [(key, 0) for key in keys if tracer.rank(key) == 1 and (tracer.size((key, 0)) != 1 or out == 1)]


def deformable(tracer: Tracer, node: Node) -> None:
    """DeformConv: a convolution that reads where its offsets tell, all channels at the same places.

    Inputs: data, weight (C_out, C_in, k...), offsets, bias, and a mask of what is read, both laid out by the window.
    """
    data, out, weight = node.inputs[0], node.outputs[0], tracer.operand(node, 1)
    bias, places = (
        tracer.operand(node, 3),
        [key for index in (2, 4) if (key := tracer.operand(node, index)) is not None],
    )
    reason = f"groups, or a weight or bias computed at run time: DeformConv at {node.name}"
    known = tracer.rank(data) == tracer.rank(out) == 4 and isinstance(weight, tuple) and tracer.rank(weight) == 4
    grouped = any(int(node.attributes.get(name, 1)) != 1 for name in ("group", "offset_group"))
    if not known or isinstance(bias, str) or grouped or weight is None:
        tracer.freeze_node(node, reason)
        return
    for tensor in (data, out):
        tracer.freeze(tensor, f"spatial axis of DeformConv at {node.name}", [2, 3])
    for key in places:
        tracer.freeze(key, f"places that are read: DeformConv at {node.name}", range(1, tracer.rank(key) or 0))
    broadcast_axis(tracer, node, [(key, 0) for key in (data, *places)], (out, 0))
    tracer.consume(tracer.weight_use(node, (data, _CHANNEL), 1, 1))
    followers: list[AxisKey] = [(weight, 0), *([] if bias is None else [(bias, 0)])]
    tracer.produce(tracer.weight_use(node, (out, _CHANNEL), 1, 0), *followers)


RULES = {name: convolution for name, op in LAYER_OPS.items() if op.kind is Kind.CONVOLUTION} | {
    "DeformConv": deformable
}
