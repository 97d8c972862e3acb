"""Convolutions: consumer of the input's channels and producer of the output's, or channel-wise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import AxisKey, TensorKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_CHANNEL = 1


@dataclass(frozen=True)
class _Form:
    """Where an operator keeps its weight, and what has one entry per output channel besides.

    Attributes:
        weight: input index of the weight.
        in_axis: the weight's axis over input channels.
        out_axis: the weight's axis over output channels.
        followers: inputs with one entry per output channel, or one for all.
        scalars: inputs that must not vary with the channel of the data.
    """

    weight: int = 1
    in_axis: int = 1
    out_axis: int = 0
    followers: tuple[int, ...] = (2,)
    scalars: tuple[int, ...] = ()


def conv(tracer: Tracer, node: Node) -> None:
    """Weight (C_out, C_in/groups, k...): axis 1 reads channels, axis 0 makes them."""
    _convolution(tracer, node, _Form())


def conv_transpose(tracer: Tracer, node: Node) -> None:
    """Weight (C_in, C_out/groups, k...): axis 0 reads channels, axis 1 makes them."""
    _convolution(tracer, node, _Form(in_axis=0, out_axis=1))


def qlinear_conv(tracer: Tracer, node: Node) -> None:
    """Conv of 8-bit integers: scale and zero point of the weight, and the bias, follow the output's channels."""
    _convolution(tracer, node, _Form(weight=3, followers=(4, 5, 8), scalars=(1, 2, 6, 7)))


def conv_integer(tracer: Tracer, node: Node) -> None:
    """Conv of 8-bit integers into 32-bit ones: the weight's zero point follows the output's channels."""
    _convolution(tracer, node, _Form(followers=(3,), scalars=(2,)))


def _convolution(tracer: Tracer, node: Node, form: _Form) -> None:
    data, out = node.inputs[0], node.outputs[0]
    key = tracer.operand(node, form.weight)
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
    if not _parameters_are_constant(tracer, node, form):
        tracer.freeze(out, f"bias or scale computed at run time: {node.op_type} at {node.name}", [_CHANNEL])
    sizes = [size for size in weight if isinstance(size, int)]
    channels, groups = tracer.size((data, _CHANNEL)), int(node.attributes.get("group", 1))
    if channels is None:
        channels = sizes[1] * groups if form.in_axis == 1 else sizes[0]
    if groups == channels and groups > 1:
        _channel_wise(tracer, node, form, sizes)
    else:
        _reads_and_makes(tracer, node, form, groups)


def _reads_and_makes(tracer: Tracer, node: Node, form: _Form, groups: int) -> None:
    data, out = (node.inputs[0], _CHANNEL), (node.outputs[0], _CHANNEL)
    tracer.consume(tracer.weight_use(node, data, form.weight, form.in_axis, groups))
    use = tracer.weight_use(node, out, form.weight, form.out_axis, groups)
    followers = _followers(tracer, node, form)
    if groups == 1 or form.out_axis == 0:  # a grouped ConvTranspose holds C_out/groups there
        followers = [(use.constant, form.out_axis), *followers]
    tracer.produce(use, *followers)
    if groups == 1:
        return
    for axis in (data, out):
        size = tracer.size(axis)
        if size is None or size % groups:
            tracer.freeze(axis[0], f"channels bound to groups: {node.op_type} at {node.name}", [_CHANNEL])
        else:
            tracer.partition(axis, groups)


def _channel_wise(tracer: Tracer, node: Node, form: _Form, weight: list[int]) -> None:
    """One group per channel: input channel c makes output channels c*m .. c*m+m-1, which stay or go together."""
    data, out = (node.inputs[0], _CHANNEL), (node.outputs[0], _CHANNEL)
    channels = tracer.size(data)
    multiplier = weight[1] if form.in_axis == 0 else weight[0] // (channels or 1)
    if channels is None or tracer.size(out) != channels * multiplier:
        tracer.freeze_node(node, f"dynamic channel axis: {node.op_type} at {node.name}")
        return
    if multiplier == 1:
        tracer.link(data, out, node)
    else:
        target = np.arange(channels * multiplier, dtype=np.int64)
        tracer.link_positions(data, target // multiplier, out, target)
    key = tracer.operand(node, form.weight)
    if isinstance(key, tuple):  # always: the caller has looked
        tracer.link(out if form.in_axis == 1 else data, (key, 0), node)
    for follower in _followers(tracer, node, form):
        tracer.link(out, follower, node)

    def groups_follow(edit: NodeEdit) -> None:
        edit.set_attribute("group", edit.size(data))

    tracer.rewrite(node, groups_follow)


def _parameters(tracer: Tracer, node: Node, form: _Form) -> list[TensorKey]:
    keys = [tracer.operand(node, index) for index in form.followers]
    return [key for key in keys if key is not None]


def _parameters_are_constant(tracer: Tracer, node: Node, form: _Form) -> bool:
    """Whether every parameter is constant; those that are not stay as they are, and so must the output's channels."""
    computed = [key for key in _parameters(tracer, node, form) if isinstance(key, str)]
    for name in computed:
        tracer.freeze(name, f"parameter computed at run time: {node.op_type} at {node.name}")
    varying = [key for i in form.scalars if (key := tracer.operand(node, i)) is not None]
    return not computed and all(tracer.dims(key) in ((), (1,)) for key in varying)


def _followers(tracer: Tracer, node: Node, form: _Form) -> list[AxisKey]:
    """The axes of parameters that have one entry per output channel."""
    keys = [key for key in _parameters(tracer, node, form) if isinstance(key, tuple)]
    out = tracer.size((node.outputs[0], _CHANNEL))
    return [(key, 0) for key in keys if tracer.rank(key) == 1 and (tracer.size((key, 0)) != 1 or out == 1)]


RULES = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "ConvInteger": conv_integer,
    "QLinearConv": qlinear_conv,
}
