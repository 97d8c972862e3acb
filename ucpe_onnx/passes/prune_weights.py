"""Take the emitted channels out of every weight and parameter, in emitted order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.quantized import zero_value
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.naming import fresh_name, tensor_names
from ucpe_onnx.passes.infra import Emission, PassResult

Use = tuple[int, int]
"""One use of a constant: (node index, input index)."""


@dataclass(frozen=True)
class _Edit:
    """What one use of a constant needs.

    Attributes:
        zeros: (axis, input channels, groups) to set to zero first, by their original places.
        takes: the positions to take along an axis, in emitted order.
        columns: for a grouped convolution the positions to take along axis 1, for each group.
    """

    zeros: tuple[int, tuple[int, ...], int] | None = None
    takes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    columns: tuple[tuple[int, ...], ...] = ()


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
        stored = {tensor.name: tensor for tensor in draft.graph.initializer}
        declarations: dict[str, list[onnx.ValueInfoProto]] = defaultdict(list)
        for value_info in (*draft.graph.input, *draft.graph.value_info):
            declarations[value_info.name].append(value_info)
        taken = tensor_names(draft.graph)
        for name, variants in self._by_tensor.items():
            for edit, group in variants.items():
                original = np.asarray(graph.value(name))
                value = _edited(original, edit, zero_value(graph, group[0], original.ndim))
                if name in self.replaced:
                    _replace(stored[name], value)
                    for declared in declarations[name]:
                        _declare(declared, value.shape)
                    continue
                copy = fresh_name(f"{name}_pruned", taken)
                draft.graph.initializer.append(numpy_helper.from_array(value, copy))
                for node, position in group:
                    draft.graph.node[node].input[position] = copy
        return PassResult(sum(len(group) for variants in self._by_tensor.values() for group in variants.values()))

    @cached_property
    def replaced(self) -> frozenset[str]:
        """The initializers that get another value in their place: all of their uses need the same."""
        graph = self.emission.trace.graph
        stored = {tensor.name for tensor in graph.model.graph.initializer} - graph.captured - set(graph.outputs)
        return frozenset(
            name
            for name, variants in self._by_tensor.items()
            if name in stored and [len(group) for group in variants.values()] == [len(graph.readers[name])]
        )

    @cached_property
    def _by_tensor(self) -> Mapping[str, Mapping[_Edit, list[Use]]]:
        """What each constant's uses need."""
        nodes = self.emission.trace.graph.nodes
        by_tensor: dict[str, dict[_Edit, list[Use]]] = defaultdict(lambda: defaultdict(list))
        for (node, position), edit in self._edits().items():
            by_tensor[nodes[node].inputs[position]][edit].append((node, position))
        return by_tensor

    def _edits(self) -> dict[Use, _Edit]:
        trace = self.emission.trace
        takes: dict[Use, dict[int, IntArray]] = defaultdict(dict)
        for (tensor, axis), layout in self.emission.layouts.items():
            if isinstance(tensor, tuple):
                takes[tensor][axis] = layout
        zeros: dict[Use, tuple[int, tuple[int, ...], int]] = {}
        columns: dict[Use, tuple[tuple[int, ...], ...]] = {}
        for name, consumer in trace.consumers.items():
            use, plan = consumer.use, self.emission.plan.consumers[name]
            read = np.asarray(plan.read, dtype=np.int64)
            if not np.array_equal(read, np.arange(consumer.channels)):
                if use.groups > 1 and use.weight_axis == 1:
                    columns[use.constant] = _by_group(read, consumer.channels, use.groups)
                else:
                    takes[use.constant][use.weight_axis] = read
            dropped = read[~plan.mask()[read]]
            if dropped.size:
                zeros[use.constant] = (use.weight_axis, tuple(dropped.tolist()), use.groups)
        for made in (made for made in trace.producers if made.groups > 1 and made.weight_axis == 1):
            if made.tensor_axis in self.emission.layouts:
                size = trace.slots.axes[made.tensor_axis].size
                columns[made.constant] = _by_group(self.emission.layout(made.tensor_axis), size, made.groups)
        return {
            use: _Edit(
                zeros.get(use),
                tuple((axis, tuple(at.tolist())) for axis, at in sorted(takes[use].items())),
                columns.get(use, ()),
            )
            for use in dict.fromkeys((*takes, *zeros, *columns))
        }


def _by_group(layout: IntArray, channels: int, groups: int) -> tuple[tuple[int, ...], ...]:
    """The emitted positions of each group, counted from the group's first; all groups keep equally many."""
    return tuple(tuple(part.tolist()) for part in (layout % (channels // groups)).reshape(groups, -1))


def _edited(value: npt.NDArray[np.generic], edit: _Edit, zero: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if edit.zeros is not None:
        value = _zeroed(value, zero, *edit.zeros)
    for axis, positions in edit.takes:
        value = np.take(value, np.asarray(positions, dtype=np.int64), axis=axis)
    if edit.columns:
        by_group = value.reshape(len(edit.columns), -1, *value.shape[1:])
        parts = [np.take(part, at, axis=1) for part, at in zip(by_group, edit.columns, strict=True)]
        value = np.concatenate(parts)
    return np.ascontiguousarray(value)


def _zeroed(
    value: npt.NDArray[np.generic], zero: npt.NDArray[np.generic], axis: int, channels: tuple[int, ...], groups: int
) -> npt.NDArray[np.generic]:
    """A copy in which what reads the given channels stands for zero."""
    copy = np.array(value)
    zeros = np.broadcast_to(zero, value.shape)
    if groups == 1 or axis == 0:
        np.moveaxis(copy, axis, 0)[list(channels)] = np.moveaxis(zeros, axis, 0)[list(channels)]
        return copy
    columns = value.shape[1]
    rows = copy.reshape(groups, -1, *value.shape[1:])  # (groups, C_out/groups, C_in/groups, k...), a view
    fill = zeros.reshape(rows.shape)
    for channel in channels:
        rows[channel // columns, :, channel % columns] = fill[channel // columns, :, channel % columns]
    return copy


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
