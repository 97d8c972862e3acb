"""Operators that repeat positions or move them between channels and space: Expand, Tile, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints
from ucpe_onnx.analysis.rules.reshape import shape_input_follows
from ucpe_onnx.analysis.tracer import Tracer

_CHANNEL = 1


def expand(tracer: Tracer, node: Node) -> None:
    """Axes that keep their length pass; those that are repeated from length 1 stay."""
    data, out = node.inputs[0], node.outputs[0]
    ranks = tracer.rank(data), tracer.rank(out)
    if ranks[0] is None or ranks[1] is None:
        tracer.freeze_node(node, f"tensor of unknown rank: Expand at {node.name}")
        return
    for axis in range(ranks[1]):
        source, target = (data, axis - ranks[1] + ranks[0]), (out, axis)
        if source[1] >= 0 and tracer.size(source) == tracer.size(target) is not None:
            tracer.link(source, target, node)
            continue
        for tensor, at in (source, target):
            tracer.freeze(tensor, f"expanded axis of Expand at {node.name}", [at] if at >= 0 else [])
    shape_input_follows(tracer, node, 1)


def tile(tracer: Tracer, node: Node) -> None:
    """Positions of a repeated axis come again and again, in the same order."""
    data, out = node.inputs[0], node.outputs[0]
    rank, repeats = tracer.rank(data), constant_ints(tracer, node, "repeats", 1)
    if rank is None or repeats is None or len(repeats) != rank:
        tracer.freeze_node(node, f"repeats computed at run time or unknown rank: Tile at {node.name}")
        return
    for axis, count in enumerate(repeats):
        source, target = (data, axis), (out, axis)
        size = tracer.size(source)
        if count == 1:
            tracer.link(source, target, node)
        elif count > 1 and size is not None and tracer.is_live(source) and tracer.size(target) == count * size:
            at = np.arange(count * size, dtype=np.int64)
            tracer.link_positions(source, at % size, target, at, outer=at // size)
        else:
            for tensor in (data, out):
                tracer.freeze(tensor, f"repeated axis of Tile at {node.name}", [axis])


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


RULES = {"DepthToSpace": depth_to_space, "Expand": expand, "SpaceToDepth": space_to_depth, "Tile": tile}
