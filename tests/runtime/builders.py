"""Tiny models and fake sessions for the tests of the runtime."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None] | None


def value(name: str, shape: Shape, elem_type: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """One node; names of inputs and outputs are separated by spaces."""
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def unary(op_type: str = "Identity", shape: Shape = ("N", 3), elem_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """``y = op(x)``."""
    return make_model([node(op_type, "x")], [value("x", shape, elem_type)], [value("y", shape, elem_type)])


def linear(weight: np.ndarray, batch: int | str = "N") -> onnx.ModelProto:
    """``y = x @ weight``."""
    rows, columns = weight.shape
    return make_model(
        [node("MatMul", "x w")], [value("x", [batch, rows])], [value("y", [batch, columns])], {"w": weight}
    )


def two_inputs(first: Shape, second: Shape, op_type: str = "Add") -> onnx.ModelProto:
    """``y = op(a, b)``, of undeclared shape."""
    return make_model([node(op_type, "a b")], [value("a", first), value("b", second)], [value("y", None)])


class FakeSession:
    """Returns what it is told to, and may take scripted time on a fake clock."""

    def __init__(self, outputs: Callable[[dict[str, Any]], list[Any]], names: Sequence[str] = ("y",)) -> None:
        self.outputs, self.names, self.runs = outputs, names, 0

    def run(self, output_names: Sequence[str] | None, input_feed: dict[str, Any]) -> list[Any]:
        self.runs += 1
        return self.outputs(input_feed)

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names]


def giving(*outputs: Any) -> FakeSession:
    """A session that returns these outputs whatever it is fed."""
    return FakeSession(lambda feed: list(outputs), [f"y{index}" for index in range(len(outputs))])


class FakeClock:
    """Seconds that pass only when a fake session runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def session(self, seconds: Callable[[int], float]) -> FakeSession:
        """A session whose run number n takes ``seconds(n)``."""

        def spend(feed: dict[str, Any]) -> list[Any]:
            self.now += seconds(session.runs)
            return []

        session = FakeSession(spend, ())
        return session
