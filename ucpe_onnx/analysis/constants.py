"""Values that are known before the model runs: initializers, Constant nodes and what is computed from them alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import numpy_helper

from ucpe_onnx.errors import ModelError

_WARNING, _FATAL = 2, 4
"""Log severities of onnxruntime."""
_NOT_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Folding these would turn a quantised weight into a float one and lose the quantisation."""
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


class Constants:
    """The constant tensors of a graph, read from the model when asked for and never copied twice.

    A weight may sit behind Identity, Cast, Transpose or other nodes whose inputs are constant: their values are
    computed once, by onnx-graphsurgeon's constant folder on that part of the graph alone.

    Args:
        model: the model; not changed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        overridable = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
        self._initializers = {t.name: t for t in model.graph.initializer if t.name not in overridable}
        for sparse in model.graph.sparse_initializer:
            self._initializers.pop(sparse.values.name, None)
        self._folded: dict[str, npt.NDArray[np.generic]] = {}
        self.overridable = frozenset(t.name for t in model.graph.initializer if t.name in overridable)
        self._fold(model)

    def __contains__(self, name: object) -> bool:
        return name in self._initializers or name in self._folded

    def value(self, name: str) -> npt.NDArray[np.generic] | None:
        """The value of a tensor, or None if it is not constant."""
        if name in self._initializers:
            try:
                return numpy_helper.to_array(self._initializers[name])
            except Exception as error:  # onnx and numpy raise several types for a proto whose bytes don't fit
                raise ModelError(f"initializer {name!r}: its data does not fit its shape and type") from error
        return self._folded.get(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant tensor without reading its data, or None if it is not constant."""
        if name in self._initializers:
            return tuple(self._initializers[name].dims)
        value = self._folded.get(name)
        return None if value is None else value.shape

    def _fold(self, model: onnx.ModelProto) -> None:
        known = set(self._initializers)
        foldable: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if _is_foldable(node) and all(name in known for name in node.input if name):
                foldable.append(node)
                known.update(name for name in node.output if name)
        computed = [node for node in foldable if node.op_type != "Constant"]
        if computed:
            self._folded.update(self._run(model, foldable))
        for node in foldable:
            if node.op_type == "Constant" and (value := _constant_value(node)) is not None:
                self._folded[node.output[0]] = value

    def _run(self, model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, npt.NDArray[np.generic]]:
        made = [name for node in nodes if node.op_type != "Constant" for name in node.output if name]
        read = {name for node in nodes for name in node.input}
        graph = onnx.helper.make_graph(
            nodes,
            "constants",
            [],
            [onnx.ValueInfoProto(name=name) for name in made],
            [tensor for name, tensor in self._initializers.items() if name in read],
        )
        part = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        with _quiet_graphsurgeon():
            folder = gs.import_onnx(part)
            folder.fold_constants(error_ok=True, partitioning="recursive", size_threshold=None)
            tensors = folder.tensors()
            return {
                name: np.asarray(tensors[name].values) for name in made if isinstance(tensors.get(name), gs.Constant)
            }


@contextmanager
def _quiet_graphsurgeon() -> Iterator[None]:
    """A constant that can't be folded is no news to the user, nor what onnxruntime thinks of it: it stays unknown."""
    logger = gs.logger.G_LOGGER
    before, logger.severity = logger.severity, logger.CRITICAL
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        logger.severity = before
        ort.set_default_logger_severity(_WARNING)  # onnxruntime's own default; it does not tell what was set


def _is_foldable(node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _NOT_FOLDED or node.op_type in _RANDOM:
        return False
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return False
    return node.op_type == "Constant" or any(node.input)


def _constant_value(node: onnx.NodeProto) -> npt.NDArray[np.generic] | None:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(onnx.helper.get_attribute_value(attribute), dtype=np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(onnx.helper.get_attribute_value(attribute), dtype=np.int64)
    return None
