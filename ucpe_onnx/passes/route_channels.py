"""Give every consumer the channels that it reads: parts of tensors, selections, and sums over parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.passes.infra import PassResult
from ucpe_onnx.passes.parts import NodeMaker, Term
from ucpe_onnx.passes.views import Part, View, Views


@dataclass(frozen=True)
class RouteChannels:
    """Make the views of tensors that consumers need, and rewire the consumers.

    Nodes in front of a part are repeated for it, with their weights cut to it. What stands for the whole of a tensor
    keeps its name, so that whatever is not part of this goes on as before.
    """

    name: ClassVar[str] = "route-channels"

    views: Views
    replaced: frozenset[str] = frozenset()

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Insert nodes, rewire the consumers' data inputs, and drop the nodes whose work parts do."""
        return PassResult(tuple(_Routing(self.views, NodeMaker(self.views, draft, self.replaced), draft).run()))


@dataclass
class _Routing:
    """One run of the pass.

    Attributes:
        views: what has to be made.
        maker: makes the nodes.
        draft: the model.
        names: the tensor that holds a part of an original one.
        joined: tensors that hold several parts one after the other, for those who read the same.
        nodes: the nodes of the new graph.
    """

    views: Views
    maker: NodeMaker
    draft: onnx.ModelProto
    names: dict[tuple[str, Part], str] = field(default_factory=dict)
    joined: dict[tuple[str, tuple[Part, ...]], str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def run(self) -> list[str]:
        """Rewrite the draft; the names of the nodes that were added or dropped."""
        graph = self.views.emission.trace.graph
        drafted = {node.name: node for node in self.draft.graph.node}
        known = {node.name for node in graph.nodes}
        inserted: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        waiting: list[onnx.NodeProto] = []
        for node in self.draft.graph.node:
            if node.name in known:
                inserted[node.name], waiting = waiting, []
            else:
                waiting.append(node)  # an earlier pass has put it in front of the next one
        for tensor in graph.inputs:
            self._select(tensor)
        changed = [node.name for node in self.nodes]
        for node in graph.nodes:
            if node.index in self.views.running:
                self._reroute(node, drafted[node.name])
                self.nodes += [*inserted[node.name], drafted[node.name]]
            else:
                changed.append(node.name)
            before = len(self.nodes)
            self._make_parts(node)
            changed += [made.name for made in self.nodes[before:]]
        if changed:
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
            del self.draft.graph.node[:]
            self.draft.graph.node.extend(copies)
        return changed

    def _name(self, tensor: str, part: Part) -> str:
        return self.names.get((tensor, part), tensor) if part is None else self.names[tensor, part]

    def _reroute(self, node: Node, drafted: onnx.NodeProto) -> None:
        """Let a node that stays read the part that it wants."""
        consumed = self.views.restrictions.consumed_input(node)
        if consumed is not None:
            drafted.input[consumed] = self._read(node, consumed)[0]
        for index, name in enumerate(node.inputs):
            if index != consumed and (name, None) in self.names:
                drafted.input[index] = self.names[name, None]
        for index, name in enumerate(node.outputs):
            if name in self.views.split:
                drafted.output[index] = self.maker.fresh(f"{name}_unused")

    def _read(self, node: Node, consumed: int) -> list[str]:
        """The tensors that a consumer reads: one, or the terms of a sum."""
        reads, tensor = self.views.reads(node), node.inputs[consumed]
        if not reads.joined or len(reads.parts) == 1:
            return [self._name(tensor, part) for part in reads.parts]
        key = (tensor, reads.parts)
        if key not in self.joined:
            names = [self._name(tensor, part) for part in reads.parts]
            self.joined[key] = self.maker.fresh(f"{tensor}_for_{node.name}")
            self._join(tensor, self.views.emission.trace.consumers[node.name].segment, names, self.joined[key])
        return [self.joined[key]]

    def _join(self, tensor: str, segment: int, names: Sequence[str], out: str) -> None:
        axis = self.views.restrictions.channel_axis(tensor, segment)
        assert axis is not None, "only tensors with channels have parts"
        self.nodes.append(self.maker.node("Concat", names, out, axis=axis[1]))

    def _make_parts(self, node: Node) -> None:
        """Everything that comes out of a node besides what it makes by itself."""
        if node.index in self.views.summed:
            self._repeat(node, node.outputs[0], None)
        for tensor in (name for name in node.outputs if name in self.views.parts):
            for view in self.views.made(tensor):
                self._make(node, tensor, view)
            if tensor in self.views.split and None in self.views.parts[tensor]:
                segment = self.views.split[tensor]
                names = [self.names[tensor, block] for block in self.views.blocks_of(tensor, segment)]
                if len(names) == 1:
                    self.names[tensor, None] = names[0]
                else:
                    self._join(tensor, segment, names, tensor)
            self._select(tensor)

    def _select(self, tensor: str) -> None:
        for view in self.views.selected.get(tensor, ()):
            self.names[tensor, view] = self.maker.fresh(f"{tensor}_{view.label}")
            self.nodes.append(self.maker.selection(tensor, self._name(tensor, None), view, self.names[tensor, view]))

    def _make(self, node: Node, tensor: str, view: View) -> None:
        """Make a part of a node's output."""
        if self.views.restrictions.joins(node, view.segment):
            names = [self._name(*operand) for operand in self.views.operands(node, view)]
            if len(names) == 1:
                self.names[tensor, view] = names[0]
            else:
                self.names[tensor, view] = self.maker.fresh(f"{tensor}_{view.label}")
                self._join(tensor, view.segment, names, self.names[tensor, view])
        elif self.views.restrictions.cuts(node, tensor, view.segment):
            part = self.views.canonical(node.inputs[0], self.views.narrowed(view, tensor))
            self.names[tensor, view] = self._name(node.inputs[0], part)
        elif node.index in self.views.taken_in:
            self.names[tensor, view] = self.names[node.inputs[0], self.views.canonical(node.inputs[0], view)]
        else:
            self._repeat(node, tensor, view)

    def _repeat(self, node: Node, tensor: str, view: Part) -> None:
        """Run a node for a part of its output, as a sum if it reads several parts."""
        inputs = {i: self._name(node.inputs[i], part) for i, part in self.views.sources(node, view)}
        norm = self.views.folded.get(node.index)
        whole = tensor if norm is None else norm.outputs[0]
        out = whole if view is None else self.maker.fresh(f"{tensor}_{view.label}")
        self.names[tensor, view] = out
        consumed = self.views.restrictions.consumed_input(node)
        if consumed is None:
            self.nodes += self.maker.restricted(node, view, inputs, out)
            return
        terms = self._read(node, consumed)
        made = [self.maker.fresh(f"{out}_term{i}") for i in range(len(terms))] if len(terms) > 1 else [out]
        for number, (term, name) in enumerate(zip(terms, made, strict=True)):
            channels = self.views.read_channels(node, number if len(terms) > 1 else None)
            self.nodes += self.maker.restricted(
                node, view, {**inputs, consumed: term}, name, Term(channels, first=number == 0, norm=norm)
            )
        total = made[0]
        for name in made[1:]:
            total_of_both = out if name == made[-1] else self.maker.fresh(f"{out}_sum")
            self.nodes.append(self.maker.node("Add", [total, name], total_of_both))
            total = total_of_both
