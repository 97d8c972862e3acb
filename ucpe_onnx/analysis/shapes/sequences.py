"""Shapes of the items of sequences, where their number is known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ucpe_onnx.analysis.shapes.operators import concat
from ucpe_onnx.analysis.shapes.partial import Facts, Shape

SEQUENCE_OPERATORS = frozenset({"ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SplitToSequence"})
"""Those that this module knows."""


def item_shapes(facts: Facts) -> Sequence[Shape | None] | None:
    """The shapes of the items of the sequence that a node makes; None if not even their number is known."""
    if facts.op == "SequenceConstruct":
        return facts.shapes
    shape, axis = facts.shape(0), int(facts.attributes.get("axis", 0))
    length = None if shape is None else shape[axis]
    if facts.op != "SplitToSequence" or shape is None or not isinstance(length, int):
        return None
    axis %= len(shape)
    given = facts.value(1).known() if facts.has(1) and facts.value(1) is not None else None  # type: ignore[union-attr]
    if facts.has(1) and given is None:
        return None
    if not facts.has(1) and not facts.attributes.get("keepdims", 1):
        return [(*shape[:axis], *shape[axis + 1 :])] * length
    if given is None or not given.ndim:
        most = 1 if given is None else max(int(given), 1)
        sizes = [min(most, length - start) for start in range(0, length, most)]
    else:
        sizes = [int(size) for size in given]
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def taken_shape(facts: Facts, items: Sequence[Shape | None]) -> Shape | None:
    """The shape of what a node takes out of a sequence of known items."""
    if facts.op == "SequenceAt":
        at = None if (value := facts.value(1)) is None else value.known()
        return (
            None
            if at is None or not -len(items) <= int(at.reshape(-1)[0]) < len(items)
            else items[int(at.reshape(-1)[0])]
        )
    if facts.op == "ConcatFromSequence" and not facts.attributes.get("new_axis", 0):
        return concat(replace(facts, shapes=items))
    return None
