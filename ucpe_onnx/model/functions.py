"""Local functions: expanded where the graph calls them, so that the analysis meets operators that it knows.

``onnx.inliner`` does the like, but forgets default values of attributes, the names of the calls and functions that
nothing calls, drops opset imports that only functions had, and serialises the model, weights and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

import onnx

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.limits import MOST_NESTING, bodies
from ucpe_onnx.model.naming import fresh_name, node_names, tensor_names

Key: TypeAlias = "tuple[str, str, str]"
"""What identifies a function: domain, name, overload."""

MOST_NODES = 1_000_000
"""Functions that double at every level would fill any memory."""
MOST_LEVELS = 100
"""Functions that call functions; onnx's checker and onnxruntime recurse."""


def check_functions(model: onnx.ModelProto, where: str) -> None:
    """Refuse functions that can't be expanded, before anything tries to: onnx's own checker does.

    Args:
        model: the model.
        where: what to call it in the message, usually its path.

    Raises:
        ModelError: functions that call themselves, or that expand to more than any real model holds.
    """
    functions = {_function_key(f): f for f in model.functions}
    if not functions:
        return
    calls = {key: {k for k, _ in _calls(f.node) if k in functions} for key, f in functions.items()}
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError as error:
        circle = " -> ".join(name for _, name, _ in error.args[1])
        raise ModelError(f"{where}: its functions call themselves ({circle}); no model can do that") from error
    extents: dict[Key, _Extent] = {}
    for key in order:
        extents[key] = _extent(functions[key].node, extents)
    whole = _extent(model.graph.node, extents)
    if whole.nodes > MOST_NODES or whole.levels > MOST_LEVELS or whole.nesting > MOST_NESTING:
        raise ModelError(
            f"{where}: its functions expand to {whole.nodes:,} nodes, {whole.levels} calls and {whole.nesting} bodies"
            f" deep; at most {MOST_NODES:,} nodes, {MOST_LEVELS} calls and {MOST_NESTING} bodies are taken"
        )


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace calls of local functions by the functions' nodes, in subgraphs too.

    A node of the graph keeps its name, or gets the one that it would have had before; the nodes of a function are
    called ``<call>/<node>``, its tensors likewise. Calls stay of functions that were written for another version of an
    operator. Definitions that nothing calls, before or after, stay.

    Args:
        model: the model, which :func:`check_functions` has accepted; not changed.

    Returns:
        The model itself if its graph calls none of its functions, else a copy.
    """
    functions = {_function_key(f): f for f in model.functions if _fits(f, model)}
    if not any(key in functions for key, _ in _calls(model.graph.node)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node, name in zip(copy.graph.node, node_names(copy.graph.node), strict=True):
        node.name = name
    inliner = _Inliner(functions, tensor_names(copy.graph), {node.name for node in copy.graph.node})
    inliner.expand(copy.graph.node)
    imported = {_domain(opset.domain) for opset in copy.opset_import}
    for opset in inliner.imports:
        if _domain(opset.domain) not in imported:
            imported.add(_domain(opset.domain))
            copy.opset_import.append(opset)
    kept = _still_needed(copy, {_function_key(f) for f in model.functions} - _reachable(model, model.graph.node))
    for index in range(len(copy.functions) - 1, -1, -1):
        if _function_key(copy.functions[index]) not in kept:
            del copy.functions[index]
    return copy


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _key(node: onnx.NodeProto) -> Key:
    return _domain(node.domain), node.op_type, getattr(node, "overload", "")  # onnx >= 1.16.1


def _function_key(function: onnx.FunctionProto) -> Key:
    return _domain(function.domain), function.name, getattr(function, "overload", "")


def _calls(nodes: Iterable[onnx.NodeProto], nesting: int = 0) -> Iterator[tuple[Key, int]]:
    """Every node as what it may call, and the number of bodies around it."""
    for node in nodes:
        yield _key(node), nesting
        for body in bodies(node):
            yield from _calls(body.node, nesting + 1)


@dataclass(frozen=True)
class _Extent:
    """What nodes expand to: how many, through how many levels of calls, in how many bodies around one another."""

    nodes: int
    levels: int
    nesting: int


def _extent(nodes: Iterable[onnx.NodeProto], extents: Mapping[Key, _Extent]) -> _Extent:
    count = levels = nesting = 0
    for key, depth in _calls(nodes):
        called = extents.get(key, _Extent(1, -1, 0))
        count += called.nodes
        levels = max(levels, called.levels + 1)
        nesting = max(nesting, depth + called.nesting)
    return _Extent(count, levels, nesting)


def _fits(function: onnx.FunctionProto, model: onnx.ModelProto) -> bool:
    """Whether the model's versions of the operators are those that the function was written for.

    Functions that stand for a standard operator don't: whether they do is the runtime's choice.
    """
    if onnx.defs.has(function.name, _domain(function.domain)):
        return False
    wanted = {_domain(opset.domain): opset.version for opset in function.opset_import}
    given = {_domain(opset.domain): opset.version for opset in model.opset_import}
    local = {_function_key(f) for f in model.functions}
    return all(
        key in local or _same_operator(key, wanted.get(key[0]), given.get(key[0])) for key, _ in _calls(function.node)
    )


def _same_operator(key: Key, wanted: int | None, given: int | None) -> bool:
    domain, name, _ = key
    if wanted == given or given is None:
        return True
    try:
        schemas = [onnx.defs.get_schema(name, max_inclusive_version=v, domain=domain) for v in (wanted or given, given)]
    except onnx.defs.SchemaError:
        return False
    return schemas[0].since_version == schemas[1].since_version


def _reachable(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> set[Key]:
    """Functions that nodes call, directly or through others."""
    functions = {_function_key(f): f for f in model.functions}
    found: set[Key] = set()
    left = [nodes]
    while left:
        for key in {key for key, _ in _calls(left.pop()) if key in functions} - found:
            found.add(key)
            left.append(functions[key].node)
    return found


def _still_needed(model: onnx.ModelProto, uncalled: set[Key]) -> set[Key]:
    needed = uncalled | _reachable(model, model.graph.node)
    for function in model.functions:
        if _function_key(function) in uncalled:
            needed |= _reachable(model, function.node)
    return needed


@dataclass
class _Inliner:
    """Expands calls; what it makes is called as nothing else is."""

    functions: Mapping[Key, onnx.FunctionProto]
    tensors: set[str]
    names: set[str]
    imports: list[onnx.OperatorSetIdProto] = field(default_factory=list)

    def expand(self, nodes: MutableSequence[onnx.NodeProto]) -> None:
        """Replace the calls among nodes, in place."""
        done: list[onnx.NodeProto] = []
        left = list(reversed(nodes))
        while left:
            node = left.pop()
            function = self.functions.get(_key(node))
            if function is None:
                for body in bodies(node):
                    self.expand(body.node)
                done.append(node)
            else:
                left.extend(reversed(self._instance(node, function)))
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in done]
        del nodes[:]
        nodes.extend(copies)

    def _instance(self, call: onnx.NodeProto, function: onnx.FunctionProto) -> list[onnx.NodeProto]:
        """The nodes of a function for one call."""
        self.imports.extend(function.opset_import)
        stem = call.name or function.name
        given = [*call.input, *[""] * (len(function.input) - len(call.input))]
        scope = _Scope(stem, self.tensors, dict(zip(function.input, given, strict=False)))
        passed_on: list[onnx.NodeProto] = []
        for inner, outer in zip(function.output, call.output, strict=False):
            if outer and inner in scope.renamed:  # an input that is handed back
                passed_on.append(onnx.helper.make_node("Identity", [scope.renamed[inner]], [outer]))
            elif outer:
                scope.renamed[inner] = outer
        values = {a.name: a for a in (*getattr(function, "attribute_proto", ()), *call.attribute)}
        nodes = []
        for node, name in zip(function.node, node_names(function.node), strict=True):
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.name = fresh_name(f"{stem}/{name}", self.names)
            _adopt(own, scope, values)
            nodes.append(own)
        for node in passed_on:
            node.name = fresh_name(f"{stem}/{function.name}_output", self.names)
        return [*nodes, *passed_on]


@dataclass
class _Scope:
    """What the tensors of a function are called in the graph; a name that is new gets ``<call>/`` in front."""

    stem: str
    taken: set[str]
    renamed: dict[str, str]

    def __call__(self, name: str) -> str:
        if name and name not in self.renamed:
            self.renamed[name] = fresh_name(f"{self.stem}/{name}", self.taken)
        return self.renamed[name] if name else ""


def _adopt(node: onnx.NodeProto, scope: _Scope, values: Mapping[str, onnx.AttributeProto]) -> None:
    """Rename what a function's node reads and makes, and give its attributes the values of the call."""
    node.input[:] = [scope(name) for name in node.input]
    node.output[:] = [scope(name) for name in node.output]
    for configuration in getattr(node, "device_configurations", ()):  # onnx >= 1.18
        for spec in configuration.sharding_spec:
            spec.tensor_name = scope(spec.tensor_name)
    for index in range(len(node.attribute) - 1, -1, -1):
        attribute = node.attribute[index]
        if attribute.ref_attr_name:
            value = values.get(attribute.ref_attr_name)
            if value is None:  # not given, and without a default: the operator's own default holds
                del node.attribute[index]
                continue
            name = attribute.name
            attribute.CopyFrom(value)
            attribute.name = name
        else:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _adopt_body(body, scope, values)


def _adopt_body(body: onnx.GraphProto, scope: _Scope, values: Mapping[str, onnx.AttributeProto]) -> None:
    named: tuple[Any, ...] = (*body.input, *body.output, *body.value_info, *body.initializer)
    for value in (*named, *(sparse.values for sparse in body.sparse_initializer)):
        value.name = scope(value.name)
    for annotation in body.quantization_annotation:
        annotation.tensor_name = scope(annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = scope(entry.value)
    for node in body.node:
        _adopt(node, scope, values)
