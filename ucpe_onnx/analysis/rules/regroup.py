"""Which input axes of a reshape make up which output axes, and how channels pass from one to the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ucpe_onnx.analysis.graph import Node, Shape
from ucpe_onnx.analysis.tracer import Tracer

Pairs = list[tuple[list[int], list[int]]]
"""Independent parts of a reshape: (input axes, output axes) with equal numbers of elements."""


def regroup(tracer: Tracer, node: Node) -> None:
    """Link the axes of a node whose output holds the input's elements in the same row-major order."""
    data, out = node.inputs[0], node.outputs[0]
    before, after = tracer.dims(data), tracer.dims(out)
    pairs = matched_axes(before, after) if before is not None and after is not None else None
    if pairs is None:
        unknown = before is None or after is None
        reason = f"reshape with unknown lengths: {node.op_type} at {node.name}"
        tracer.freeze_node(node, tracer.of_unknown_rank(node) if unknown else reason)
        return
    for sources, targets in pairs:
        _link_group(tracer, node, sources, targets)


def matched_axes(before: Shape, after: Shape) -> Pairs | None:
    """Split a reshape into independent ones: from the left as far as lengths are known, then from the right.

    Args:
        before: input shape.
        after: output shape.

    Returns:
        The parts; what lies between is one part. None if a shape holds a zero or known lengths contradict each other.
    """
    old, new = _with_common_unknown(before, after)
    if 0 in (*old, *new):
        return None
    left, i, j = _from_left(old, new)
    right, k, m = _from_left(old[i:][::-1], new[j:][::-1])
    rest = (list(range(i, len(old) - k)), list(range(j, len(new) - m)))
    turned = [([len(old) - 1 - a for a in s][::-1], [len(new) - 1 - b for b in t][::-1]) for s, t in right]
    sides = [[old[a] for a in rest[0]], [new[b] for b in rest[1]]]
    known = [[d for d in side if isinstance(d, int)] for side in sides]
    if known == sides and math.prod(known[0]) != math.prod(known[1]):
        return None
    return [*left, *([rest] if rest[0] or rest[1] else []), *turned[::-1]]


def _with_common_unknown(before: Shape, after: Shape) -> tuple[Shape, Shape]:
    """If each side has one unknown length and the known ones agree, the unknown ones are the same."""
    unknown = [[i for i, d in enumerate(shape) if not isinstance(d, int)] for shape in (before, after)]
    known = [math.prod(d for d in shape if isinstance(d, int)) for shape in (before, after)]
    if [len(u) for u in unknown] != [1, 1] or known[0] != known[1]:
        return before, after
    same = "the same unknown length"
    (i,), (j,) = unknown
    return (*before[:i], same, *before[i + 1 :]), (*after[:j], same, *after[j + 1 :])


def _from_left(old: Shape, new: Shape) -> tuple[Pairs, int, int]:
    """The smallest parts from the left, and how many axes of each side they cover."""
    pairs: Pairs = []
    i = j = 0
    while i < len(old) or j < len(new):
        found = _smallest(old[i:], new[j:])
        if found is None:
            break
        pairs.append((list(range(i, i + found[0])), list(range(j, j + found[1]))))
        i, j = i + found[0], j + found[1]
    return pairs, i, j


def _smallest(old: Shape, new: Shape) -> tuple[int, int] | None:
    """How many axes of each side make the smallest part with equal numbers of elements; None if that is not known."""
    if old and new and isinstance(old[0], str) and old[0] == new[0]:
        return 1, 1
    sources = targets = 0
    left = right = 1
    while True:
        take_source = sources < len(old) and (not sources or left < right or targets == len(new))
        axis = old[sources] if take_source else new[targets] if targets < len(new) else None
        if not isinstance(axis, int):
            return None
        if take_source:
            left, sources = left * axis, sources + 1
        else:
            right, targets = right * axis, targets + 1
        if left == right and (sources or not old) and (targets or not new):
            return sources, targets


@dataclass(frozen=True)
class _Carry:
    """How a source axis of n positions passes into a target axis of m.

    Attributes:
        outer: source, or target, positions are repeated that often in a slower-running index.
        inner: likewise in a faster-running one.
        ties: several source positions make one of the target; else one makes several.
    """

    outer: int
    inner: int
    ties: bool


