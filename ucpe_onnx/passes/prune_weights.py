"""Take the emitted channels out of every weight and parameter, in emitted order."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.trace import Consumer
from ucpe_onnx.naming import fresh_name, tensor_names
from ucpe_onnx.passes.infra import Emission, PassResult

Use = tuple[int, int]
"""One use of a constant: (node index, input index)."""


@dataclass(frozen=True)
class _Edit:
    """What one use of a constant needs: positions to take per axis, and input channels to set to zero."""

    takes: tuple[tuple[int, tuple[int, ...]], ...]
    zeros: tuple[int, tuple[int, ...], int] | None = None


@dataclass(frozen=True)
class PruneWeights:
    """Cut initializers to what their nodes need in the emitted graph.

    A constant whose uses all need the same keeps its name and place; one whose uses differ, or that something else
    reads too, stays for those and gets edited copies for the others.
    """

    emission: Emission
    name: str = "prune-weights"

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Edit initializers and the node inputs that refer to copies."""
        graph = self.emission.trace.graph
        edits = self._edits()
        by_tensor: dict[str, dict[_Edit, list[Use]]] = defaultdict(lambda: defaultdict(list))
        for use, edit in edits.items():
            by_tensor[graph.nodes[use[0]].inputs[use[1]]][edit].append(use)
        stored = {tensor.name: tensor for tensor in draft.graph.initializer}
        declarations: dict[str, list[onnx.ValueInfoProto]] = defaultdict(list)
        for value_info in (*draft.graph.input, *draft.graph.value_info):
            declarations[value_info.name].append(value_info)
        taken = tensor_names(draft.graph)
        for name, variants in by_tensor.items():
            uses = sum(len(group) for group in variants.values())
            whole = len(variants) == 1 and name in stored and uses == len(graph.readers[name])
            in_place = whole and name not in graph.captured and name not in graph.outputs
            for edit, group in variants.items():
                value = _edited(np.asarray(graph.value(name)), edit)
                if in_place:
                    _replace(stored[name], value)
                    for declared in declarations[name]:
                        _declare(declared, value.shape)
                    continue
                copy = fresh_name(f"{name}_pruned", taken)
                draft.graph.initializer.append(numpy_helper.from_array(value, copy))
                for node, position in group:
                    draft.graph.node[node].input[position] = copy
        return PassResult(len(edits))

    def _edits(self) -> dict[Use, _Edit]:
        takes: dict[Use, dict[int, IntArray]] = defaultdict(dict)
        for (tensor, axis), layout in self.emission.layouts.items():
            if isinstance(tensor, tuple):
                takes[tensor][axis] = layout
        zeros: dict[Use, tuple[int, tuple[int, ...], int]] = {}
        for name, consumer in self.emission.trace.consumers.items():
            self._consumer_edit(name, consumer, takes, zeros)
        return {
            use: _Edit(tuple((a, tuple(p.tolist())) for a, p in sorted(takes[use].items())), zeros.get(use))
            for use in (*takes, *(u for u in zeros if u not in takes))
        }

    def _consumer_edit(
        self,
        name: str,
        consumer: Consumer,
        takes: dict[Use, dict[int, IntArray]],
        zeros: dict[Use, tuple[int, tuple[int, ...], int]],
    ) -> None:
        plan = self.emission.plan.consumers[name]
        use: Use = (consumer.use.node.index, consumer.use.weight_input)
        read = np.asarray(plan.read, dtype=np.int64)
        if consumer.use.groups == 1 and not np.array_equal(read, np.arange(consumer.channels)):
            takes[use][consumer.use.weight_axis] = read
        dropped = np.flatnonzero(~plan.mask()[read])
        if dropped.size:
            zeros[use] = (consumer.use.weight_axis, tuple(dropped.tolist()), consumer.use.groups)


def _edited(value: npt.NDArray[np.generic], edit: _Edit) -> npt.NDArray[np.generic]:
    for axis, positions in edit.takes:
        value = np.take(value, np.asarray(positions, dtype=np.int64), axis=axis)
    if edit.zeros is None:
        return np.ascontiguousarray(value)
    axis, channels, groups = edit.zeros
    value = np.array(value)
    if groups == 1 or axis == 0:
        np.moveaxis(value, axis, 0)[list(channels)] = 0
        return value
    by_group = value.reshape(groups, -1, *value.shape[1:])  # (groups, C_out/groups, C_in/groups, k...), a view
    for channel in channels:
        by_group[channel // value.shape[1], :, channel % value.shape[1]] = 0
    return value


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
