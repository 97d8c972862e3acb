"""What an emitted graph does for nothing, found by tracing it anew: the planner and the passes have no part in it."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.trace import trace


def unread_channels(model: onnx.ModelProto) -> dict[str, int]:
    """Channels that are made though no consumer reads them, counted by one of their producers.

    A group's last channel is no such: an operator that makes none would not load.
    """
    traced = trace(model)
    found: dict[str, int] = {}
    for segment in traced.segments:
        unread = ~segment.frozen
        for name in segment.consumers:
            unread[traced.consumers[name].slots] = False
        for group in segment.groups:
            count = int(unread[list(group)].sum())
            if count and len(group) > 1:
                label = next(iter(segment.producers), str(segment.axes[0]))
                found[label] = found.get(label, 0) + count
    return found


def selections(emitted: onnx.ModelProto, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The Gathers and Slices that the input model does not have."""
    known = {node.name for node in model.graph.node}
    return [node for node in emitted.graph.node if node.op_type in ("Gather", "Slice") and node.name not in known]


def repeated_selections(emitted: onnx.ModelProto, model: onnx.ModelProto) -> list[str]:
    """Tensors from which the same is selected more than once."""
    values = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in emitted.graph.initializer}
    made = Counter(
        (
            node.input[0],
            tuple(values.get(name, name) for name in node.input[1:]),
            tuple(attribute.SerializeToString() for attribute in node.attribute),
        )
        for node in selections(emitted, model)
    )
    return [key[0] for key, count in made.items() if count > 1]
