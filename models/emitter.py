"""The part of the builder below the layers: nodes, parameters, constants, names and the export."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

Array = npt.NDArray[np.float32]
Shape = tuple[int | str, ...]

OPSETS = range(13, 23)
# onnxruntime refuses an IR version that is newer than itself: take the oldest one that covers the opset.
_IR_VERSION_UP_TO_OPSET_17 = 8
_IR_VERSION_FROM_OPSET_18 = 10


@dataclass(frozen=True)
class Value:
    """A tensor of the network while it is built.

    Attributes:
        tensor: The graphsurgeon tensor.
        shape: Its shape; the batch may be a name.
        power: Estimate of the mean square of its elements, without the mean that all channels share. The layers
            scale their weights with it, which keeps the activations of a deep network near one although no data
            has ever passed through it.
    """

    tensor: Any
    shape: Shape
    power: float = 1.0

    @property
    def channels(self) -> int:
        """Size of axis 1."""
        return int(self.shape[1])

    @property
    def size(self) -> int:
        """Height, which is also the width, of a feature map."""
        return int(self.shape[2])


class Emitter:
    """Writes nodes into one graph, with the names that the TorchScript exporter of PyTorch would give.

    A layer is addressed by its dotted module name, "layer1.0.conv1": its parameters are "layer1.0.conv1.weight" and
    so on, its nodes lie under "/layer1/layer1.0/conv1/".
    """

    def __init__(self, name: str, *, seed: int, opset: int, shape: Shape, inputs: Sequence[str] = ()) -> None:
        if opset not in OPSETS:
            raise ValueError(f"opset {opset}: the builders write opsets {OPSETS.start} to {OPSETS.stop - 1}")
        self.opset = opset
        self.batch = shape[0]
        self._rng = np.random.default_rng(seed)
        self._names: Counter[str] = Counter()
        self._parameters: dict[str, Array] = {}
        dtype = np.int64 if inputs else np.float32
        tensors = [gs.Variable(tensor, dtype=dtype, shape=shape) for tensor in inputs or ["input"]]
        self.inputs = [Value(tensor, shape) for tensor in tensors]
        self.input = self.inputs[0]
        self._graph = gs.Graph(name=name, opset=opset, inputs=tensors)

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        module: str = "",
        *,
        shape: Shape | None = None,
        power: float | None = None,
        **attrs: Any,
    ) -> Value:
        """Append a node with one output, which has the first input's shape and power unless told otherwise.

        An input that is None is left out, as optional ones may be.
        """
        (tensor,) = self._append(op, inputs, module, 1, attrs)
        first = inputs[0]
        assert first is not None, f"{op} of {module}: a first input is never optional"
        return Value(tensor, first.shape if shape is None else shape, first.power if power is None else power)

    def emit_many(
        self, op: str, inputs: Sequence[Value | None], module: str, like: Sequence[Value], **attrs: Any
    ) -> list[Value]:
        """Append a node with several outputs, which have the shapes and powers of `like`."""
        tensors = self._append(op, inputs, module, len(like), attrs)
        return [Value(tensor, value.shape, value.power) for tensor, value in zip(tensors, like, strict=True)]

    def emit_split(self, x: Value, module: str, parts: int | Sequence[int], axis: int) -> list[Value]:
        """Append a Split into equal parts, or parts of given sizes."""
        sizes = [int(x.shape[axis]) // parts] * parts if isinstance(parts, int) else list(parts)
        given = self.constant(np.array(sizes, dtype=np.int64), module)
        tensors = self._append("Split", [x, given], module, len(sizes), {"axis": axis})
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return [Value(tensor, shape, x.power) for tensor, shape in zip(tensors, shapes, strict=True)]

    def add_input(self, name: str, shape: Shape, dtype: type[np.generic]) -> Value:
        """Declare another input of the network, behind those that it has."""
        tensor = gs.Variable(name, dtype=dtype, shape=shape)
        self._graph.inputs.append(tensor)
        self.inputs.append(Value(tensor, shape))
        return self.inputs[-1]

    def body(self, name: str, write: Callable[[], Sequence[Value]]) -> tuple[Any, list[Value]]:
        """Write a subgraph: what `write` appends lies in it, and what it returns are the subgraph's outputs.

        Returns:
            The attribute for the node that has the subgraph, and its outputs.
        """
        outer, self._graph = self._graph, gs.Graph(name=name, opset=self.opset)
        outputs = list(write())
        for value in outputs:
            value.tensor.dtype, value.tensor.shape = np.float32, value.shape
        inner, self._graph = self._graph, outer
        inner.outputs = [value.tensor for value in outputs]
        return inner, outputs

    def parameter(self, name: str, values: Array) -> Value:
        """Make an initializer."""
        self._parameters[name] = values
        return Value(gs.Constant(name, np.empty(0, dtype=np.float32)), values.shape)

    def constant(self, values: npt.ArrayLike, module: str = "") -> Value:
        """Append a Constant node, the form that exporters give to shapes, axes and scalars."""
        array = np.asarray(values)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        (tensor,) = self._append("Constant", [], module, 1, {"value": gs.Constant("", array)})
        return Value(tensor, array.shape)

    def filling(self, value: float) -> Any:
        """What a ConstantOfShape is full of, as its attribute: integers if it is an int."""
        return gs.Constant("", np.array([value], np.int64 if isinstance(value, int) else np.float32))

    def normal(self, shape: Sequence[int], std: float) -> Array:
        """Draw normal values around zero."""
        values = self._rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        return values

    def uniform(self, size: int, low: float, high: float) -> Array:
        """Draw a vector of uniform values."""
        return (low + (high - low) * self._rng.random(size, dtype=np.float32)).astype(np.float32)

    def finish(self, outputs: Value | Sequence[Value]) -> onnx.ModelProto:
        """Name the network's outputs ("output", or "output0" and so on) and export the model."""
        ends = [outputs] if isinstance(outputs, Value) else list(outputs)
        for index, value in enumerate(ends):
            value.tensor.name = f"output{index}" if len(ends) > 1 else "output"
            value.tensor.dtype = np.float32
            value.tensor.shape = value.shape
        self._graph.outputs = [value.tensor for value in ends]
        model: onnx.ModelProto = gs.export_onnx(self._graph, producer_name="ucpe-onnx-models")
        # The export copies every tensor four times, seconds for a large network: it sees empty ones, filled in here.
        for graph in graphs(model.graph):
            del graph.value_info[:]  # graphsurgeon declares in a body what that captures; PyTorch doesn't
            for tensor in graph.initializer:
                values = self._parameters[tensor.name]
                tensor.dims[:] = values.shape
                tensor.raw_data = values.tobytes()
        model.ir_version = _IR_VERSION_UP_TO_OPSET_17 if self.opset <= 17 else _IR_VERSION_FROM_OPSET_18
        return model

    def _append(
        self, op: str, inputs: Sequence[Value | None], module: str, outputs: int, attrs: Mapping[str, Any]
    ) -> list[Any]:
        name = self._unique(f"{_scope(module)}/{op}")
        tensors = [gs.Variable(f"{name}_output_{index}") for index in range(outputs)]
        given = [gs.Variable.empty() if value is None else value.tensor for value in inputs]
        node = gs.Node(op, name, dict(attrs), given, tensors)
        self._graph.nodes.append(node)
        return tensors

    def _unique(self, name: str) -> str:
        seen = self._names[name]
        self._names[name] += 1
        return f"{name}_{seen}" if seen else name


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and all graphs within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def fan_in_std(fan_in: int, power: float) -> float:
    """Standard deviation of weights that give outputs of power one: He's rule, for inputs of any power."""
    return 1.0 / math.sqrt(fan_in * power)


def _scope(module: str) -> str:
    """Turn "layer1.0.conv1" into "/layer1/layer1.0/conv1": a numbered child carries its parent's name."""
    scopes: list[str] = []
    for part in module.split(".") if module else ():
        scopes.append(f"{scopes[-1]}.{part}" if part.isdigit() and scopes else part)
    return "".join(f"/{scope}" for scope in scopes)
