"""Pad: the data keeps its slots, and the padding has slots of its own that can go like any other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_ints, normalized_axis
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer


def pad(tracer: Tracer, node: Node) -> None:
    """Unpadded axes pass. Constant padding of a channel axis shrinks with the channels that it stands in for."""
    data, out = node.inputs[0], node.outputs[0]
    rank = tracer.rank(data)
    attribute = "paddings" if "paddings" in node.attributes else "pads"
    pads = constant_ints(tracer, node, attribute, 1)
    given = constant_ints(tracer, node, "axes", 3)
    if rank is None or not pads or given is None or tracer.rank(out) != rank:
        tracer.freeze_node(node, f"pads computed at run time or unknown rank: Pad at {node.name}")
        return
    axes = [normalized_axis(a, rank) for a in given] or list(range(rank))
    before = dict(zip(axes, pads[: len(axes)], strict=True))
    after = dict(zip(axes, pads[len(axes) :], strict=True))
    constant = node.attributes.get("mode", b"constant") == b"constant"
    padded: dict[int, int] = {}
    for axis in range(rank):
        ends = before.get(axis, 0), after.get(axis, 0)
        size = tracer.size((data, axis))
        if ends == (0, 0):
            tracer.link((data, axis), (out, axis), node)
        elif constant and size is not None and min(ends) >= 0 and tracer.is_live((data, axis)):
            at = np.arange(size, dtype=np.int64)
            tracer.link_positions((data, axis), at, (out, axis), at + ends[0])
            padded[axes.index(axis)] = axis
        else:
            reason = f"padded axis of Pad at {node.name}"
            tracer.freeze(data, reason, [axis])
            tracer.freeze(out, reason, [axis])
    if padded:
        _pads_follow(tracer, node, padded, pads, attribute)


def _pads_follow(tracer: Tracer, node: Node, padded: Mapping[int, int], pads: list[int], attribute: str) -> None:
    """Padding is as long as what remains of it.

    Args:
        tracer: the tracer.
        node: the Pad.
        padded: the axes of channels, by their place among the node's axes.
        pads: all beginnings, then all ends.
        attribute: the attribute that holds them before opset 11.
    """
    count = len(pads) // 2

    def rewrite(edit: NodeEdit) -> None:
        new = list(pads)
        for place, axis in padded.items():
            kept = edit.kept((node.outputs[0], axis))
            end = (tracer.size((node.outputs[0], axis)) or 0) - pads[count + place]
            new[place], new[count + place] = int((kept < pads[place]).sum()), int((kept >= end).sum())
        if attribute in node.attributes:
            edit.set_attribute(attribute, new)
        else:
            edit.set_input(1, np.asarray(new, dtype=np.int64))

    tracer.rewrite(node, rewrite)


RULES = {"Pad": pad}
