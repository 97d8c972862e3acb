"""A read-only view of a model: who makes and reads which tensor, shapes, constants, attributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.analysis.shapes import Shape, infer_shapes
from ucpe_onnx.model.bodies import EXIT, IF, unfold
from ucpe_onnx.model.naming import node_names, recurrence_names

__all__ = ["GraphView", "Node", "Shape"]


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    Attributes:
        index: position in graph order.
        name: the unique name (see :mod:`ucpe_onnx.model.naming`).
        op_type: operator, prefixed with ``domain::`` outside of the standard domain.
        inputs: names of the input tensors, "" for one that is left out.
        outputs: names of the output tensors, "" for one that is left out.
        proto: the node itself, for its attributes.
    """

    index: int
    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: onnx.NodeProto

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute values by name; strings as bytes, as onnx stores them."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    def has(self, output: int) -> bool:
        """Whether an output is there and named."""
        return output < len(self.outputs) and bool(self.outputs[output])


class GraphView:
    """What the analysis needs to know of a model, gathered once.

    Args:
        model: the model; not changed. Weights are read from it when needed.
        input_shapes: shapes to infer the others from instead of the declared ones, by input name.

    Attributes:
        unfolding: the model with the bodies of If, Loop and Scan unfolded, which is what all of this is about.
        model: the unfolded model.
        nodes: the nodes in graph order, which ONNX requires to be topological.
        inputs: names of the graph inputs that are not initializers.
        outputs: names of the graph outputs.
        shapes: shape of every tensor whose rank is known.
        types: element type (onnx.TensorProto enum) of every tensor whose type is known.
        constants: the tensors whose values are known.
        readers: for each tensor the (node, input index) pairs that read it.
        makers: for each tensor the node that makes it.
        captured: tensors that bodies which could not be unfolded read from the graph around them.
        opset: version of the standard operator set.
    """

    def __init__(self, model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.unfolding = unfold(model)
        self.model = model = self.unfolding.model
        graph = model.graph
        self.constants = Constants(model)
        stored = {t.name for t in graph.initializer}
        self.inputs = tuple(v.name for v in graph.input if v.name not in stored)
        self.outputs = tuple(v.name for v in graph.output)
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.nodes = tuple(
            _view(i, n, name) for i, (n, name) in enumerate(zip(graph.node, node_names(graph.node), strict=True))
        )
        self.shapes, self.types, lengths = infer_shapes(
            model, self.constants, input_shapes or {}, self.unfolding.controls
        )
        self.readers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        self.makers = {tensor: node for node in self.nodes for tensor in node.outputs if tensor}
        captured: set[str] = set()
        for node in self.nodes:
            for position, tensor in enumerate(node.inputs):
                if tensor:
                    self.readers[tensor].append((node, position))
            captured |= captured_by(node.proto)
        self.captured = frozenset(captured)
        self.constants.fold_lengths(model, lengths, self.captured.union(self.outputs, self._handed_out()))

    @cached_property
    def recurrences(self) -> Mapping[int, str]:
        """The names of recurrences as consumers, by the index of the recurrent layer."""
        return recurrence_names(self.model.graph.node)

    def _handed_out(self) -> Iterator[str]:
        """What bodies hand out, which their own nodes have to make."""
        for node in self.nodes:
            if node.op_type in (IF, EXIT):
                yield from node.inputs[1 if node.op_type == IF else 0 :]

    def shape(self, tensor: str) -> Shape | None:
        """Shape of a tensor, constant or not; None if not even the rank is known."""
        constant = self.constants.shape(tensor)
        return self.shapes.get(tensor) if constant is None else constant

    def value(self, tensor: str) -> npt.NDArray[np.generic] | None:
        """Value of a constant tensor; None if it is not constant or "" (left out)."""
        return self.constants.value(tensor) if tensor else None


def _view(index: int, node: onnx.NodeProto, name: str) -> Node:
    op_type = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return Node(index, name, op_type, tuple(node.input), tuple(node.output), node)


def captured_by(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node read and don't make themselves."""
    names: set[str] = set()
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
        for body in bodies:
            made = {v.name for v in body.input} | {t.name for t in body.initializer}
            read = {value.name for value in body.output}
            for inner in body.node:
                read |= set(inner.input) | captured_by(inner)
                made |= set(inner.output)
            names |= read - made
    return names - {""}
