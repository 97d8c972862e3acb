"""Helpers that several rules share."""

from __future__ import annotations

from typing import Any

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import AxisKey, TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def constant_ints(tracer: Tracer, node: Node, attribute: str, index: int) -> list[int] | None:
    """Integers that older opsets store in an attribute and newer ones in a constant input.

    Returns:
        The integers; None if they are computed at run time; an empty list if they are given nowhere.
    """
    if attribute in node.attributes:
        value: Any = node.attributes[attribute]
        return [int(v) for v in np.atleast_1d(value)]
    if index >= len(node.inputs) or not node.inputs[index]:
        return []
    value = tracer.graph.value(node.inputs[index])
    return None if value is None else [int(v) for v in np.atleast_1d(value)]


def normalized_axis(axis: int, rank: int) -> int:
    """A negative axis counts from the end."""
    return axis + rank if axis < 0 else axis


def elementwise(tracer: Tracer, node: Node, operands: list[TensorKey], out: str) -> None:
    """Link the operands of a broadcasting operator to its output, axis by axis from the right.

    An operand that is broadcast along an axis (length 1 there) must stay of length 1, so that axis is frozen.
    """
    rank = tracer.rank(out)
    if rank is None or any(tracer.rank(o) is None for o in operands):
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    for axis in range(rank):
        _elementwise_axis(tracer, node, operands, out, axis)


def _elementwise_axis(tracer: Tracer, node: Node, operands: list[TensorKey], out: str, axis: int) -> None:
    rank = tracer.rank(out) or 0
    present = [(o, axis - rank + (tracer.rank(o) or 0)) for o in operands]
    broadcast_axis(tracer, node, [key for key in present if key[1] >= 0], (out, axis))


def broadcast_axis(tracer: Tracer, node: Node, present: list[AxisKey], target: AxisKey) -> None:
    """Link the axes of operands that are broadcast against each other to the axis of the result."""
    size = tracer.size(target)
    sizes = [tracer.size(key) for key in present]
    unsure = size is None or any(s is None for s in sizes)
    carriers = [key for key, s in zip(present, sizes, strict=True) if s == size]
    if unsure or not carriers:
        for key in (*present, target):
            tracer.freeze(key[0], f"broadcast along a dynamic axis: {node.op_type} at {node.name}", [key[1]])
        return
    for key, s in zip(present, sizes, strict=True):
        if s != size:
            tracer.freeze(key[0], f"broadcast operand of {node.op_type} at {node.name}", [key[1]])
    activations = [key for key in carriers if isinstance(key[0], str)]
    for key in activations:
        tracer.link(key, target, node)
    for key in carriers:
        if isinstance(key[0], tuple):
            if activations:
                tracer.link(target, key, node)
            else:
                tracer.link(key, target, node)
