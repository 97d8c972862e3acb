"""Running random graphs in onnxruntime, and what their numbers may be held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NotImplemented, RuntimeException

from tests.builders import run
from tests.comparing import differences

_INTEGER_OPERATORS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QGemm",
)


def runs_optimised(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime's optimisations may be on: with integers in a graph they compute otherwise than written."""
    return not any(op in _INTEGER_OPERATORS or "QLinear" in op for op in _operators(model.graph))


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _operators(attribute.g)


def runs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, optimise: bool) -> bool:
    """Whether onnxruntime runs the model itself, and comes to reasonable numbers."""
    try:
        outputs = run(model, feeds, optimise=optimise)
    except (Fail, InvalidArgument, NotImplemented, RuntimeException):
        return False
    return all(np.isfinite(value).all() and np.abs(value).max(initial=0.0) < 1e4 for value in outputs)


def close(got: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    assert [value.shape for value in got] == [value.shape for value in wanted]
    return not differences(got, wanted, strict=True)


def is_steady(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], wanted: list[np.ndarray], *, optimise: bool
) -> bool:
    """Whether a model comes to the same numbers when its inputs, or the way to sum up, change by no more than rounding.

    Graphs that round, compare or sort jump there, those that divide by a variance of zero come to no number, and both
    say nothing about how they were emitted.
    """
    if not all(np.isfinite(value).all() for value in wanted):
        return False
    random = np.random.default_rng(0)
    for _ in range(8):
        moved = {
            name: (value * random.uniform(1 - 1e-6, 1 + 1e-6, value.shape)).astype(value.dtype)
            if value.dtype.kind == "f"
            else value
            for name, value in feeds.items()
        }
        if not close(run(model, moved, optimise=optimise), wanted):
            return False
        if not close(run(_moved_weights(model, random), feeds, optimise=optimise), wanted):
            return False
    return not optimise or close(run(model, feeds, optimise=False), wanted)


def _moved_weights(model: onnx.ModelProto, random: np.random.Generator) -> onnx.ModelProto:
    """Sums of quantised numbers may lie right between two steps, whatever the inputs: moved scales show that."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    for tensor in moved.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            value = onnx.numpy_helper.to_array(tensor)
            value = (value * random.uniform(1 - 1e-6, 1 + 1e-6, value.shape)).astype(value.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return moved


def to_text(model: onnx.ModelProto) -> str:
    """A model for people to read, without the values of its larger weights."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if np.prod(tensor.dims) > 8:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return onnx.printer.to_text(light)
