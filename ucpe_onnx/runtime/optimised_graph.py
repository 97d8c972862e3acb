"""A view of the graph that onnxruntime made of a model: who makes and reads what, and what it was in the model.

onnxruntime gives nodes and tensors new names. What is known of them: a node of the blocked layout is called after the
tensor that it makes, with ``_nchwc`` behind; a quantised node and what it makes are called after the node that they
come from, maybe with ``_token_7`` behind; most others keep their names.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.model.limits import bodies

BLOCKED = "com.microsoft.nchwc"
"""Domain of the operators that work on blocks of channels."""

REORDERS = ("ReorderInput", "ReorderOutput")
"""Operators that bring a tensor into that layout, and back."""

COPIES = ("Gather", "Slice", "Split", "Concat", "QLinearConcat", "Pad", "Transpose")
"""Operators that only select or move values."""

CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")
"""Convolutions in float, with and without what is fused into them."""

ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish")
"""Activations that onnxruntime's convolutions can do themselves."""

_SAME_SHAPE = frozenset((*REORDERS, *ACTIVATIONS, "QuickGelu", "Gelu", "QuantizeLinear", "DequantizeLinear", "Cast"))
_SHAPES = frozenset(("Shape", "Size"))
_BLOCKED_NAME = re.compile(r"(?P<tensor>.+?)(?P<normalisation>_bn)?_nchwc(?:_token_\d+)?")
_TOKEN = re.compile(r"_token_\d+$")

_ELEMENT_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT16: 2,
    TensorProto.UINT16: 2,
}
"""Types that activations have; tensors of other types are lengths, indices and the like."""


