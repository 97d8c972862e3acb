"""Initializers that can be edited in their place although nodes read them through an Identity, Cast or Transpose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.quantised import zero_value
from ucpe_onnx.analysis.shared_weights import CARRYING, origin
from ucpe_onnx.passes.weights import Edit

Use = tuple[int, int]
"""One use of a constant: (node index, input index)."""


@dataclass(frozen=True)
class Origins:
    """Finds the initializers behind folded constants that one edit serves for all that is read of them.

    A copy of the folded constant would do as well, but there would be one for each form in which it is read: for a
    weight and its transpose twice the elements, for a weight that is stored in half precision twice the bytes.

    Attributes:
        graph: the graph of the input model.
        wanted: for each constant that is read what its uses need.
    """

    graph: GraphView
    wanted: Mapping[str, Mapping[Edit, list[Use]]]

    def edits(self) -> dict[str, Edit]:
        """What has to become of each such initializer."""
        stored = {tensor.name for tensor in self.graph.model.graph.initializer}
        declared = {value.name for value in self.graph.model.graph.input}
        behind: dict[str, list[str]] = defaultdict(list)
        for name in self.wanted:
            behind[origin(self.graph, name).name].append(name)
        found = {}
        for root, names in behind.items():
            if root in stored and root not in declared and self._pays(root, names):
                edits = set(self._read(root))
                edit = edits.pop() if len(edits) == 1 else None
                if edit is not None:
                    found[root] = edit
        return found

    def carried(self, root: str) -> Iterator[str]:
        """An initializer and what is made of it."""
        yield root
        for node, _ in self.graph.readers[root]:
            if self._carries(node):
                yield from self.carried(node.outputs[0])

    def _pays(self, root: str, names: list[str]) -> bool:
        """Whether copies would take more room than the edited initializer."""
        if names == [root]:
            return False
        value, copies = self.graph.value(root), [self.graph.value(name) for name in names]
        return value is not None and sum(copy.nbytes for copy in copies if copy is not None) > value.nbytes

    def _carries(self, node: Node) -> bool:
        return node.op_type in CARRYING and node.outputs[0] in self.graph.constants

    def _read(self, root: str) -> Iterator[Edit | None]:
        """What every reader of an initializer needs of it; None for one that needs something else than an edit."""
        for tensor in self.carried(root):
            if tensor in self.graph.captured or tensor in self.graph.outputs:
                yield None
            needs = {use: edit for edit, uses in self.wanted.get(tensor, {}).items() for use in uses}
            for node, place in self.graph.readers[tensor]:
                if not self._carries(node):
                    edit = needs.get((node.index, place))
                    yield None if edit is None else self._moved(tensor, edit, (node.index, place))

    def _moved(self, tensor: str, edit: Edit, use: Use) -> Edit | None:
        """The edit of the initializer that makes an edit of what is read; None if there is none."""
        axes = origin(self.graph, tensor).axes
        if np.any(zero_value(self.graph, use, len(axes))):
            return None  # zero is another number for each use
        return edit if axes == tuple(range(len(axes))) else edit.moved(axes)
