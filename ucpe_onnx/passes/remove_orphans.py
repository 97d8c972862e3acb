"""Remove what the rewrite has left without a reader, and nothing that was unread before."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import ClassVar

import onnx

from ucpe_onnx.passes.infra import Emission, PassResult


@dataclass(frozen=True)
class RemoveOrphans:
    """Remove initializers and nodes whose last reader now reads something else, and what was declared of them.

    What nothing read in the input model is the user's own and stays.
    """

    name: ClassVar[str] = "remove-orphans"

    emission: Emission

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
        removed = [draft.graph.node[index].name for index in sorted(gone)]
        skipped = {}
        for index in sorted(gone, reverse=True):
            del draft.graph.node[index]
        declared = {value.name for value in draft.graph.input}
        for index in range(len(draft.graph.initializer) - 1, -1, -1):
            name = draft.graph.initializer[index].name
            if name in orphans and name in declared:
                skipped[name] = "it is an input of the graph too, which callers know"
            elif name in orphans:
                del draft.graph.initializer[index]
                removed.append(name)
        orphans -= {name for node in draft.graph.node for name in node.output}
        _forget(draft.graph.value_info, orphans)
        return PassResult(tuple(removed), skipped)


def _forget(values: MutableSequence[onnx.ValueInfoProto], names: set[str]) -> None:
    for index in range(len(values) - 1, -1, -1):
        if values[index].name in names:
            del values[index]
