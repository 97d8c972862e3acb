"""Operators that fill, repeat or move positions: ConstantOfShape, Expand, Tile, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints
from ucpe_onnx.analysis.rules.reshape import shape_input_follows
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_CHANNEL = 1


def expand(tracer: Tracer, node: Node) -> None:
    """Axes that keep their length pass; in one that is repeated from length 1 all positions are alike, so any may go.

    The data may be constant (a class token for each sample): it then has the channels that are wanted.
    """
    data, out = tracer.operand(node, 0), node.outputs[0]
    before, after = None if data is None else tracer.rank(data), tracer.rank(out)
    if data is None or before is None or after is None:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    for axis in range(after - before, after):
        _repeated_axis(tracer, node, (data, axis - after + before), (out, axis))
    shape_input_follows(tracer, node, 1)


def _repeated_axis(tracer: Tracer, node: Node, source: AxisKey, target: AxisKey) -> None:
    """An axis that passes, or is repeated from length 1; anything else stays."""
    size, repeated = tracer.size(source), tracer.size(target)
    if size is not None and size == repeated:
        tracer.link(source, target, node)
        return
    reason = f"repeated axis of {node.op_type} at {node.name}"
    tracer.freeze(source[0], reason, [source[1]])
    if size != 1:
        tracer.freeze(target[0], reason, [target[1]])


def tile(tracer: Tracer, node: Node) -> None:
    """Positions of a repeated axis come again and again, in the same order; of one of length 1 all are alike."""
    data, out = tracer.operand(node, 0), node.outputs[0]
    rank, repeats = None if data is None else tracer.rank(data), constant_ints(tracer, node, "repeats", 1)
    if data is None or rank is None or tracer.rank(out) != rank or (repeats is not None and len(repeats) != rank):
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    made: list[int] = []
    for axis in range(rank):
        source, target = (data, axis), (out, axis)
        size, length = tracer.size(source), tracer.size(target)
        if size and size > 1 and length and length > size and length % size == 0 and tracer.is_live(source):
            at = np.arange(length, dtype=np.int64)
            tracer.link_positions(source, at % size, target, at, outer=at // size)
            continue
        _repeated_axis(tracer, node, source, target)
        tracer.ids(target)
        made += [axis] if size == 1 and length is not None and length > 1 else []

    def repeats_follow(edit: NodeEdit) -> None:
        sizes = [edit.size((out, axis)) if axis in made else None for axis in range(rank)]
        if repeats is None:
            edit.patch_input(1, sizes)
        else:
            new = [old if size is None else size for old, size in zip(repeats, sizes, strict=True)]
            edit.set_input(1, np.asarray(new, dtype=np.int64))

    if made:
        tracer.rewrite(node, repeats_follow)


def constant_of_shape(tracer: Tracer, node: Node) -> None:
    """One value everywhere: any position may go, as long as the shape can follow."""
    if tracer.rank(node.outputs[0]) is None:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    shape_input_follows(tracer, node, 0)


def depth_to_space(tracer: Tracer, node: Node) -> None:
    """Every output channel is made of block * block input channels, which stay or go together."""
    block = int(node.attributes["blocksize"]) ** 2
    source, target = (node.inputs[0], _CHANNEL), (node.outputs[0], _CHANNEL)
    if not _spatial(tracer, node) or tracer.size(source) != block * (tracer.size(target) or 0):
        tracer.freeze_node(node, f"dynamic channel axis: DepthToSpace at {node.name}")
        return
    channels = tracer.size(target) or 0
    if node.attributes.get("mode", b"DCR") == b"CRD":
        at = np.arange(channels * block, dtype=np.int64)
        tracer.link_positions(source, at, target, at // block)
    else:
        at = np.arange(channels, dtype=np.int64)
        for part in range(block):
            tracer.link_positions(source, part * channels + at, target, at)


def space_to_depth(tracer: Tracer, node: Node) -> None:
    """Every input channel makes block * block output channels, the block's places one after the other."""
    block = int(node.attributes["blocksize"]) ** 2
    source, target = (node.inputs[0], _CHANNEL), (node.outputs[0], _CHANNEL)
    channels = tracer.size(source)
    if not _spatial(tracer, node) or channels is None or tracer.size(target) != block * channels:
        tracer.freeze_node(node, f"dynamic channel axis: SpaceToDepth at {node.name}")
        return
    at = np.arange(channels * block, dtype=np.int64)
    tracer.link_positions(source, at % channels, target, at, outer=at // channels)


def _spatial(tracer: Tracer, node: Node) -> bool:
    """Link the batch axis and freeze space; whether the ranks are those that the operator asks for."""
    data, out = node.inputs[0], node.outputs[0]
    if tracer.rank(data) != 4 or tracer.rank(out) != 4:
        return False
    tracer.link((data, 0), (out, 0), node)
    for tensor in (data, out):
        tracer.freeze(tensor, f"spatial axis of {node.op_type} at {node.name}", [2, 3])
    return True


RULES = {
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "SpaceToDepth": space_to_depth,
    "Tile": tile,
}
