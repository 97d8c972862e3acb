"""Operators that rearrange axes and positions: Concat, Transpose, Slice, Split, Squeeze, Shape and their like."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints, normalized_axis
from ucpe_onnx.analysis.rules.rearrange import gather_follows
from ucpe_onnx.analysis.rules.reshape import flatten, reshape, shape_of
from ucpe_onnx.analysis.slots import IntArray, TensorKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer


def concat(tracer: Tracer, node: Node) -> None:
    """The output's positions are the operands' one after the other; other axes pass."""
    keys = [tracer.operand(node, i) for i in range(len(node.inputs))]
    concatenated(tracer, node, [key for key in keys if key is not None])


def concatenated(tracer: Tracer, node: Node, operands: list[TensorKey]) -> None:
    """Link the given operands to the parts of the output that they make."""
    out = node.outputs[0]
    rank = tracer.rank(out)
    if rank is None or any(tracer.rank(key) != rank for key in operands):
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    axis = normalized_axis(int(node.attributes.get("axis", 1)), rank)
    for other in range(rank):
        if other != axis:
            for key in operands:
                tracer.link((key, other), (out, other), node)
    sizes = [tracer.size((key, axis)) for key in operands]
    if tracer.size((out, axis)) is None or any(size is None for size in sizes):
        for key in (*operands, out):
            tracer.freeze(key, f"dynamic axis: {node.op_type} at {node.name}", [axis])
        return
    if len(operands) == 1:
        tracer.link((operands[0], axis), (out, axis), node)
        return
    start = 0
    for key, size in zip(operands, sizes, strict=True):
        at = np.arange(size or 0, dtype=np.int64)
        tracer.link_positions((key, axis), at, (out, axis), at + start)
        start += at.size


def transpose(tracer: Tracer, node: Node) -> None:
    """Output axis i is input axis perm[i]."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data)
    if rank is None or tracer.rank(out) != rank:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    order = node.attributes.get("perm", tuple(reversed(range(rank))))
    for target, source in enumerate(order):
        tracer.link((data, source), (out, target), node)


def squeeze(tracer: Tracer, node: Node) -> None:
    """Axes of length 1 disappear, the others pass, even if only one channel remains: the axes are then written down."""
    unit = _with_unit_axes(tracer, node, node.inputs[0], node.outputs[0])
    if not unit or constant_ints(tracer, node, "axes", 1):
        return

    def rewrite(edit: NodeEdit) -> None:
        if tracer.graph.opset >= 13:
            edit.set_input(1, np.asarray(sorted(unit), dtype=np.int64))
        else:
            edit.set_attribute("axes", sorted(unit))

    tracer.rewrite(node, rewrite)


def unsqueeze(tracer: Tracer, node: Node) -> None:
    """Axes of length 1 appear, the others pass."""
    _with_unit_axes(tracer, node, node.outputs[0], node.inputs[0])


def _with_unit_axes(tracer: Tracer, node: Node, long: str, short: str) -> set[int]:
    """Link the axes of ``short`` to those of ``long`` that are not among the node's unit axes, which are returned."""
    rank = tracer.rank(long)
    axes = constant_ints(tracer, node, "axes", 1)
    if rank is None or axes is None:
        tracer.freeze_node(node, f"axes computed at run time or unknown rank: {node.op_type} at {node.name}")
        return set()
    unit = {normalized_axis(a, rank) for a in axes} or {a for a in range(rank) if tracer.size((long, a)) == 1}
    if tracer.rank(short) != rank - len(unit):
        tracer.freeze_node(node, f"axes that don't fit the shape: {node.op_type} at {node.name}")
        return set()
    tracer.freeze(long, f"axis of length 1: {node.op_type} at {node.name}", sorted(unit))
    for position, axis in enumerate(a for a in range(rank) if a not in unit):
        pair = ((long, axis), (short, position))
        source, target = pair if long == node.inputs[0] else pair[::-1]
        tracer.link(source, target, node)
    return unit


