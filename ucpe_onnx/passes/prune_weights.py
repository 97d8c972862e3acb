"""Take the emitted channels out of every weight and parameter, in emitted order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.quantised import codec_parameters, zero_value
from ucpe_onnx.analysis.shared_weights import origin
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.passes.copies import Copies
from ucpe_onnx.passes.infra import PassResult
from ucpe_onnx.passes.origins import Origins, Use
from ucpe_onnx.passes.views import Views
from ucpe_onnx.passes.weights import Edit, by_group


@dataclass(frozen=True)
class PruneWeights:
    """Cut initializers to what their nodes need in the emitted graph.

    A constant whose uses all need the same keeps its name and place; one whose uses differ, or that something else
    reads too, stays for those and gets edited copies for the others.
    """

    name: ClassVar[str] = "prune-weights"

    views: Views

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Edit initializers and the node inputs that refer to copies."""
        graph = self.views.emission.trace.graph
        stored = {tensor.name: tensor for tensor in draft.graph.initializer}
        declarations: dict[str, list[onnx.ValueInfoProto]] = defaultdict(list)
        for value_info in (*draft.graph.input, *draft.graph.value_info):
            declarations[value_info.name].append(value_info)
        copies = Copies(graph, draft)
        changed = list(self._at_origin)
        for name, edit in self._at_origin.items():
            value = edit.apply(np.asarray(graph.value(name)), np.zeros((), dtype=np.int8))
            _replace(stored[name], value)
            for tensor in self._origins.carried(name):
                for declared in declarations[tensor]:
                    _declare(declared, tuple(value.shape[axis] for axis in origin(graph, tensor).axes))
        for name, variants in self._by_tensor.items():
            for edit, group in variants.items() if origin(graph, name).name not in self._at_origin else ():
                original = np.asarray(graph.value(name))
                value = edit.apply(original, zero_value(graph, group[0], original.ndim))
                if name in self.replaced:
                    changed.append(name)
                    _replace(stored[name], value)
                    for declared in declarations[name]:
                        _declare(declared, value.shape)
                    continue
                copy = copies.copy(name, f"{name}_pruned", value)
                changed.append(copy)
                for node, position in group:
                    draft.graph.node[node].input[position] = copy
        copied = (name for name in self._by_tensor if name in stored and name not in self.replaced)
        return PassResult(tuple(dict.fromkeys(changed)), {name: self._why_copied(name) for name in copied})

    @cached_property
    def replaced(self) -> frozenset[str]:
        """The initializers that get another value in their place, and what is made of them: all uses need the same."""
        stored = {tensor.name for tensor in self.views.emission.trace.graph.model.graph.initializer}
        alone = (name for name in self._by_tensor if name in stored and not self._why_copied(name))
        carried = (tensor for name in self._at_origin for tensor in self._origins.carried(name))
        return frozenset((*alone, *carried))

    @cached_property
    def _origins(self) -> Origins:
        return Origins(self.views.emission.trace.graph, self._by_tensor)

    @cached_property
    def _at_origin(self) -> Mapping[str, Edit]:
        """What becomes of initializers that are edited in their place and read through other nodes."""
        return self._origins.edits()

    def _why_copied(self, name: str) -> str:
        """Why a constant stays as it is while its readers get copies; empty if it needn't."""
        graph, variants = self.views.emission.trace.graph, self._by_tensor[name]
        if name in graph.captured:
            return "a subgraph reads it too"
        if name in graph.outputs:
            return "it is an output of the graph too"
        if len(variants) > 1:
            return "its readers need different parts of it"
        uses = sum(len(group) for group in variants.values())
        return "" if uses == len(graph.readers[name]) else "something else reads it whole"

    @cached_property
    def _by_tensor(self) -> Mapping[str, Mapping[Edit, list[Use]]]:
        """What each constant's uses need."""
        nodes = self.views.emission.trace.graph.nodes
        by_tensor: dict[str, dict[Edit, list[Use]]] = defaultdict(lambda: defaultdict(list))
        for (node, position), edit in self._edits().items():
            by_tensor[nodes[node].inputs[position]][edit].append((node, position))
        return by_tensor

    def _edits(self) -> dict[Use, Edit]:
        trace = self.views.emission.trace
        takes: dict[Use, dict[int, IntArray]] = defaultdict(dict)
        for (tensor, axis), layout in self.views.emission.layouts.items():
            if isinstance(tensor, tuple):
                takes[tensor][axis] = layout
        zeros: dict[Use, tuple[int, tuple[int, ...], int]] = {}
        columns: dict[Use, tuple[tuple[int, ...], ...]] = {}
        for name, consumer in trace.consumers.items():
            use, plan = consumer.use, self.views.emission.plan.consumers[name]
            read = np.asarray(plan.read, dtype=np.int64)
            if not np.array_equal(read, np.arange(consumer.channels)):
                if use.groups > 1 and use.weight_axis == 1:
                    columns[use.constant] = by_group(read, consumer.channels, use.groups)
                else:
                    takes[use.constant][use.weight_axis] = read
                    for parameter in codec_parameters(trace.graph, use.constant, use.weight_axis):
                        takes[parameter][0] = read
            dropped = read[~plan.mask()[read]]
            if dropped.size:
                zeros[use.constant] = (use.weight_axis, tuple(dropped.tolist()), use.groups)
        for made in (made for made in trace.producers if made.groups > 1 and made.weight_axis == 1):
            if made.tensor_axis in self.views.emission.layouts:
                size = trace.slots.axes[made.tensor_axis].size
                columns[made.constant] = by_group(self.views.emission.layout(made.tensor_axis), size, made.groups)
        return {
            use: Edit(
                zeros.get(use),
                tuple((axis, tuple(at.tolist())) for axis, at in sorted(takes[use].items())),
                columns.get(use, ()),
            )
            for use in dict.fromkeys((*takes, *zeros, *columns))
            if use[0] in self.views.running
        }


def _replace(tensor: onnx.TensorProto, value: npt.NDArray[np.generic]) -> None:
    """Change a tensor's value; what the model says about it (doc string, metadata) stays."""
    changed = numpy_helper.from_array(value, tensor.name)
    if tensor.HasField("doc_string"):
        changed.doc_string = tensor.doc_string
    if hasattr(tensor, "metadata_props"):  # onnx >= 1.18
        changed.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(changed)


def _declare(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    """Correct the declared shape of an initializer, which models of IR version 3 and some exporters write down."""
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
        dim.dim_value = size
