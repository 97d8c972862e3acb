"""Reshape and Flatten: which input axes make up which output axes, and target shapes that follow the channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ucpe_onnx.analysis.graph import Node, Shape
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_PRIMES = (1000003, 1000033, 1000037, 1000039)
"""Stand-ins for unknown lengths: too large and too prime to be confused with a product of known ones."""

_CARRIES_SIZES = frozenset(
    [
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "Div",
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
    ]
)


def flatten(tracer: Tracer, node: Node) -> None:
    """Axes before ``axis`` become one, the rest the other."""
    _regroup(tracer, node)


def reshape(tracer: Tracer, node: Node) -> None:
    """Regroup the axes; a target shape that names a channel count is adapted on emission."""
    _regroup(tracer, node)
    if len(node.inputs) > 1:
        shape_input_follows(tracer, node, 1)
    else:
        _shape_attribute_follows(tracer, node)


def _regroup(tracer: Tracer, node: Node) -> None:
    data, out = node.inputs[0], node.outputs[0]
    before, after = tracer.dims(data), tracer.dims(out)
    pairs = matched_axes(before, after) if before is not None and after is not None else None
    if pairs is None or before is None or after is None:
        tracer.freeze_node(node, f"reshape with unknown lengths: {node.op_type} at {node.name}")
        return
    for sources, targets in pairs:
        _link_group(tracer, node, sources, targets)


def matched_axes(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Split a reshape into independent ones, from left to right.

    Args:
        before: input shape.
        after: output shape.

    Returns:
        Pairs (input axes, output axes) with equal numbers of elements; None if unknown lengths leave it open.
    """
    lengths = _with_stand_ins(before, after)
    if lengths is None:
        return None
    old, new = lengths
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        sources: list[int] = []
        targets: list[int] = []
        left = right = 0
        while not (left == right and sources and targets):
            take_source = i < len(old) and (not sources or left < right or j == len(new))
            if take_source:
                left = (left or 1) * old[i]
                sources.append(i)
                i += 1
            elif j < len(new):
                right = (right or 1) * new[j]
                targets.append(j)
                j += 1
            else:
                break
        pairs.append((sources, targets))
    return pairs


def _with_stand_ins(before: Shape, after: Shape) -> tuple[list[int], list[int]] | None:
    """Both shapes as integers, unknown lengths replaced by primes where they must be equal; None if unsure."""
    unknown = [[d for d in shape if not isinstance(d, int)] for shape in (before, after)]
    if len(unknown[0]) != len(unknown[1]) or len(unknown[0]) > len(_PRIMES):
        return None
    if len(unknown[0]) > 1 and (
        unknown[0] != unknown[1] or None in unknown[0] or len(set(unknown[0])) < len(unknown[0])
    ):
        return None
    primes = [iter(_PRIMES), iter(_PRIMES)]
    old, new = (
        [d if isinstance(d, int) else next(primes[side]) for d in shape] for side, shape in enumerate((before, after))
    )
    return (old, new) if math.prod(old) == math.prod(new) else None


