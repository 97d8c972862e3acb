"""Fold bodies back: every node and constant returns to the graph that it came from, new ones go where they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import onnx

from ucpe_onnx.model.bodies.markers import DOMAIN, bodies_of
from ucpe_onnx.model.bodies.unfold import Body, Unfolding

_Message = TypeVar("_Message", onnx.TensorProto, onnx.ValueInfoProto)
_Initializers = Mapping[str, list[onnx.TensorProto]]
_Values = Mapping[str, list[onnx.ValueInfoProto]]


def fold(draft: onnx.ModelProto, unfolding: Unfolding) -> None:
    """Give a draft of an unfolded model its bodies back, in place.

    What was not changed comes back byte by byte. A node that is new stands in the innermost graph that holds all of its
    readers, since what it reads is known there.

    Args:
        draft: the unfolded model, edited by the passes.
        unfolding: how it was unfolded.
    """
    if not unfolding.bodies:
        return
    graph = draft.graph
    folder = _Folder(unfolding, list(graph.node), {value.name for value in graph.output})
    initializers, values = folder.apart(graph.initializer), folder.apart(graph.value_info)
    nodes = folder.nodes("", initializers, values)
    stored, told = [_copy(tensor) for tensor in initializers[""]], [_copy(value) for value in values[""]]
    for name in ("node", "initializer", "value_info"):
        graph.ClearField(name)
    graph.node.extend(nodes)
    graph.initializer.extend(stored)
    graph.value_info.extend(told)


def folded_nodes(unfolding: Unfolding, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Some nodes of an unfolded model, whole bodies among them, as they stand in the model itself."""
    if not unfolding.bodies:
        return list(nodes)
    folder = _Folder(unfolding, list(nodes), set())
    graph = unfolding.model.graph
    return folder.nodes("", folder.apart(graph.initializer), folder.apart(graph.value_info))


def _copy(message: _Message) -> _Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


