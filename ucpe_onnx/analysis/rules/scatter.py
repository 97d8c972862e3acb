"""Operators that read or write at places that indices tell: GatherElements, GatherND, ScatterElements, ScatterND.

Along the axes that are indexed every place matters; along the others each position is read or written by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import broadcast_axis, normalized_axis
from ucpe_onnx.analysis.slots import AxisKey, TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def gather_elements(tracer: Tracer, node: Node) -> None:
    """Here for axis 0: out[i][j] = data[indices[i][j]][j]; what is picked has the places of the indices."""
    out, keys = node.outputs[0], _operands(tracer, node, 2)
    rank = _common_rank(tracer, [*keys, out])
    if rank is None:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    axis = normalized_axis(int(node.attributes.get("axis", 0)), rank)
    tracer.freeze(keys[0], _reason(node), [axis])
    for other in range(rank):
        _alike(tracer, node, [(key, other) for key in (keys[1:] if other == axis else keys)], (out, other))


def scatter_elements(tracer: Tracer, node: Node) -> None:
    """The data, but for out[indices[i][j]][j] = updates[i][j], here for axis 0."""
    out, keys = node.outputs[0], _operands(tracer, node, 3)
    rank = _common_rank(tracer, [*keys, out])
    if rank is None:
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    axis = normalized_axis(int(node.attributes.get("axis", 0)), rank)
    for other in range(rank):
        if other != axis:
            _alike(tracer, node, [(key, other) for key in keys], (out, other))
        else:
            _freeze(tracer, node, [(key, axis) for key in (*keys, out)])


def gather_nd(tracer: Tracer, node: Node) -> None:
    """Each row of indices tells a place on the first axes behind the batch; the axes behind these pass."""
    out, (data, indices) = node.outputs[0], _operands(tracer, node, 2)
    ranks, width = (tracer.rank(data), tracer.rank(indices)), _row(tracer, indices)
    batch = int(node.attributes.get("batch_dims", 0))
    if ranks[0] is None or not ranks[1] or width is None or tracer.rank(out) != ranks[0] + ranks[1] - 1 - width - batch:
        tracer.freeze_node(node, f"rows of unknown length: GatherND at {node.name}")
        return
    last = ranks[1] - 1
    _freeze(tracer, node, [(indices, last), *[(data, axis) for axis in range(batch, batch + width)]])
    for axis in range(last):
        _alike(tracer, node, [(data, axis), (indices, axis)] if axis < batch else [(indices, axis)], (out, axis))
    for axis in range(batch + width, ranks[0]):
        _alike(tracer, node, [(data, axis)], (out, axis - batch - width + last))


def scatter_nd(tracer: Tracer, node: Node) -> None:
    """The data, but for what stands at the places that rows of indices tell on the first axes; the others pass."""
    out, (data, indices, updates) = node.outputs[0], _operands(tracer, node, 3)
    rank, rows, width = tracer.rank(data), tracer.rank(indices), _row(tracer, indices)
    if rank is None or not rows or width is None or tracer.rank(updates) != rows - 1 + rank - width:
        tracer.freeze_node(node, f"rows of unknown length: ScatterND at {node.name}")
        return
    tracer.freeze(indices, _reason(node))
    tracer.freeze(updates, _reason(node), range(rows - 1))
    for axis in range(rank):
        if axis < width:
            _freeze(tracer, node, [(data, axis), (out, axis)])
        else:
            _alike(tracer, node, [(data, axis), (updates, axis - width + rows - 1)], (out, axis))


def _operands(tracer: Tracer, node: Node, count: int) -> list[TensorKey]:
    """The first inputs, of which none may be left out.

    Raises:
        ValueError: one is.
    """
    keys = [tracer.operand(node, index) for index in range(count)]
    if None in keys:
        raise ValueError("an input is left out")
    return [key for key in keys if key is not None]


def _common_rank(tracer: Tracer, keys: Sequence[TensorKey]) -> int | None:
    ranks = {tracer.rank(key) for key in keys}
    return ranks.pop() if len(ranks) == 1 else None


def _row(tracer: Tracer, indices: TensorKey) -> int | None:
    """How many numbers tell a place; None if that is not known."""
    rank = tracer.rank(indices)
    return tracer.size((indices, rank - 1)) if rank else None


def _alike(tracer: Tracer, node: Node, sources: list[AxisKey], target: AxisKey) -> None:
    """Axes along which each position stands for itself, as long as all are equally long; shorter ones touch a part."""
    sizes = {tracer.size(axis) for axis in (*sources, target)}
    if sizes == {None}:
        return
    if len(sizes) == 1:
        broadcast_axis(tracer, node, sources, target)
    else:
        _freeze(tracer, node, [*sources, target])


def _freeze(tracer: Tracer, node: Node, axes: Sequence[AxisKey]) -> None:
    for tensor, axis in axes:
        tracer.freeze(tensor, _reason(node), [axis])


def _reason(node: Node) -> str:
    return f"places told by indices: {node.op_type} at {node.name}"


RULES = {
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
