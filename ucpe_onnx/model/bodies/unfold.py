"""Unfold bodies: their nodes stand in the graph around them, in front of a marker; names become unique."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx

from ucpe_onnx.model.bodies.markers import DOMAIN, bodies_of, control_of, has_bodies, is_followed, marker
from ucpe_onnx.model.naming import fresh_name, node_names, tensor_names


@dataclass(frozen=True)
class Body:
    """A body that has been unfolded.

    Attributes:
        scope: what the names of its nodes begin with: ``<node>/<attribute>``, that node's scope included.
        control: name of the If, Loop or Scan in the unfolded graph.
        attribute: which of its attributes the body is.
        around: the scope of the graph that the If, Loop or Scan stands in, "" for the outermost.
        graph: the body itself.
        nodes: its nodes, by their names in the unfolded graph.
        tensors: the names of what it defines, likewise.
    """

    scope: str
    control: str
    attribute: str
    around: str
    graph: onnx.GraphProto
    nodes: Mapping[str, onnx.NodeProto]
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Unfolding:
    """A model without bodies that can be followed, and what it takes to fold them back.

    Attributes:
        source: the model itself.
        model: the unfolded model; the given one if there is nothing to unfold.
        bodies: what was unfolded, outer ones first, by scope.
        controls: the nodes that had the bodies, by their names in the unfolded graph.
    """

    source: onnx.ModelProto
    model: onnx.ModelProto
    bodies: Mapping[str, Body] = field(default_factory=dict)
    controls: Mapping[str, onnx.NodeProto] = field(default_factory=dict)

    @cached_property
    def inside(self) -> frozenset[str]:
        """The nodes and tensors of bodies, by their names in the unfolded graph."""
        bodies = self.bodies.values()
        return frozenset(name for body in bodies for name in (*body.nodes, *body.tensors))

    @cached_property
    def scopes(self) -> Mapping[str, str]:
        """For each node of a body its scope."""
        return {name: body.scope for body in self.bodies.values() for name in body.nodes}

    def outermost(self, node: onnx.NodeProto) -> str:
        """The If, Loop or Scan of the outermost graph that a node belongs to; "" for one that belongs to none."""
        control = control_of(node) if node.domain == DOMAIN else ""
        scope = self.scopes.get(control or node.name, "")
        while scope:
            control, scope = self.bodies[scope].control, self.bodies[scope].around
        return control


def unfold(model: onnx.ModelProto) -> Unfolding:
    """Unfold the bodies of every If, Loop and Scan that can be followed.

    None is where a node of the graph around is called as one in a body would be: masks could not tell them apart.

    Args:
        model: the model; not changed.
    """
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    if not any(has_bodies(node) and is_followed(node, opset) for node in model.graph.node):
        return Unfolding(model, model)
    return _Unfolder(model, opset).unfolded()


class _Unfolder:
    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self._model, self._opset = model, opset
        self._taken = tensor_names(model.graph)
        self._claimed = {value.name for value in model.graph.value_info}
        self._bodies: dict[str, Body] = {}
        self._controls: dict[str, onnx.NodeProto] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._values: list[onnx.ValueInfoProto] = []

    def unfolded(self) -> Unfolding:
        graph = self._model.graph
        self._claimed.update(_defined(graph))
        nodes = list(self._expanded(graph.node, node_names(graph.node), "", {}))
        if len({node.name for node in nodes}) < len(nodes):
            return Unfolding(self._model, self._model)
        flat = onnx.ModelProto()
        flat.CopyFrom(self._model)
        del flat.graph.node[:]
        flat.graph.node.extend(nodes)
        flat.graph.initializer.extend(self._initializers)
        flat.graph.value_info.extend(self._values)
        return Unfolding(self._model, flat, self._bodies, self._controls)

    def _expanded(
        self, nodes: Iterable[onnx.NodeProto], names: Iterable[str], scope: str, renamed: Mapping[str, str]
    ) -> Iterator[onnx.NodeProto]:
        for node, name in zip(nodes, names, strict=True):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = name
            copy.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
            copy.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
            if has_bodies(node) and is_followed(node, self._opset):
                self._controls[copy.name] = node
                yield from self._control(node, copy, scope, renamed)
            else:
                yield copy

    def _control(
        self, node: onnx.NodeProto, copy: onnx.NodeProto, scope: str, renamed: Mapping[str, str]
    ) -> Iterator[onnx.NodeProto]:
        """The nodes of the bodies, and the markers in front and behind."""
        if node.op_type == "If":
            outputs: list[str] = []
            for attribute, body in bodies_of(node):
                own, inner = self._body(copy.name, attribute, body, scope, renamed)
                yield from inner
                outputs += [own[value.name] for value in body.output]
            yield marker("If", copy.name, copy.name, [copy.input[0], *outputs], copy.output)
            return
        (attribute, body), *_ = bodies_of(node)
        own, inner = self._body(copy.name, attribute, body, scope, renamed)
        entered = [own[value.name] for value in body.input]
        yield marker("Enter", f"{copy.name}/enter", copy.name, copy.input, entered)
        yield from inner
        handed = [own[value.name] for value in body.output]
        yield marker("Exit", copy.name, copy.name, [*handed, *entered], copy.output)

    def _body(
        self, control: str, attribute: str, body: onnx.GraphProto, around: str, renamed: Mapping[str, str]
    ) -> tuple[Mapping[str, str], list[onnx.NodeProto]]:
        """What a body's names become, and its nodes."""
        scope = f"{control}/{attribute}"
        own = {name: self._unique(name, scope) for name in _defined(body)}
        known = {**renamed, **own}
        for tensor in body.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = own[tensor.name]
            self._initializers.append(copy)
        declared = {value.name: value for value in (*body.value_info, *body.input, *body.output)}
        for name, value in declared.items():
            if name in own and value.HasField("type"):
                told = onnx.ValueInfoProto()
                told.CopyFrom(value)
                told.name = own[name]
                self._values.append(told)
        names = [f"{scope}/{name}" for name in node_names(body.node)]
        nodes = dict(zip(names, body.node, strict=True))
        tensors = {new: old for old, new in own.items()}
        self._bodies[scope] = Body(scope, control, attribute, around, body, nodes, tensors)
        return own, list(self._expanded(body.node, names, scope, known))

    def _unique(self, name: str, scope: str) -> str:
        """A name for what a body defines: its own, unless that has been given away."""
        if name in self._claimed:
            name = fresh_name(f"{scope}/{name}", self._taken)
        self._claimed.add(name)
        return name


def _defined(graph: onnx.GraphProto) -> list[str]:
    """The tensors that a graph defines, without those of its bodies."""
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    names += [name for node in graph.node for name in node.output if name]
    return list(dict.fromkeys(names))
