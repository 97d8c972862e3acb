"""Values that are known before the model runs: initializers, Constant nodes and what is computed from them alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import numpy_helper

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.offload import FiledArrays, complete, has_offloaded, model_file, tensor_value
from ucpe_onnx.model.skeleton import inferred, skeleton

_WARNING, _FATAL = 2, 4
"""Log severities of onnxruntime."""
_NOT_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Folding these would turn a quantised weight into a float one and lose the quantisation."""
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


_GROWING = frozenset(
    {"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample", "CenterCropPad"}
)
"""Operators whose results may be much larger than what they are given."""
_MOST_ELEMENTS = 1 << 24


class Constants:
    """The constant tensors of a graph, read from the model when asked for and never copied twice.

    A weight may sit behind Identity, Cast, Transpose or other nodes whose inputs are constant: their values are
    computed once, by onnxruntime from that part of the graph alone; if it can't, by onnx-graphsurgeon's constant
    folder, which goes around what can't be computed.

    Args:
        model: the model; not changed.

    Attributes:
        overridable: initializers that are graph inputs too, from IR version 4 on: callers may give other values.
        measured: folded tensors that are computed from lengths. In the emitted graph these may be others.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        declared = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
        self._initializers = {t.name: t for t in model.graph.initializer}
        for sparse in model.graph.sparse_initializer:
            self._initializers.pop(sparse.values.name, None)
        self._folded = FiledArrays()
        self.measured: frozenset[str] = frozenset()
        self.overridable = frozenset(t.name for t in model.graph.initializer if t.name in declared)
        self._fold(model)

    def __contains__(self, name: object) -> bool:
        return name in self._initializers or name in self._folded

    def value(self, name: str) -> npt.NDArray[np.generic] | None:
        """The value of a tensor, or None if it is not constant."""
        if name in self._initializers:
            try:
                return tensor_value(self._initializers[name])
            except Exception as error:  # onnx and numpy raise several types for a proto whose bytes don't fit
                raise ModelError(f"initializer {name!r}: its data does not fit its shape and type") from error
        return self._folded.get(name)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant tensor without reading its data, or None if it is not constant."""
        if name in self._initializers:
            return tuple(self._initializers[name].dims)
        return self._folded.shape(name)

    def fold_lengths(
        self, model: onnx.ModelProto, lengths: Mapping[str, npt.NDArray[np.generic]], leave: frozenset[str]
    ) -> None:
        """Fold what is computed from lengths that are the same for every input, as tracing exporters write it.

        Args:
            model: the model.
            lengths: values that shape inference knows.
            leave: tensors that must go on being computed, with all that they are computed from.
        """
        nodes: list[onnx.NodeProto] = []
        measured: set[str] = set()
        for node in model.graph.node:
            given = all(name in lengths for name in node.output)
            follows = _is_foldable(node) and all(name in measured or name in self for name in node.input if name)
            if (given or follows) and not all(name in self for name in node.output if name):
                nodes.append(node)
                measured.update(node.output)
        for node in reversed(nodes):
            if leave.intersection(node.output):
                leave |= set(node.input)
        followers: list[onnx.NodeProto] = []
        for node in nodes:
            if leave.intersection(node.output) or leave.intersection(measured & set(node.input)):
                leave |= set(node.output)
            elif all(name in lengths for name in node.output):
                self._folded.update({name: lengths[name] for name in node.output})
            else:
                followers.append(node)
        if followers:
            self._folded.update(self._run(model, followers))
        self.measured = frozenset(name for name in measured if name in self._folded)

    def _fold(self, model: onnx.ModelProto) -> None:
        known = set(self._initializers)
        foldable: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if _is_foldable(node) and all(name in known for name in node.input if name):
                foldable.append(node)
                known.update(name for name in node.output if name)
        for node in foldable:
            if node.op_type == "Constant" and (value := _constant_value(node)) is not None:
                self._folded.update({node.output[0]: value})
        computed = [node for node in foldable if node.op_type != "Constant"]
        if computed:
            self._folded.update(self._run(model, computed))

    def _run(self, model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> dict[str, npt.NDArray[np.generic]]:
        """Compute nodes whose inputs are known or made by one of them; what would be too large is left out."""
        part = self._part(model, nodes)
        small = _small_enough(part)
        if len(small) < len(nodes):
            part = self._part(model, small)
        made = [value.name for value in part.graph.output]
        if not made:
            return {}
        with _quiet():
            try:
                return _computed_at_once(part, made)
            except Exception:  # an operator that onnxruntime lacks, a value that does not fit: fold what can be folded
                return _computed_one_by_one(part, made)

    def _part(self, model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        made = [name for node in nodes for name in node.output if name]
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        known = [
            self._initializers[name]
            if name in self._initializers
            else numpy_helper.from_array(np.asarray(self._folded.get(name)), name)
            for name in read
            if name in self
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in made]
        graph = onnx.helper.make_graph(nodes, "constants", [], outputs, known)
        return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _small_enough(part: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of a part of a graph, less those whose results might fill the memory, and what needs these."""
    light = skeleton(part)
    sizes = {t.name: int(np.prod(t.dims, dtype=np.int64)) for t in part.graph.initializer}
    with contextlib.suppress(Exception):  # what is not inferred counts as unknown
        light = inferred(light)
    for value in (*light.graph.value_info, *light.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            sizes[value.name] = math.prod(d.dim_value for d in dims)
    small: list[onnx.NodeProto] = []
    left_out: set[str] = set()
    for node in part.graph.node:
        given = sum(sizes.get(name, 0) for name in node.input)
        most = max(_MOST_ELEMENTS, 4 * given)
        unknown = most + 1 if node.op_type in _GROWING else 0
        if left_out.intersection(node.input) or any(sizes.get(n, unknown) > most for n in node.output if n):
            left_out.update(node.output)
        else:
            small.append(node)
    return small


def _computed_at_once(part: onnx.ModelProto, names: list[str]) -> dict[str, npt.NDArray[np.generic]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1
    with model_file(part) if has_offloaded(part) else nullcontext(part.SerializeToString()) as loadable:
        session = ort.InferenceSession(loadable, options, providers=["CPUExecutionProvider"])
    found = zip(names, session.run(None, {}), strict=True)
    return {name: value for name, value in found if isinstance(value, np.ndarray)}


def _computed_one_by_one(part: onnx.ModelProto, names: list[str]) -> dict[str, npt.NDArray[np.generic]]:
    folder = gs.import_onnx(complete(part))
    folder.fold_constants(error_ok=True, partitioning="recursive", size_threshold=None)
    tensors = folder.tensors()
    return {name: np.asarray(tensors[name].values) for name in names if isinstance(tensors.get(name), gs.Constant)}


@contextmanager
def _quiet() -> Iterator[None]:
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
