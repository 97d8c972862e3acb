"""Remove what the rewrite has left without a reader, and nothing that was unread before."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableSequence
from dataclasses import dataclass

import onnx

from ucpe_onnx.passes.infra import Emission, PassResult


@dataclass(frozen=True)
class RemoveOrphans:
    """Remove initializers and nodes whose last reader now reads something else, and what was declared of them.

    What nothing read in the input model is the user's own and stays.
    """

    emission: Emission
    name: str = "remove-orphans"

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Delete orphaned initializers and, upwards from them, orphaned nodes."""
        view = self.emission.trace.graph
        needed = view.captured.union(view.outputs)
        was_read = {name for name, readers in view.readers.items() if readers} - needed
        readers = Counter(name for node in draft.graph.node for name in node.input if name)
        orphans = {name for name in was_read if not readers[name]}
        gone: set[int] = set()
        for index in range(len(draft.graph.node) - 1, -1, -1):
            node = draft.graph.node[index]
            if orphans.intersection(node.output) and not any(readers[name] or name in needed for name in node.output):
                gone.add(index)
                for name in node.input:
                    readers[name] -= 1
                    if name in was_read and not readers[name]:
                        orphans.add(name)
        changes = len(gone)
        for index in sorted(gone, reverse=True):
            del draft.graph.node[index]
        declared = {value.name for value in draft.graph.input}
        for index in range(len(draft.graph.initializer) - 1, -1, -1):
            name = draft.graph.initializer[index].name
            if name in orphans and name not in declared:
                del draft.graph.initializer[index]
                changes += 1
        orphans -= {name for node in draft.graph.node for name in node.output}
        _forget(draft.graph.value_info, orphans)
        return PassResult(changes)


def _forget(values: MutableSequence[onnx.ValueInfoProto], names: set[str]) -> None:
    for index in range(len(values) - 1, -1, -1):
        if values[index].name in names:
            del values[index]