def slice_(tracer: Tracer, node: Node) -> None:
    """Axes that are not cut pass; a channel axis cut with step 1 passes its range, which is adapted on emission."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data)
    starts, ends = constant_ints(tracer, node, "starts", 1), constant_ints(tracer, node, "ends", 2)
    axes, steps = constant_ints(tracer, node, "axes", 3), constant_ints(tracer, node, "steps", 4)
    if rank is None or tracer.rank(out) != rank or axes is None or not (axes or starts):
        tracer.freeze_node(node, f"bounds computed at run time or unknown rank: Slice at {node.name}")
        return
    cut = [normalized_axis(a, rank) for a in axes] or list(range(len(starts or ())))
    for axis in range(rank):
        if axis not in cut:
            tracer.link((data, axis), (out, axis), node)
    for axis in cut:
        position = cut.index(axis)
        bounds = (starts[position], ends[position], (steps or [1] * len(cut))[position]) if starts and ends else None
        _cut_axis(tracer, node, axis, bounds, alone=len(cut) == 1)
    ranges = [position for position, axis in enumerate(cut) if tracer.is_live((out, axis))]
    if ranges and starts and ends and (not steps or steps[ranges[0]] == 1):
        _ranges_follow(tracer, node, {position: cut[position] for position in ranges}, starts, ends)


def _cut_axis(tracer: Tracer, node: Node, axis: int, bounds: tuple[int, int, int] | None, *, alone: bool) -> None:
    data, out = (node.inputs[0], axis), (node.outputs[0], axis)
    size = tracer.size(data)
    at: IntArray | None = None
    if size is not None and bounds is not None and (bounds[2] == 1 or alone):
        at = np.arange(size, dtype=np.int64)[slice(*_clamped(bounds, size))]
    if at is None or tracer.size(out) != at.size or not at.size or not tracer.is_live(data):
        reason = f"cut axis of Slice at {node.name}"
        tracer.freeze(data[0], reason, [axis])
        tracer.freeze(out[0], reason, [axis])
    elif np.array_equal(at, np.arange(size or 0)):
        tracer.link(data, out, node)
    elif bounds is not None and bounds[2] == 1:
        tracer.link_positions(data, at, out, np.arange(at.size, dtype=np.int64))
    else:
        tracer.link_positions(data, at, out, np.arange(at.size, dtype=np.int64), free=True)
        gather_follows(tracer, node, node.inputs[0], axis, at)


def _clamped(bounds: tuple[int, int, int], size: int) -> tuple[int | None, int | None, int]:
    """Python reads an end below -size as "up to the first" only if it is left out."""
    start, end, step = bounds
    return start, None if step < 0 and end < -size else end, step


def _ranges_follow(tracer: Tracer, node: Node, ranges: Mapping[int, int], starts: list[int], ends: list[int]) -> None:
    """Slots before the range may go: it then starts earlier, and is as long as what remains of it.

    Args:
        tracer: the tracer.
        node: the Slice.
        ranges: the axes that are cut to a range of channels, by their place among the node's axes.
        starts: all starts of the node.
        ends: all ends of the node.
    """

    def rewrite(edit: NodeEdit) -> None:
        new_starts, new_ends = list(starts), list(ends)
        for position, axis in ranges.items():
            size = tracer.size((node.inputs[0], axis)) or 0
            first = range(size)[starts[position] : ends[position]].start
            new_starts[position] = int((edit.kept((node.inputs[0], axis)) < first).sum())
            new_ends[position] = new_starts[position] + edit.size((node.outputs[0], axis))
        if "starts" in node.attributes:
            edit.set_attribute("starts", new_starts)
            edit.set_attribute("ends", new_ends)
        else:
            old = tracer.graph.value(node.inputs[1])
            dtype = np.dtype(np.int64) if old is None else old.dtype
            edit.set_input(1, np.asarray(new_starts, dtype=dtype))
            edit.set_input(2, np.asarray(new_ends, dtype=dtype))

    tracer.rewrite(node, rewrite)


def split(tracer: Tracer, node: Node) -> None:
    """Every output takes its range of the input's slots; the lengths are adapted on emission."""
    data, outs = node.inputs[0], [name for name in node.outputs if name]
    rank = tracer.rank(data)
    if rank is None or len(outs) != len(node.outputs) or any(tracer.rank(o) != rank for o in outs):
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    axis = normalized_axis(int(node.attributes.get("axis", 0)), rank)
    for other in range(rank):
        if other != axis:
            for out in outs:
                tracer.link((data, other), (out, other), node)
    sizes = [tracer.size((out, axis)) for out in outs]
    total = tracer.size((data, axis))
    if total is None or any(s is None for s in sizes) or sum(s or 0 for s in sizes) != total:
        for tensor in (data, *outs):
            tracer.freeze(tensor, f"dynamic axis: Split at {node.name}", [axis])
        return
    start = 0
    for out, size in zip(outs, sizes, strict=True):
        at = np.arange(size or 0, dtype=np.int64)
        tracer.link_positions((data, axis), at + start, (out, axis), at)
        start += at.size

    def lengths_follow(edit: NodeEdit) -> None:
        lengths = [edit.size((out, axis)) for out in outs]
        if lengths == sizes:
            return
        if tracer.graph.opset >= 13:
            edit.set_input(1, np.asarray(lengths, dtype=np.int64))
            edit.set_attribute("num_outputs", None)
        else:
            edit.set_attribute("split", lengths)

    tracer.rewrite(node, lengths_follow)


RULES = {
    "Concat": concat,
    "Flatten": flatten,
    "Reshape": reshape,
    "Shape": shape_of,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