class _Folder:
    """Knows the scope of every node and tensor of a draft."""

    def __init__(self, unfolding: Unfolding, nodes: list[onnx.NodeProto], outputs: set[str]) -> None:
        self._unfolding = unfolding
        bodies = unfolding.bodies.values()
        self._names = {flat: own for body in bodies for flat, own in body.tensors.items()}
        self._owner = {flat: body.scope for body in bodies for flat in body.tensors}
        known = {flat: body.scope for body in bodies for flat in body.nodes}
        known |= {f"{name}/enter": known.get(name, "") for name in unfolding.controls}
        scopes_of_readers: dict[str, set[str]] = defaultdict(set)
        for name in outputs:
            scopes_of_readers[name].add("")
        self._by_scope: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        original = {node.name for node in unfolding.model.graph.node}
        for node in reversed(nodes):
            scope = known.get(node.name)
            if scope is None and node.name in original:
                scope = ""
            if scope is None:
                scope = self._innermost(set().union(*(scopes_of_readers[name] for name in node.output if name)))
            self._by_scope[scope].append(node)
            for place, name in enumerate(node.input):
                scopes_of_readers[name].add(self._read_in(node, place, scope))
        self._readers = scopes_of_readers

    def _read_in(self, node: onnx.NodeProto, place: int, scope: str) -> str:
        """The scope that an input of a node is read in: of a marker the body that hands it out."""
        if node.domain != DOMAIN or node.op_type == "Enter":
            return scope
        if node.op_type == "Exit":
            return f"{node.name}/body"
        if place == 0:
            return scope
        attributes = [attribute for attribute, _ in bodies_of(self._unfolding.controls[node.name])]
        return f"{node.name}/{attributes[(place - 1) // max(len(node.output), 1)]}"

    def apart(self, messages: Iterable[_Message]) -> dict[str, list[_Message]]:
        """Initializers, or declared values, by the scope that they belong to."""
        found: dict[str, list[_Message]] = defaultdict(list)
        for message in messages:
            owner = self._owner.get(message.name)
            if owner is None:
                owner = "" if message.name in self._outer else self._innermost(self._readers.get(message.name, set()))
            found[owner].append(message)
        return found

    @cached_property
    def _outer(self) -> set[str]:
        """What the outermost graph of the model itself stores or declares."""
        graph = self._unfolding.model.graph
        names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.value_info}
        return names - self._owner.keys()

    def _innermost(self, scopes: set[str]) -> str:
        """The innermost scope that holds others."""
        chains = [self._chain(scope) for scope in scopes]
        if not chains:
            return ""
        return next(scope for scope in chains[0] if all(scope in chain for chain in chains[1:]))

    def _chain(self, scope: str) -> list[str]:
        """A scope and those around it, outwards."""
        chain = [scope]
        while chain[-1]:
            chain.append(self._unfolding.bodies[chain[-1]].around)
        return chain

    def nodes(self, scope: str, initializers: _Initializers, values: _Values) -> list[onnx.NodeProto]:
        """The nodes of a scope, their bodies folded."""
        entered: dict[str, onnx.NodeProto] = {}
        found = []
        for node in reversed(self._by_scope[scope]):
            if node.domain != DOMAIN:
                found.append(self._restored(node, scope))
            elif node.op_type == "Enter":
                entered[node.name.removesuffix("/enter")] = node
            else:
                found.append(self._control(node, entered.get(node.name), scope, initializers, values))
        return found

    def _restored(self, node: onnx.NodeProto, scope: str) -> onnx.NodeProto:
        """A node with its own names."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._names.get(name, name) for name in node.input]
        copy.output[:] = [self._names.get(name, name) for name in node.output]
        if scope:
            body = self._unfolding.bodies[scope]
            copy.name = body.nodes.get(node.name, node.name.removeprefix(f"{scope}/"))
            if not copy.name and node.name in body.nodes:
                copy.ClearField("name")
        return copy

    def _control(
        self,
        marker: onnx.NodeProto,
        enter: onnx.NodeProto | None,
        scope: str,
        initializers: _Initializers,
        values: _Values,
    ) -> onnx.NodeProto:
        """The If, Loop or Scan that markers stand for."""
        original = self._unfolding.controls[marker.name]
        node = self._restored(marker, scope)
        outer, outputs, name = node.input[:1], list(node.output), node.name
        node.CopyFrom(original)
        node.output[:] = outputs
        node.input[:] = outer if enter is None else [self._names.get(tensor, tensor) for tensor in enter.input]
        if scope == "":
            node.name = name
        handed = list(marker.input[1:] if enter is None else marker.input)
        for attribute, body in bodies_of(node):
            count = len(body.output)
            place = f"{marker.name}/{attribute}"
            self._refill(body, self._unfolding.bodies[place], handed[:count], initializers, values)
            handed = handed[count:]
        return node

    def _refill(
        self,
        graph: onnx.GraphProto,
        body: Body,
        outputs: Sequence[str],
        initializers: _Initializers,
        values: _Values,
    ) -> None:
        """Put what has become of a body in its place."""
        inner = self.nodes(body.scope, initializers, values)
        del graph.node[:]
        graph.node.extend(inner)
        stored = [self._renamed(tensor) for tensor in initializers.get(body.scope, ())]
        del graph.initializer[:]
        graph.initializer.extend(stored)
        told = {value.name: value for value in map(self._renamed, values.get(body.scope, ()))}
        for kept in (*graph.input, *graph.output):
            if kept.name in told:
                kept.CopyFrom(told[kept.name])
        for value, name in zip(graph.output, outputs, strict=True):
            value.name = self._names.get(name, name)
        made = {name for node in graph.node for name in node.output}
        declared = [told[value.name] for value in graph.value_info if value.name in made and value.name in told]
        del graph.value_info[:]
        graph.value_info.extend(declared)

    def _renamed(self, message: _Message) -> _Message:
        copy = _copy(message)
        copy.name = self._names.get(copy.name, copy.name)
        return copy
