"""Insert nodes into a graph, which ONNX wants in topological order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def insert_before(draft: onnx.ModelProto, new: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Put new nodes in front of others.

    Args:
        draft: the model, changed in place; its nodes have unique names.
        new: by the name of the node that they go in front of.
    """
    if not new:
        return
    nodes = [node for old in draft.graph.node for node in (*new.get(old.name, ()), old)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del draft.graph.node[:]
    draft.graph.node.extend(copies)