def _carry(old: Sequence[int | None], i: int, new: Sequence[int | None], j: int) -> _Carry | None:
    """How axis ``i`` passes into axis ``j``, None if the two overlap in part or not at all, or lengths are unknown.

    Both cover a range of the same row-major index. If the target's range lies inside the source's, positions of the
    source are tied; if it is the other way round, each makes several of the target.
    """
    n, m = old[i], new[j]
    if n is None or m is None:
        return None
    before, behind = (_product(old[:i]), _product(new[:j])), (_product(old[i + 1 :]), _product(new[j + 1 :]))
    for (source, target), forward in ((before, True), (behind, False)):
        if source is None or target is None:
            continue
        ties = target % source == 0 and n % (target // source * m) == 0
        spreads = source % target == 0 and m % (source // target * n) == 0
        if not ties and not spreads:
            return None
        near = target // source if ties else source // target
        far = n // (near * m) if ties else m // (near * n)
        return _Carry(near, far, ties) if forward else _Carry(far, near, ties)
    return None


def _product(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _link_group(tracer: Tracer, node: Node, sources: list[int], targets: list[int]) -> None:
    """Link the one live axis of a group to the axis that carries it on; freeze what can't be followed."""
    data, out = node.inputs[0], node.outputs[0]
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
    lengths = [tracer.size((data, a)) for a in old], [tracer.size((out, a)) for a in new]
    followed: tuple[int, int] | None = None
    for i in (i for i, axis in enumerate(old) if tracer.is_live((data, axis))):
        carries = {new[j]: c for j in range(len(new)) if (c := _carry(lengths[0], i, lengths[1], j)) is not None}
        chosen = _chosen(tracer, node, list(carries))
        if chosen is not None:
            followed = old[i], chosen
            _follow(tracer, node, followed, carries[chosen])
        if followed or carries:
            break
    reason = _why_not(tracer, node, old)
    open_ = tracer.open_splits.get(node.index, [])
    tracer.freeze(data, reason, [a for a in old if followed is None or a != followed[0]] if not open_ else [])
    tracer.freeze(out, reason, [a for a in new if (followed is None or a != followed[1]) and a not in open_])


def _why_not(tracer: Tracer, node: Node, sources: list[int]) -> str:
    """Why axes of a group are not followed: what froze them in front of the node or behind it, else the node."""
    why = (tracer.choices or {}).get(node.index)
    if isinstance(why, str):
        return why
    longest_first = sorted(sources, key=lambda axis: -(tracer.size((node.inputs[0], axis)) or 0))
    axes = [(node.inputs[0], axis) for axis in longest_first]
    before = "" if any(map(tracer.is_live, axes)) else next(filter(None, map(tracer.reason, axes)), "")
    return before or f"axes merged or split by {node.op_type} at {node.name}"


def _chosen(tracer: Tracer, node: Node, candidates: list[int]) -> int | None:
    """The axis that carries the channels on; None if there is none or it is still open."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    if tracer.choices is not None:
        chosen = tracer.choices.get(node.index, candidates[0])
        return chosen if isinstance(chosen, int) and chosen in candidates else None
    if node.index not in tracer.open_splits:
        tracer.open_splits[node.index] = candidates
        for axis in candidates:
            tracer.revive((node.outputs[0], axis))
    return None


def _follow(tracer: Tracer, node: Node, axes: tuple[int, int], carry: _Carry) -> None:
    source, target = (node.inputs[0], axes[0]), (node.outputs[0], axes[1])
    n, m = tracer.size(source) or 0, tracer.size(target) or 0
    if n == m:
        tracer.link(source, target, node)
    elif carry.ties:
        at = np.arange(m * carry.inner, dtype=np.int64)
        for part in range(carry.outer):
            tracer.link_positions(source, part * at.size + at, target, at // carry.inner)
    else:
        at = np.arange(m, dtype=np.int64)
        outer = at // (carry.inner * n)
        tracer.link_positions(source, at // carry.inner % n, target, at, outer=outer if carry.outer > 1 else None)
