"""Make the nodes that work on parts of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import LAYER_OPS
from ucpe_onnx.analysis.quantised import zero_value
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.model.naming import fresh_name
from ucpe_onnx.passes.adapt_nodes import DraftEdit
from ucpe_onnx.passes.copies import Copies
from ucpe_onnx.passes.views import SELECTED_BY, Part, View, Views
from ucpe_onnx.passes.weights import Edit

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """What a consumer reads, or one of the nodes that it becomes.

    Attributes:
        channels: the input channels, in emitted order.
        first: whether it adds what the sum needs once.
        norm: the BatchNormalization that it takes in.
    """

    channels: IntArray
    first: bool = True
    norm: Node | None = None


@dataclass
class NodeMaker:
    """Copies nodes of the input model, with inputs and constants of their own.

    Attributes:
        views: what is made.
        draft: the model; gets new initializers.
        replaced: initializers that hold something else than in the input model by now.
        node_names: names of nodes.
        copies: constants that were made already.
    """

    views: Views
    draft: onnx.ModelProto
    replaced: frozenset[str]
    node_names: set[str] = field(default_factory=set)
    copies: dict[tuple[str, Edit, int | None], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.written = Copies(self.views.emission.trace.graph, self.draft)
        self.node_names = {node.name for node in self.draft.graph.node}

    def fresh(self, stem: str) -> str:
        """A new name for a tensor."""
        return self.written.fresh(stem)

    def node(self, op_type: str, inputs: Sequence[str], out: str, **attributes: Any) -> onnx.NodeProto:
        """A new node, named after what it makes."""
        name = fresh_name(f"{out}_{op_type.lower()}", self.node_names)
        return onnx.helper.make_node(op_type, inputs, [out], name=name, **attributes)

    def selection(self, tensor: str, source: str, view: View, out: str) -> onnx.NodeProto:
        """A Slice of the whole tensor where the view's channels are contiguous, else a Gather."""
        made = self._selection(tensor, source, view, out)
        made.name = fresh_name(f"{view.label.removeprefix(SELECTED_BY)}_select", self.node_names)
        return made

    def _selection(self, tensor: str, source: str, view: View, out: str) -> onnx.NodeProto:
        axis = self.views.axis(tensor, view)
        assert axis is not None, "only tensors with channels have views"
        graph = self.views.emission.trace.graph
        whole = self.views.positions(None, axis)
        place = np.full(int(whole.max(initial=0)) + 1, -1, dtype=np.int64)
        place[whole] = np.arange(whole.size)
        places = place[self.views.positions(view, axis)]
        length = (graph.shape(tensor) or ())[axis[1]]
        contiguous = bool((np.diff(places) == 1).all())
        if not contiguous or (graph.opset == 10 and not isinstance(length, int)):
            # onnx's inference for Slice of opset 10 keeps a symbolic length, which onnxruntime then trusts
            return self.node("Gather", [source, self.written.add(f"{out}_indices", places)], out, axis=axis[1])
        start, end = int(places[0]), int(places[-1]) + 1
        if graph.opset < 10:
            return self.node("Slice", [source], out, starts=[start], ends=[end], axes=[axis[1]])
        bounds = (("starts", start), ("ends", end), ("axes", axis[1]))
        inputs = [self.written.add(f"{out}_{name}", np.array([value])) for name, value in bounds]
        return self.node("Slice", [source, *inputs], out)

    def restricted(
        self, node: Node, view: Part, inputs: Mapping[int, str], out: str, term: Term | None = None
    ) -> list[onnx.NodeProto]:
        """A node that makes a part of what another makes.

        Args:
            node: the node of the input model.
            view: the part of its output.
            inputs: the names of its data inputs.
            out: name of what it makes.
            term: for a consumer, what it reads.

        Returns:
            The node, behind those that adapt its inputs.
        """
        copy = onnx.NodeProto()
        copy.CopyFrom(node.proto)
        copy.name = fresh_name(self._stem(node, view, term), self.node_names)
        copy.output[next(i for i, name in enumerate(node.outputs) if name)] = out
        for index, name in enumerate(node.inputs):
            if name in self.views.emission.trace.graph.constants:
                copy.input[index] = self._constant(node, index, view, term)
            elif index in inputs:
                copy.input[index] = inputs[index]
        if term is not None:
            self._set_bias(node, copy, view, term)
        before: list[onnx.NodeProto] = []
        rewrite = self.views.emission.trace.rewrites.get(node.index)
        if rewrite is not None:
            rewrite.adapt(
                DraftEdit(lambda axis: self._layout(axis, view), self.draft, copy, self.written.taken, before)
            )
        return [*before, copy]

    def _stem(self, node: Node, view: Part, term: Term | None) -> str:
        """The first term for the whole output keeps the name that the consumer is known by."""
        if view is not None:
            return f"{node.name}_{view.label}"
        if term is not None and term.first:
            self.node_names.discard(node.name)  # the node itself has gone
        return node.name

    def _layout(self, axis: AxisKey, view: Part) -> IntArray:
        """What an axis holds where a node makes a part of its output."""
        if view is None or self.views.restrictions.segment_of.get(axis) != view.segment:
            return self.views.emission.layout(axis)
        return self.views.positions(view, axis)

    def _constant(self, node: Node, index: int, view: Part, term: Term | None) -> str:
        """The name of a constant that holds what a part needs of a node's input."""
        emission, name = self.views.emission, node.inputs[index]
        value = np.asarray(emission.trace.graph.value(name))
        edit = self._edit(node, index, view, term, value.ndim)
        norm = None if term is None else term.norm
        scaled = norm is not None and index == emission.trace.consumers[node.name].use.weight_input
        if edit == Edit() and not scaled and name not in self.replaced:
            return name
        key = (name, edit, norm.index if norm is not None and scaled else None)
        if key not in self.copies:
            if norm is not None and scaled:
                scale = folded_scale(self.views, norm)
                value = (value * scale.reshape(-1, *[1] * (value.ndim - 1))).astype(value.dtype)
            edited = edit.apply(value, zero_value(emission.trace.graph, (node.index, index), value.ndim))
            stem = f"{name}_{view.label}" if view is not None else f"{name}_part"
            self.copies[key] = self.written.copy(name, stem, edited)
        return self.copies[key]

    def _edit(self, node: Node, index: int, view: Part, term: Term | None, rank: int) -> Edit:
        trace, key = self.views.emission.trace, (node.index, index)
        takes: dict[int, IntArray] = {}
        for axis in range(rank):
            if (key, axis) in self.views.restrictions.segment_of:
                takes[axis] = self._layout((key, axis), view)
        zeros = None
        consumer = trace.consumers.get(node.name)
        if term is not None and consumer is not None and consumer.use.constant == key:
            takes[consumer.use.weight_axis] = term.channels
            mask = self.views.emission.plan.consumers[node.name].mask()
            dropped = term.channels[~mask[term.channels]]
            if dropped.size:
                zeros = (consumer.use.weight_axis, tuple(dropped.tolist()), 1)
        shape = trace.graph.constants.shape(node.inputs[index]) or ()
        changed = {a: at for a, at in takes.items() if not np.array_equal(at, np.arange(int(shape[a] or 0)))}
        return Edit(zeros, tuple((axis, tuple(at.tolist())) for axis, at in sorted(changed.items())))

    def _set_bias(self, node: Node, copy: onnx.NodeProto, view: Part, term: Term) -> None:
        """One term of a sum adds the bias, with that of a folded normalisation; the others have none."""
        op = LAYER_OPS.get(node.op_type)
        if op is None or op.bias is None:
            return
        place = op.bias
        if not term.first:
            if len(copy.input) > place:
                del copy.input[place:]
        elif term.norm is not None:
            graph = self.views.emission.trace.graph
            given = np.asarray(graph.value(node.inputs[place]) if len(node.inputs) > place else 0.0, dtype=np.float64)
            _, shift, mean, _ = (np.asarray(graph.value(name), dtype=np.float64) for name in term.norm.inputs[1:5])
            bias = (given - mean) * folded_scale(self.views, term.norm) + shift
            kind = np.asarray(graph.value(node.inputs[op.weight])).dtype
            value = bias[self._layout((node.outputs[0], 1), view)].astype(kind)
            del copy.input[place:]
            copy.input.append(self.written.add(f"{copy.output[0]}_bias", value))


def folded_scale(views: Views, norm: Node) -> FloatArray:
    """What a BatchNormalization multiplies each channel by, shape (channels,)."""
    graph = views.emission.trace.graph
    scale, variance = (np.asarray(graph.value(norm.inputs[i]), dtype=np.float64) for i in (1, 4))
    return scale / np.sqrt(variance + float(norm.attributes.get("epsilon", 1e-5)))
