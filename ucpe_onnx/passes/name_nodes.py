"""Give every node the name by which listings and plans know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from ucpe_onnx.model.naming import node_names
from ucpe_onnx.passes.infra import PassResult


@dataclass(frozen=True)
class NameNodes:
    """Name nodes that have no name or share one; see :func:`ucpe_onnx.model.naming.node_names`."""

    name: ClassVar[str] = "name-nodes"

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Set the names."""
        changed = []
        for node, name in zip(draft.graph.node, node_names(draft.graph.node), strict=True):
            if node.name != name:
                node.name = name
                changed.append(name)
        return PassResult(tuple(changed))
