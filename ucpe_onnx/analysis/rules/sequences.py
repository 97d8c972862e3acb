"""Sequences of tensors whose items are known in advance: parts of a tensor, or tensors that are named one by one.

A SplitToSequence or SequenceConstruct carries nothing by itself. Whoever takes items out is linked to where they come
from; where channels have gone, an item of a split becomes a Gather from the tensor that was split.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints, normalized_axis
from ucpe_onnx.analysis.rules.rearrange import gather_follows
from ucpe_onnx.analysis.rules.shape import concatenated
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import Tracer


@dataclass(frozen=True)
class _Item:
    """An item of a sequence: a tensor, or the positions from ``start`` to ``end`` on an axis of one (-1: all of it)."""

    tensor: TensorKey
    axis: int = -1
    start: int = 0
    end: int = 0


def made(tracer: Tracer, node: Node) -> None:
    """SplitToSequence and SequenceConstruct: what they read passes to those who take items out."""
    if _items(tracer, node.outputs[0]) is None:
        tracer.freeze_node(node, f"sequence whose items are not known in advance: {node.op_type} at {node.name}")


def sequence_at(tracer: Tracer, node: Node) -> None:
    """The item that a constant tells."""
    items, at = _items(tracer, node.inputs[0]), tracer.graph.value(node.inputs[1])
    if items is None or at is None or not -len(items) <= int(at.reshape(-1)[0]) < len(items):
        tracer.freeze_node(node, f"item of a sequence that is not known in advance: {node.op_type} at {node.name}")
        return
    item, out = items[int(at.reshape(-1)[0])], node.outputs[0]
    if item.axis < 0:
        tracer.pass_through(node, item.tensor, out)
        return
    tracer.pass_through(node, item.tensor, out, [a for a in range(tracer.rank(item.tensor) or 0) if a != item.axis])
    source, target = (item.tensor, item.axis), (out, item.axis)
    if isinstance(item.tensor, str) and tracer.is_live(source) and tracer.size(target) == item.end - item.start:
        positions = np.arange(item.start, item.end, dtype=np.int64)
        tracer.link_positions(source, positions, target, positions - item.start, free=True)
        gather_follows(tracer, node, item.tensor, item.axis, positions)
        return
    for tensor in (item.tensor, out):
        tracer.freeze(tensor, f"cut axis of a sequence: {node.op_type} at {node.name}", [item.axis])


def concat_from_sequence(tracer: Tracer, node: Node) -> None:
    """Tensors that were named one by one, one after the other, or a split tensor put together again."""
    items, out = _items(tracer, node.inputs[0]), node.outputs[0]
    whole = items is not None and all(item.axis < 0 for item in items)
    if items is None or int(node.attributes.get("new_axis", 0)):
        tracer.freeze_node(node, f"items of a sequence on an axis of their own: {node.op_type} at {node.name}")
    elif whole:
        concatenated(tracer, node, [item.tensor for item in items])
    elif normalized_axis(int(node.attributes["axis"]), tracer.rank(out) or 1) == items[0].axis:
        source = items[0].tensor
        tracer.pass_through(node, source, out)
        if isinstance(source, str):  # always: see _split_items
            tracer.rewrite(node, lambda edit: edit.become("Identity", [source], {}), {source})
    else:
        tracer.freeze_node(node, f"parts that are joined along another axis: {node.op_type} at {node.name}")


def _items(tracer: Tracer, sequence: str) -> list[_Item] | None:
    """The items of a sequence; None if they are not known, or if not all who read them are followed."""
    graph = tracer.graph
    maker = graph.makers.get(sequence)
    readers = graph.readers[sequence]
    followed = all(
        (reader.op_type == "SequenceAt" and graph.value(reader.inputs[1]) is not None)
        or (reader.op_type == "ConcatFromSequence" and not reader.attributes.get("new_axis", 0))
        for reader, _ in readers
    )
    if maker is None or not followed or not readers or sequence in graph.outputs or sequence in graph.captured:
        return None
    if maker.op_type == "SplitToSequence":
        return _split_items(tracer, maker)
    if maker.op_type != "SequenceConstruct":
        return None
    keys = [tracer.operand(maker, index) for index in range(len(maker.inputs))]
    return [_Item(key) for key in keys if key is not None]


def _split_items(tracer: Tracer, node: Node) -> list[_Item] | None:
    """Parts of the lengths that a list tells, or all of one length but for the last."""
    data, rank = node.inputs[0], tracer.rank(node.inputs[0])
    axis = normalized_axis(int(node.attributes.get("axis", 0)), rank or 1)
    length = tracer.size((data, axis)) if rank else None
    given = constant_ints(tracer, node, "", 1)
    alone = given == [] and not node.attributes.get("keepdims", 1)  # the axis goes from each part
    if (
        given is None
        or length is None
        or alone
        or isinstance(tracer.operand(node, 0), tuple)
        or min(given, default=1) < 1
    ):
        return None
    if given and tracer.rank(node.inputs[1]) == 1:
        starts = list(accumulate(given, initial=0))
    else:
        starts = [*range(0, length, given[0] if given else 1), length]
    return [_Item(data, axis, start, end) for start, end in pairwise(starts)] if starts[-1] == length else None


RULES = {
    "ConcatFromSequence": concat_from_sequence,
    "SequenceAt": sequence_at,
    "SequenceConstruct": made,
    "SplitToSequence": made,
}
