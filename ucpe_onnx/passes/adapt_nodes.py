"""Adapt attributes and shape inputs (groups, reshape targets, slice bounds) to the emitted sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.model.naming import fresh_name, tensor_names
from ucpe_onnx.passes.infra import PassResult
from ucpe_onnx.passes.insertion import insert_before
from ucpe_onnx.passes.views import Views


@dataclass(frozen=True)
class AdaptNodes:
    """Run the rewrites that operator rules have registered, on nodes that touch a changed axis."""

    name: ClassVar[str] = "adapt-nodes"

    views: Views

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Edit the nodes in place; new shape constants become initializers."""
        emission = self.views.emission
        graph = emission.trace.graph
        changed = {tensor for tensor, _ in emission.layouts if isinstance(tensor, str)}
        taken = tensor_names(draft.graph)
        before: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        changed_nodes = []
        for index, rewrite in emission.trace.rewrites.items():
            node = graph.nodes[index]
            if index in self.views.running and changed.intersection((*node.inputs, *node.outputs, *rewrite.sources)):
                rewrite.adapt(DraftEdit(emission.layout, draft, draft.graph.node[index], taken, before[node.name]))
                changed_nodes.append(node.name)
        insert_before(draft, before)
        return PassResult(tuple(changed_nodes))


@dataclass(frozen=True)
class DraftEdit:
    """A :class:`ucpe_onnx.analysis.tracer.NodeEdit` on a draft.

    Attributes:
        layout: the emitted layout of an axis.
        draft: the model, which gets new constants.
        node: the node that is edited.
        taken: all names of tensors.
        before: gets the nodes that go in front of it.
    """

    layout: Callable[[AxisKey], IntArray]
    draft: onnx.ModelProto
    node: onnx.NodeProto
    taken: set[str]
    before: list[onnx.NodeProto]

    def size(self, axis: AxisKey) -> int:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        return int(self.layout(axis).size)

    def kept(self, axis: AxisKey) -> IntArray:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        return self.layout(axis)

    def set_input(self, index: int, value: npt.NDArray[np.generic]) -> None:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        while len(self.node.input) <= index:
            self.node.input.append("")
        self.node.input[index] = self._constant(str(index), value)

    def leave_out_input(self, index: int) -> None:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        self.node.input[index] = ""
        while self.node.input and not self.node.input[-1]:
            self.node.input.pop()

    def patch_input(self, index: int, values: Sequence[int | None]) -> None:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        given = self._constant(f"{index}_given", np.array([value is not None for value in values]))
        sizes = self._constant(f"{index}_values", np.array([value or 0 for value in values], dtype=np.int64))
        name = fresh_name(f"{self.node.output[0]}_{self.node.op_type.lower()}_{index}", self.taken)
        patch = onnx.helper.make_node("Where", [given, sizes, self.node.input[index]], [name], name=name)
        self.before.append(patch)
        self.node.input[index] = name

    def _constant(self, suffix: str, value: npt.NDArray[np.generic]) -> str:
        name = fresh_name(f"{self.node.output[0]}_{self.node.op_type.lower()}_{suffix}", self.taken)
        self.draft.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def become(self, op_type: str, inputs: Sequence[str | IntArray], attributes: Mapping[str, Any]) -> None:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        names = [value if isinstance(value, str) else self._constant("indices", value) for value in inputs]
        self.node.op_type = op_type
        del self.node.input[:], self.node.attribute[:]
        self.node.input.extend(names)
        self.node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())

    def set_attribute(self, name: str, value: int | Sequence[int] | None) -> None:
        """See :class:`~ucpe_onnx.analysis.tracer.NodeEdit`."""
        kept = [a for a in self.node.attribute if a.name != name]
        del self.node.attribute[:]
        self.node.attribute.extend(kept if value is None else [*kept, onnx.helper.make_attribute(name, value)])
