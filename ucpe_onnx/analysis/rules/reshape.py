"""Reshape and Flatten, and target shapes that follow the channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from ucpe_onnx.analysis.graph import Node, Shape
from ucpe_onnx.analysis.rules.common import constant_ints
from ucpe_onnx.analysis.rules.regroup import regroup
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_CARRIES_SIZES = frozenset(
    [
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "Div",
        "Equal",
        "Floor",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    ]
)
_OF_ELEMENTS = frozenset(["Add", "Div", "Equal", "Max", "Min", "Mul", "Sub", "Where"])
"""Of those, the ones that compute each element from the elements of their operands at the same place."""


_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}
"""The input that holds the shape of the output."""
_LONGEST_SHAPE = 64


def flatten(tracer: Tracer, node: Node) -> None:
    """Axes before ``axis`` become one, the rest the other."""
    regroup(tracer, node)


def reshape(tracer: Tracer, node: Node) -> None:
    """Regroup the axes; a target shape that names a channel count is adapted on emission."""
    regroup(tracer, node)
    if len(node.inputs) > 1:
        shape_input_follows(tracer, node, 1)
    else:
        _shape_attribute_follows(tracer, node)


def shape_input_follows(tracer: Tracer, node: Node, index: int) -> None:
    """Adapt an input that holds the output's shape when channels have gone from what that shape describes.

    That is the output, and any tensor whose lengths the shape is computed from at run time. Where no shape can be
    written down that is right at run time, the output's channels stay.
    """
    out = node.outputs[0]
    dims = tracer.dims(out) or ()
    for axis in range(len(dims)):  # some may be linked to nothing
        tracer.ids((out, axis))
    value = tracer.graph.value(node.inputs[index])
    known = None if value is None else [int(v) for v in value.reshape(-1)]
    unknown_as = None if known is not None else _unknown_lengths(tracer, node, dims)
    patched = known is None and unknown_as is None
    if patched and not _unknown_lengths_stay(tracer, node.inputs[index], dims):
        tracer.freeze(out, f"shape computed at run time: {node.op_type} at {node.name}")
        return

    def rewrite(edit: NodeEdit) -> None:
        sizes = [edit.size((out, axis)) if isinstance(d, int) else None for axis, d in enumerate(dims)]
        if patched:
            edit.patch_input(index, sizes)
        elif known is None:
            new = [a if size is None else size for size, a in zip(sizes, unknown_as or [], strict=True)]
            edit.set_input(index, np.asarray(new, dtype=np.int64))
        elif (adapted := edited_shape(sizes, dims, known)) is not None:
            edit.set_input(index, np.asarray(adapted, dtype=np.int64))

    tracer.rewrite(node, rewrite, _measured(tracer, node.inputs[index]) if known is None else ())


def _unknown_lengths(tracer: Tracer, node: Node, dims: Shape) -> list[int] | None:
    """What stands for unknown lengths in a constant target shape: 0 copies the input's, one may be -1.

    Returns:
        One entry per axis, of which those of known lengths don't count; None if there is no such shape.
    """
    before = tracer.dims(node.inputs[0]) or ()
    copies = node.op_type == "Reshape" and not node.attributes.get("allowzero", 0)
    stand_ins = [
        0 if copies and isinstance(d, str) and axis < len(before) and before[axis] == d else -1
        for axis, d in enumerate(dims)
    ]
    open_ = sum(s == -1 and not isinstance(d, int) for s, d in zip(stand_ins, dims, strict=True))
    return stand_ins if open_ <= (node.op_type == "Reshape") else None


def _unknown_lengths_stay(tracer: Tracer, shape: str, dims: Shape) -> bool:
    """Whether the entries of a run-time shape for unknown lengths are copies of lengths that never change."""
    entries = shape_entries(tracer, shape)
    if entries is None or len(entries) != len(dims):
        return False
    return all(
        isinstance(d, int) or (e is not None and all(tracer.size(axis) is None for axis in e))
        for d, e in zip(dims, entries, strict=True)
    )


def _measured(tracer: Tracer, shape: str) -> set[str]:
    """The tensors whose lengths a run-time shape is computed from."""
    measured: set[str] = set()
    seen, pending = {shape}, [shape]
    while pending:
        maker = tracer.graph.makers.get(pending.pop())
        if maker is None:
            continue
        if maker.op_type == "Shape":
            measured.add(maker.inputs[0])
            continue
        pending.extend(name for name in maker.inputs if name not in seen)
        seen.update(maker.inputs)
    return measured


def _shape_attribute_follows(tracer: Tracer, node: Node) -> None:
    out = node.outputs[0]
    dims = tracer.dims(out) or ()

    def rewrite(edit: NodeEdit) -> None:
        sizes = [edit.size((out, axis)) if isinstance(d, int) else None for axis, d in enumerate(dims)]
        adapted = edited_shape(sizes, dims, [int(v) for v in node.attributes["shape"]])
        if adapted is not None:
            edit.set_attribute("shape", adapted)

    tracer.rewrite(node, rewrite)


def edited_shape(sizes: Sequence[int | None], dims: Shape, target: Sequence[int]) -> list[int] | None:
    """A constant target shape with emitted lengths; None if it holds as it is.

    Args:
        sizes: lengths after, None for unknown ones.
        dims: lengths before.
        target: the target shape before; -1, 0 and Expand's 1 for "as it is" keep their meaning.
    """
    if all(size is None or size == d for size, d in zip(sizes, dims, strict=True)):
        return None
    target = [1] * (len(dims) - len(target)) + list(target)
    return [
        t if size is None or t == -1 or (t == 1 and d != 1) else size
        for size, d, t in zip(sizes, dims, target, strict=True)
    ]


def shape_of(tracer: Tracer, node: Node) -> None:
    """Shape: whoever computes with a length depends on it, so axes whose lengths are used stay.

    Lengths that only end in the target of a Reshape, Resize or Expand don't count: emission adapts it.
    """
    data = node.inputs[0]
    rank = tracer.rank(data)
    if rank is None:
        return
    used = _used_axes(tracer, node, rank)
    if used:
        tracer.freeze(data, f"length used at run time: Shape at {node.name}", sorted(used))


def _used_axes(tracer: Tracer, node: Node, rank: int) -> set[int]:
    start, end = int(node.attributes.get("start", 0)), int(node.attributes.get("end", rank))
    axes = list(range(rank))[start:end]
    out = node.outputs[0]
    used: set[int] = set(axes) if out in tracer.graph.outputs or out in tracer.graph.captured else set()
    for reader, position in tracer.graph.readers[out]:
        picked = _picked(tracer, reader, position, axes)
        if picked is None:
            used |= set(axes) if _reaches_arithmetic(tracer, reader, position) else set()
        elif _reaches_arithmetic(tracer, reader, position):
            used |= picked
    return used


def _picked(tracer: Tracer, reader: Node, position: int, axes: list[int]) -> set[int] | None:
    """The axes whose lengths a Gather or Slice with constant bounds takes from a shape; None if all may be."""
    entries = _taken(tracer, reader, list(axes)) if position == 0 else None
    return None if entries is None else set(entries)


_Entry: TypeAlias = "frozenset[AxisKey] | None"
"""The axes from whose lengths an element of a shape is computed, none for a constant; None if that is not known."""
T = TypeVar("T")


def shape_entries(tracer: Tracer, name: str) -> list[_Entry] | None:
    """Where the elements of a tensor of lengths come from; None if not even their number is known."""
    if name in tracer.graph.constants:
        value = tracer.graph.value(name)
        return None if value is None else [frozenset()] * value.size
    maker = tracer.graph.makers.get(name)
    entries = None if maker is None else _computed_entries(tracer, maker)
    if entries is not None:
        return entries
    dims = tracer.dims(name)
    length = math.prod(d for d in dims if isinstance(d, int)) if dims is not None and None not in dims else None
    return None if length is None or length > _LONGEST_SHAPE else [None] * length


def _computed_entries(tracer: Tracer, maker: Node) -> list[_Entry] | None:
    """Where the elements that a node makes come from; None if it is not known to hand lengths on."""
    if maker.op_type == "Shape":
        rank = tracer.rank(maker.inputs[0])
        axes = range(rank or 0)[int(maker.attributes.get("start", 0)) : maker.attributes.get("end")]
        return None if rank is None else [frozenset({(maker.inputs[0], axis)}) for axis in axes]
    if maker.op_type == "Concat":
        parts = [shape_entries(tracer, part) for part in maker.inputs]
        return None if any(part is None for part in parts) else [entry for part in parts for entry in part or ()]
    if maker.op_type in ("Cast", "Ceil", "Floor", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return shape_entries(tracer, maker.inputs[0])
    if maker.op_type in _OF_ELEMENTS:
        return _of_elements(tracer, maker)
    entries = shape_entries(tracer, maker.inputs[0]) if maker.op_type in ("Gather", "Slice") else None
    return None if entries is None else _taken(tracer, maker, entries)


def _of_elements(tracer: Tracer, node: Node) -> list[_Entry] | None:
    """What each element of a result is computed from: of a Where whose condition is known, the operand it picks."""
    operands = [shape_entries(tracer, name) for name in node.inputs]
    known = [entries for entries in operands if entries is not None]
    length = max((len(entries) for entries in known), default=0)
    if len(known) < len(operands) or any(len(entries) not in (1, length) for entries in known):
        return None
    rows = [entries * (length // len(entries)) for entries in known]
    picks = tracer.graph.value(node.inputs[0]) if node.op_type == "Where" else None
    if picks is not None and picks.size in (1, length):
        return [rows[1 if pick else 2][i] for i, pick in enumerate(np.resize(picks.reshape(-1), length))]
    return [None if None in of else frozenset[AxisKey]().union(*of) for of in zip(*rows, strict=True)]


def _taken(tracer: Tracer, node: Node, entries: list[T]) -> list[T] | None:
    """What a Gather or Slice takes of a list; None if that is decided at run time."""
    if node.op_type == "Gather":
        indices = tracer.graph.value(node.inputs[1])
        return None if indices is None else [entries[int(i)] for i in indices.reshape(-1)]
    if node.op_type != "Slice":
        return None
    starts, ends = constant_ints(tracer, node, "starts", 1), constant_ints(tracer, node, "ends", 2)
    steps = constant_ints(tracer, node, "steps", 4)
    if not starts or not ends or steps is None or len(starts) != 1:
        return None
    return entries[starts[0] : ends[0] : (steps or [1])[0]]


def _reaches_arithmetic(tracer: Tracer, reader: Node, position: int) -> bool:
    """Whether a length gets anywhere but into the target of a Reshape whose output shape is known well enough."""
    seen: set[int] = set()
    pending = [(reader, position)]
    while pending:
        node, at = pending.pop()
        if all(name in tracer.graph.constants for name in node.outputs if name):
            continue  # known in advance, and written down on emission
        if at == _SHAPE_INPUT.get(node.op_type) and _adaptable(tracer, node, at):
            continue
        if node.op_type not in _CARRIES_SIZES:
            return True
        if node.index in seen:
            continue
        seen.add(node.index)
        out = node.outputs[0]
        if out in tracer.graph.outputs or out in tracer.graph.captured:
            return True
        pending.extend(tracer.graph.readers[out])
    return False


def _adaptable(tracer: Tracer, node: Node, index: int) -> bool:
    """Whether :func:`shape_input_follows` can adapt a shape that is computed at run time."""
    dims = tracer.dims(node.outputs[0])
    if dims is None:
        return False
    return _unknown_lengths(tracer, node, dims) is not None or _unknown_lengths_stay(tracer, node.inputs[index], dims)