def _link_group(tracer: Tracer, node: Node, sources: list[int], targets: list[int]) -> None:
    """Link the one live axis of a group if the group only merges axes; freeze what can't be followed."""
    data, out = node.inputs[0], node.outputs[0]
    reason = f"axes merged or split by {node.op_type} at {node.name}"
    if len(sources) == len(targets) == 1:
        tracer.link((data, sources[0]), (out, targets[0]), node)
        return
    old = [a for a in sources if tracer.size((data, a)) != 1]
    new = [a for a in targets if tracer.size((out, a)) != 1]
    tracer.freeze(data, f"axis of length 1: {node.op_type} at {node.name}", [a for a in sources if a not in old])
    tracer.freeze(out, f"axis of length 1: {node.op_type} at {node.name}", [a for a in targets if a not in new])
    if len(old) == len(new) == 1:
        tracer.link((data, old[0]), (out, new[0]), node)
        return
    live = [a for a in old if tracer.is_live((data, a))]
    sizes = [tracer.size((data, a)) for a in old]
    if len(new) != 1 or not live or any(s is None for s in sizes) or tracer.size((out, new[0])) is None:
        tracer.freeze(data, reason, old)
        tracer.freeze(out, reason, new)
        return
    tracer.freeze(data, reason, [a for a in old if a != live[0]])
    place = old.index(live[0])
    known = [s or 1 for s in sizes]
    inner, size = math.prod(known[place + 1 :]), known[place]
    at = np.arange(math.prod(known), dtype=np.int64)
    outer = at // (inner * size)
    tracer.link_positions((data, live[0]), at // inner % size, (out, new[0]), at, outer if place else None)


def shape_input_follows(tracer: Tracer, node: Node, index: int) -> None:
    """Replace an input that holds the output's shape when channels have gone from what that shape describes.

    That is the output, and any tensor whose lengths the shape is computed from at run time.

    A shape computed at run time can be replaced by a constant only if at most one length is unknown (it becomes -1,
    for Reshape) or none is (Resize): else the output's channels stay.
    """
    out = node.outputs[0]
    dims = tracer.dims(out) or ()
    value = tracer.graph.value(node.inputs[index])
    unknown = sum(not isinstance(d, int) for d in dims)
    if value is None and unknown > (node.op_type == "Reshape"):
        tracer.freeze(out, f"shape computed at run time: {node.op_type} at {node.name}")
        return

    def rewrite(edit: NodeEdit) -> None:
        new = edited_shape(tracer, edit, out, dims, None if value is None else [int(v) for v in value])
        if new is not None:
            edit.set_input(index, np.asarray(new, dtype=np.int64))

    tracer.rewrite(node, rewrite, _measured(tracer, node.inputs[index]) if value is None else ())


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
        new = edited_shape(tracer, edit, out, dims, [int(v) for v in node.attributes["shape"]])
        if new is not None:
            edit.set_attribute("shape", new)

    tracer.rewrite(node, rewrite)


def edited_shape(
    tracer: Tracer, edit: NodeEdit, out: str, dims: Shape, target: Sequence[int] | None
) -> list[int] | None:
    """The target shape with emitted lengths; None if it holds as it is.

    Args:
        tracer: for the axes' lengths before.
        edit: for the axes' lengths after.
        out: the reshaped tensor.
        dims: its shape before.
        target: the constant target shape before (-1 and 0 keep their meaning), None if computed at run time.
    """
    sizes = [edit.size((out, axis)) if isinstance(d, int) else -1 for axis, d in enumerate(dims)]
    if target is None:
        return sizes
    if all(size in (-1, d) for size, d in zip(sizes, dims, strict=True)):
        return None
    return [t if size == -1 or t == -1 else size for size, t in zip(sizes, target, strict=True)]


def shape_of(tracer: Tracer, node: Node) -> None:
    """Shape: whoever computes with a length depends on it, so axes whose lengths are used stay.

    Lengths that only end in a Reshape's target don't count: emission replaces that target by a constant.
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
    """The axes whose lengths a Gather with constant indices takes from a shape; None if all may be."""
    if reader.op_type != "Gather" or position != 0:
        return None
    indices = tracer.graph.value(reader.inputs[1])
    return None if indices is None else {axes[int(i)] for i in np.atleast_1d(indices).reshape(-1)}


def _reaches_arithmetic(tracer: Tracer, reader: Node, position: int) -> bool:
    """Whether a length gets anywhere but into the target of a Reshape whose output shape is known well enough."""
    seen: set[int] = set()
    pending = [(reader, position)]
    while pending:
        node, at = pending.pop()
        if node.op_type == "Reshape" and at == 1:
            dims = tracer.dims(node.outputs[0])
            if dims is not None and sum(not isinstance(d, int) for d in dims) <= 1:
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