class OptimisedView:
    """What the checks need to know of an optimised graph.

    Args:
        optimised: what onnxruntime wrote.
        source: the model that it was made of; not changed.
        shapes: the input shapes to infer the others from, by input name.

    Attributes:
        nodes: the nodes in the order of computation, those of a subgraph before the node that it belongs to.
        makers: for each tensor the node that makes it.
        readers: for each tensor the nodes that read it.
        weights: shape of every constant.
        overridable: those of them that callers may give another value, so that onnxruntime can't prepare them.
        outputs: what the graph, or a subgraph, returns.
    """

    def __init__(
        self, optimised: onnx.ModelProto, source: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        graphs = tuple(_graphs(optimised.graph))
        self.nodes = tuple(_nodes(optimised.graph))
        self.makers = {tensor: node for node in self.nodes for tensor in node.output if tensor}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for tensor in filter(None, node.input):
                self.readers[tensor].append(node)
        self.weights = {t.name: tuple(t.dims) for graph in graphs for t in graph.initializer}
        overridable = optimised.ir_version >= 4
        self.overridable = {v.name for v in optimised.graph.input if overridable and v.name in self.weights}
        self.outputs = {value.name for graph in graphs for value in graph.output}
        self._known = _Known(source, shapes)
        self._values = {v.name for graph in graphs for v in graph.input} - set(self.weights)
        known = self._values & set(self._known.makers)
        self._meant: dict[str, tuple[str, bool]] = {tensor: (tensor, True) for tensor in known}
        self._types: dict[str, int] = {tensor: self._known.types.get(tensor, 0) for tensor in known}
        for node in self.nodes:
            self._learn(node)

    def is_value(self, tensor: str) -> bool:
        """Whether a tensor holds what is computed from the inputs: no constant, no length, no index."""
        if tensor not in self._values:
            return False
        kind = self._types.get(tensor, 0)
        return not kind or kind in _ELEMENT_BYTES

    def values_read(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that hold values."""
        return [tensor for tensor in node.input if self.is_value(tensor)]

    def meant(self, tensor: str) -> str:
        """The model's tensor that a tensor is, or else the closest one above it; "" if there is none."""
        return self._meant.get(tensor, ("", False))[0]

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Shape, without what pads it to whole blocks; None if it isn't known."""
        name, same = self._meant.get(tensor, ("", False))
        return self._known.shape(name) if same else None

    def bytes(self, tensor: str, block: int = 1, axis: int = 1) -> int | None:
        """Bytes of a tensor whose channels take whole blocks; None if its shape isn't known."""
        shape = self.shape(tensor)
        if shape is None:
            return None
        blocks = [-(-dim // block) * block if i == axis % len(shape) else dim for i, dim in enumerate(shape)]
        return math.prod(blocks) * _ELEMENT_BYTES.get(self._types.get(tensor, 0), 4)

    def is_normalisation(self, node: onnx.NodeProto) -> bool:
        """Whether a convolution of the blocked layout was a BatchNormalization in the model."""
        match = _BLOCKED_NAME.fullmatch(node.name)
        if match is None or match["normalisation"] is None:
            return False
        return f"{match['tensor']}_bn" not in self._known.makers

    def source_name(self, node: onnx.NodeProto) -> str:
        """What the model calls the node, where that can be told; else onnxruntime's name for it."""
        name = _TOKEN.sub("", node.name)
        if name in self._known.outputs:
            return name
        made = self._direct(node, 0) if node.output else ""
        if made and node.op_type in CONVOLUTIONS:
            return self._known.convolution_above(made) or node.name
        return self._known.makers.get(made) or node.name

    def _learn(self, node: onnx.NodeProto) -> None:
        """What a node's outputs are, when its inputs are known."""
        above = next((tensor for tensor in node.input if tensor in self._values), None)
        for index, tensor in enumerate(node.output):
            if above is not None and node.op_type not in _SHAPES:
                self._values.add(tensor)
            self._types[tensor] = self._type(node, tensor, above)
            if direct := self._direct(node, index):
                self._meant[tensor] = (direct, True)
            elif above is not None and above in self._meant:
                name, same = self._meant[above]
                self._meant[tensor] = (name, same and node.op_type in _SAME_SHAPE)

    def _type(self, node: onnx.NodeProto, tensor: str, above: str | None) -> int:
        """Element type of an output; 0 where it can't be told.

        It may differ from that of the model's tensor: without kernels for half precision onnxruntime casts.
        """
        if tensor in self._known.types:
            return self._known.types[tensor]
        if node.op_type == "Cast":
            return next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
        kind = {"DequantizeLinear": TensorProto.FLOAT, "QuantizeLinear": TensorProto.UINT8}.get(node.op_type)
        return self._types.get(above or "", 0) if kind is None else kind

    def _direct(self, node: onnx.NodeProto, index: int) -> str:
        """The model's tensor that names say an output is; "" if they don't."""
        known, tensor = self._known, str(node.output[index])
        if _without_cast(tensor) in known.makers:
            return _without_cast(tensor)
        match = _BLOCKED_NAME.fullmatch(node.name) if node.domain == BLOCKED else None
        if match is not None:
            names = (match["tensor"] + (match["normalisation"] or ""), match["tensor"])
            return next((name for name in map(_without_cast, names) if name in known.makers), "")
        for name in (tensor, _TOKEN.sub("", tensor), _TOKEN.sub("", node.name)):
            if index < len(known.outputs.get(name, ())):
                return known.outputs[name][index]
        return ""


def _without_cast(tensor: str) -> str:
    return tensor.removeprefix("InsertedPrecisionFreeCast_")


class _Known:
    """What the model says of its tensors.

    Attributes:
        makers: for each tensor the name of the node that makes it, "" for graph inputs.
        outputs: for each node, by name, the tensors that it makes.
        types: element type of each tensor whose type is known.
    """

    def __init__(self, source: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        view = GraphView(source, shapes)
        nodes = tuple(_nodes(source.graph))
        self.makers: dict[str, str] = {v.name: "" for graph in _graphs(source.graph) for v in graph.input}
        self.makers.update({tensor: node.name for node in nodes for tensor in node.output if tensor})
        self.outputs: dict[str, tuple[str, ...]] = {node.name: tuple(node.output) for node in nodes if node.name}
        self.types = view.types
        self._view = view

    def convolution_above(self, tensor: str) -> str:
        """Name of the convolution that a tensor comes from by way of what onnxruntime fuses into it; "" if none is."""
        maker = self._view.makers.get(tensor)
        while maker is not None and maker.op_type != "Conv":
            maker = self._view.makers.get(maker.inputs[0]) if maker.inputs else None
        return "" if maker is None else maker.name

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        dims = self._view.shapes.get(tensor)
        known = tuple(dim for dim in dims or () if isinstance(dim, int))
        return None if dims is None or len(known) < len(dims) else known


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _graphs(body)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        for body in bodies(node):
            yield from _nodes(body)
        yield node
