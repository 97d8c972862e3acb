"""Fold bodies back: every node and constant returns to the graph that it came from.

A node that is new stands in the innermost graph that holds all of its readers, unless that is the body of a Loop or a
Scan that it does not need to be in: what is the same in every iteration is computed once, in front of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from functools import cached_property
from typing import TypeVar

import onnx

from ucpe_onnx.model.bodies.markers import DOMAIN, bodies_of, control_of
from ucpe_onnx.model.bodies.unfold import Body, Unfolding

_Message = TypeVar("_Message", onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto)
_Initializers = Mapping[str, list[onnx.TensorProto]]
_Values = Mapping[str, list[onnx.ValueInfoProto]]


def fold(draft: onnx.ModelProto, unfolding: Unfolding) -> None:
    """Give a draft of an unfolded model its bodies back, in place.

    What was not changed comes back byte by byte.

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
    _refilled(graph.node, nodes)
    _refilled(graph.initializer, initializers[""])
    _refilled(graph.value_info, values[""])


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


def _refilled(field: MutableSequence[_Message], messages: Iterable[_Message]) -> None:
    """Set a repeated field to messages that may come from that very field."""
    copies = [_copy(message) for message in messages]
    del field[:]
    field.extend(copies)


class _Folder:
    """Knows the scope of every node and tensor of a draft."""

    def __init__(self, unfolding: Unfolding, nodes: list[onnx.NodeProto], outputs: set[str]) -> None:
        self._unfolding = unfolding
        bodies = unfolding.bodies.values()
        self._names = {flat: own for body in bodies for flat, own in body.tensors.items()}
        self._owner = {flat: body.scope for body in bodies for flat in body.tensors}
        self._known, self._made_in = self._scopes(), self._makers_scopes()
        self._by_scope: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._readers: dict[str, set[str]] = defaultdict(set)
        for name in outputs:
            self._readers[name].add("")
        for node, scope in zip(nodes, self._outwards(nodes, self._by_readers(nodes)), strict=True):
            self._by_scope[scope].append(node)
            for place, name in enumerate(node.input):
                self._readers[name].add(self._read_in(node, place, scope))

    def _scopes(self) -> dict[str, str]:
        """The scope of every node of the unfolded model."""
        nodes = self._unfolding.model.graph.node
        known = {node.name: self._unfolding.scopes.get(node.name, "") for node in nodes}
        return known | {node.name: known[control_of(node)] for node in nodes if node.domain == DOMAIN}

    def _makers_scopes(self) -> dict[str, str]:
        """The scope of the maker of every tensor of the unfolded model."""
        made = (name for node in self._unfolding.model.graph.node for name in node.output if name)
        return {name: self._owner.get(name, "") for name in made}

    def _own_scope(self, node: onnx.NodeProto) -> str | None:
        """The scope of a node that the model has, or that makes what a node of the model made; None for others."""
        scopes = (self._made_in[name] for name in node.output if name in self._made_in)
        return self._known.get(node.name, next(scopes, None))

    def _by_readers(self, nodes: list[onnx.NodeProto]) -> list[str | None]:
        """The scope of each node, of new ones the innermost that holds all readers; None without any."""
        readers = {name: set(scopes) for name, scopes in self._readers.items()}
        found: list[str | None] = []
        for node in reversed(nodes):
            scope = self._own_scope(node)
            if scope is None:
                scopes = set().union(*(readers.get(name, ()) for name in node.output if name))
                scope = self._innermost(scopes) if scopes else None
            found.append(scope)
            for place, name in enumerate(node.input):
                readers.setdefault(name, set()).add(self._read_in(node, place, scope or ""))
        return found[::-1]

    def _outwards(self, nodes: list[onnx.NodeProto], found: list[str | None]) -> list[str]:
        """Take new nodes out of the bodies that run again and again, as far as what they read allows."""
        made_in: dict[str, str] = dict(self._owner)
        scopes = []
        for node, inner in zip(nodes, found, strict=True):
            scope = self._own_scope(node)
            if scope is None:
                sources = (made_in.get(name, "") for name in node.input)
                needed = max(sources, key=lambda source: len(self._chain(source)), default="")
                scope = needed if inner is None else self._lifted(inner, needed)
            for name in node.output:  # also what a node of the model makes under a new name
                made_in.setdefault(name, scope)
            scopes.append(scope)
        return scopes

    def _lifted(self, scope: str, needed: str) -> str:
        """The scope around the outermost Loop or Scan between two scopes; the inner one if there is none."""
        between = self._chain(scope)[: -len(self._chain(needed))]
        repeated = [inner for inner in between if self._unfolding.bodies[inner].attribute == "body"]
        return self._unfolding.bodies[repeated[-1]].around if repeated else scope

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
        for node in self._by_scope[scope]:
            if node.domain != DOMAIN:
                found.append(self._restored(node, scope))
            elif node.op_type == "Enter":
                entered[control_of(node)] = node
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
            original = self._unfolding.bodies[scope].nodes.get(node.name)
            copy.name = node.name.removeprefix(f"{scope}/") if original is None else original.name
            if original is not None and not original.HasField("name"):
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
        if not scope:
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
        _refilled(graph.node, self.nodes(body.scope, initializers, values))
        _refilled(graph.initializer, [self._renamed(tensor) for tensor in initializers.get(body.scope, ())])
        told = {self._names.get(value.name, value.name): value for value in values.get(body.scope, ())}
        for value in (*graph.input, *graph.output):
            self._declare(value, told.get(value.name))
        for value, name in zip(graph.output, outputs, strict=True):
            value.name = self._names.get(name, name)
        kept = [value for value in graph.value_info if value.name in told or not value.HasField("type")]
        for value in kept:
            self._declare(value, told.get(value.name))
        _refilled(graph.value_info, kept)

    def _declare(self, value: onnx.ValueInfoProto, told: onnx.ValueInfoProto | None) -> None:
        """Declare what has become of a tensor; what was not changed stays as it was written."""
        if told is not None and told.type != self._declared[told.name].type:
            value.type.CopyFrom(told.type)

    @cached_property
    def _declared(self) -> dict[str, onnx.ValueInfoProto]:
        """What the unfolded model declares."""
        return {value.name: value for value in self._unfolding.model.graph.value_info}

    def _renamed(self, message: onnx.TensorProto) -> onnx.TensorProto:
        copy = _copy(message)
        copy.name = self._names.get(copy.name, copy.name)
        return copy
