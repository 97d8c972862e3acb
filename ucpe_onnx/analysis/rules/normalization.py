"""Normalisation: per-channel statistics carry channels along, statistics over the channels fix them."""

from __future__ import annotations

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import normalized_axis
from ucpe_onnx.analysis.tracer import Tracer


def batch_normalization(tracer: Tracer, node: Node) -> None:
    """Scale, bias, mean and variance have one entry per channel and follow the channels."""
    _per_channel(tracer, node, parameters=4)


def instance_normalization(tracer: Tracer, node: Node) -> None:
    """Statistics are taken per channel over space: a channel's result depends on that channel alone."""
    _per_channel(tracer, node, parameters=2)


def _per_channel(tracer: Tracer, node: Node, parameters: int) -> None:
    data, out = node.inputs[0], node.outputs[0]
    keys = [tracer.operand(node, i) for i in range(1, parameters + 1)]
    if any(not isinstance(key, tuple) for key in keys) or any(node.has(i) for i in range(1, len(node.outputs))):
        tracer.freeze_node(node, f"statistics computed at run time: {node.op_type} at {node.name}")
        return
    rank = tracer.rank(data) or 0
    if node.op_type == "InstanceNormalization":
        for tensor in (data, out):
            tracer.freeze(tensor, f"spatial axis of {node.op_type} at {node.name}", range(2, rank))
        tracer.pass_through(node, data, out, range(min(rank, 2)))
    else:
        tracer.pass_through(node, data, out)
    for key in keys:
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
    tracer.pass_through(node, data, node.outputs[0])
    axis = normalized_axis(int(node.attributes.get("axis", -1)), rank)
    tracer.freeze(node.outputs[0], f"channel-mixing op LayerNormalization at {node.name}", range(axis, rank))


RULES = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "LayerNormalization": layer_normalization,
}
