"""Conv and ConvTranspose: consumer of the input's channels and producer of the output's, or channel-wise."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_operand
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer, WeightUse

_CHANNEL = 1


def conv(tracer: Tracer, node: Node) -> None:
    """Weight (C_out, C_in/groups, k...): axis 1 reads channels, axis 0 makes them."""
    _convolution(tracer, node, in_axis=1, out_axis=0)


def conv_transpose(tracer: Tracer, node: Node) -> None:
    """Weight (C_in, C_out/groups, k...): axis 0 reads channels, axis 1 makes them."""
    _convolution(tracer, node, in_axis=0, out_axis=1)


def _convolution(tracer: Tracer, node: Node, in_axis: int, out_axis: int) -> None:
    data, out = node.inputs[0], node.outputs[0]
    weight = constant_operand(tracer, node, 1)
    rank = tracer.rank(data)
    if weight is None or rank is None or tracer.rank(out) != rank or len(weight) != rank:
        tracer.freeze_node(node, f"weight computed at run time or unknown rank: {node.op_type} at {node.name}")
        return
    tracer.link((data, 0), (out, 0), node)
    for tensor in (data, out):
        tracer.freeze(tensor, f"spatial axis of {node.op_type} at {node.name}", range(2, rank))
    channels, groups = tracer.size((data, _CHANNEL)), int(node.attributes.get("group", 1))
    if channels is None:
        channels = weight[1] * groups if in_axis == 1 else weight[0]
    if groups == channels and groups > 1:
        _channel_wise(tracer, node, weight, in_axis)
        return
    _reads_and_makes(tracer, node, in_axis, out_axis, groups)


def _reads_and_makes(tracer: Tracer, node: Node, in_axis: int, out_axis: int, groups: int) -> None:
    data, out = (node.inputs[0], _CHANNEL), (node.outputs[0], _CHANNEL)
    tracer.consume(WeightUse(node, data, node.inputs[1], 1, in_axis, groups))
    use = WeightUse(node, out, node.inputs[1], 1, out_axis, groups)
    if groups > 1:
        tracer.producers.append(use)
        for tensor in (node.inputs[0], node.outputs[0]):
            tracer.freeze(tensor, f"channels bound to groups: {node.op_type} (groups={groups}) at {node.name}", [1])
        return
    bias = _bias(tracer, node)
    tracer.produce(use, *bias)


def _channel_wise(tracer: Tracer, node: Node, weight: tuple[int, ...], in_axis: int) -> None:
    """One group per channel: input channel c makes output channels c*m .. c*m+m-1 and no others."""
    data, out = (node.inputs[0], _CHANNEL), (node.outputs[0], _CHANNEL)
    channels = tracer.size(data)
    multiplier = weight[1] if in_axis == 0 else weight[0] // (channels or 1)
    if channels is None or tracer.size(out) != channels * multiplier:
        tracer.freeze_node(node, f"dynamic channel axis: {node.op_type} at {node.name}")
        return
    if multiplier == 1:
        tracer.link(data, out, node)
    else:
        target = np.arange(channels * multiplier, dtype=np.int64)
        tracer.link_positions(data, target // multiplier, out, target)
    if in_axis == 1 or multiplier == 1:
        tracer.link(out, ((node.index, 1), 0), node)
    else:
        tracer.link(data, ((node.index, 1), 0), node)
        if multiplier > 1:  # the weight holds m outputs per channel: none of them can go alone
            tracer.freeze(node.outputs[0], f"depthwise multiplier of {node.op_type} at {node.name}", [1])
    for follower in _bias(tracer, node):
        tracer.link(out, follower, node)

    def groups_follow(edit: NodeEdit) -> None:
        edit.set_attribute("group", edit.size(data))

    tracer.rewrite(node, groups_follow)


def _bias(tracer: Tracer, node: Node) -> list[AxisKey]:
    """The bias' axis if there is a constant bias; a computed bias fixes the output's channels."""
    key = tracer.operand(node, 2)
    if isinstance(key, str):
        tracer.freeze(key, f"bias computed at run time: {node.op_type} at {node.name}")
        tracer.freeze(node.outputs[0], f"bias computed at run time: {node.op_type} at {node.name}", [_CHANNEL])
    return [(key, 0)] if isinstance(key, tuple) else []


RULES = {"Conv": conv, "ConvTranspose": conv_transpose}
