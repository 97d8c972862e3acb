"""The models of ONNX's own test suite, and what can be made of them so that there is something to prune.

A case of the suite is mostly one node whose weights are graph inputs: all its channels are frozen. The variants make
weights of inputs, and put the node between two layers, whose channels it has to carry along or to freeze.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test import loader

from tests.comparing import newest_versions

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")

_WIDEST = 1024
"""Most channels for which a layer is made."""


@dataclass(frozen=True)
class Case:
    """A model with one set of inputs.

    Attributes:
        name: the suite's, with the variant's appended.
        model: the model.
        values: the inputs' values in graph order; arrays, scalars, lists, TensorProtos or None, as the suite has them.
        expected: the outputs that the suite wants; None where only onnxruntime can tell.
        rtol: relative tolerance of the suite.
        atol: absolute tolerance of the suite.
    """

    name: str
    model: onnx.ModelProto
    values: tuple[Any, ...]
    expected: tuple[Any, ...] | None
    rtol: float
    atol: float

    def feed(self) -> dict[str, Any]:
        """What to run the model on."""
        stored = {tensor.name for tensor in self.model.graph.initializer}
        names = [value.name for value in self.model.graph.input if value.name not in stored]
        pairs = zip(names, self.values, strict=False)
        return {name: _runnable(value) for name, value in pairs if value is not None}


def load_cases(kinds: Sequence[str] = KINDS) -> Iterator[Case]:
    """All cases of the installed onnx whose models it brings along, in the order of their names."""
    for kind in kinds:
        with warnings.catch_warnings():  # some cases overflow on purpose when they are made
            warnings.simplefilter("ignore")
            found = loader.load_model_tests(kind=kind)
        for case in sorted(found, key=lambda case: case.name):
            if case.model is not None and case.data_sets:
                inputs, outputs = case.data_sets[0]
                yield Case(case.name, _restamped(case.model), tuple(inputs), tuple(outputs), case.rtol, case.atol)
            elif case.model_dir is not None:
                yield from _stored(Path(case.model_dir), case.name, case.rtol, case.atol)


def _restamped(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that is too new for onnxruntime with the newest versions that it loads; most operators are as before."""
    newest, ir_version = newest_versions()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, ir_version)
    for opset in copy.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, newest)
    return copy


def _stored(folder: Path, name: str, rtol: float, atol: float) -> Iterator[Case]:
    model = onnx.load(os.fspath(folder / "model.onnx"))
    sets = sorted(folder.glob("test_data_set_*"))
    if sets:
        inputs = [_read(sets[0] / f"input_{i}.pb", v) for i, v in enumerate(_free_inputs(model))]
        outputs = [_read(sets[0] / f"output_{i}.pb", v) for i, v in enumerate(model.graph.output)]
        yield Case(name, model, tuple(inputs), tuple(outputs), rtol, atol)


def _read(file: Path, value: onnx.ValueInfoProto) -> Any:
    content = file.read_bytes()
    if value.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    return numpy_helper.to_array(TensorProto.FromString(content))


def _free_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _runnable(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list | np.ndarray) else np.asarray(value)


# Variants


def as_it_is(case: Case) -> Case | None:
    return case


def constant_inputs(case: Case) -> Case | None:
    """All inputs but the first become initializers."""
    if len(case.values) < 2:
        return None
    changed = _with_constants(case, range(1, len(case.values)))
    return None if len(changed.values) == len(case.values) else replace(changed, name=f"{case.name}: constants")


def between_convolutions(case: Case) -> Case | None:
    """The first input comes from a layer, float outputs go to one; all other inputs become initializers."""
    return _between(case, "convolutions", 1, only_first=True)


def joined_convolutions(case: Case) -> Case | None:
    """Every float input comes from a layer of its own, float outputs go to one."""
    return _between(case, "joined convolutions", 1, only_first=False) if len(case.values) > 1 else None


def between_products(case: Case) -> Case | None:
    """As with convolutions, with matrix products on the last axis."""
    return _between(case, "products", -1, only_first=True)


VARIANTS: Mapping[str, Callable[[Case], Case | None]] = MappingProxyType(
    {
        "as it is": as_it_is,
        "constants": constant_inputs,
        "convolutions": between_convolutions,
        "joined": joined_convolutions,
        "products": between_products,
    }
)


def _between(case: Case, label: str, axis: int, *, only_first: bool) -> Case | None:
    layered = [i for i, v in enumerate(_free_inputs(case.model)) if i < len(case.values) and _channels(v, axis)]
    layered = layered[:1] if only_first else layered
    if not layered or not any(_channels(value, axis) for value in case.model.graph.output):
        return None
    names = [value.name for value in _free_inputs(case.model)]
    case = _with_constants(case, [i for i in range(len(case.values)) if i not in layered])
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, random = model.graph, np.random.default_rng(0)
    first = []
    for name in (names[i] for i in layered):
        value = next(v for v in graph.input if v.name == name)
        graph.value_info.append(value)
        value.name = f"{name}_outer"
        size = _channels(value, axis)
        weight = np.eye(size, dtype=np.float32)  # so that the node sees the values that the suite has for it
        first.append(_layer(graph, value, weight, (value.name, name), axis))
    nodes = [*first, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node)]
    for value in graph.output:
        if size := _channels(value, axis):
            graph.value_info.append(value)
            weight = random.standard_normal((3, size)).astype(np.float32) / np.sqrt(np.float32(size))
            inner, value.name = value.name, f"{value.name}_outer"
            nodes.append(_layer(graph, value, weight, (inner, value.name), axis))
            value.type.tensor_type.shape.dim[axis].dim_value = 3
    del graph.node[:]
    graph.node.extend(nodes)
    return replace(case, name=f"{case.name}: {label}", model=model, expected=None)


def _layer(
    graph: onnx.GraphProto, value: onnx.ValueInfoProto, weight: np.ndarray, ends: tuple[str, str], axis: int
) -> onnx.NodeProto:
    """A node that multiplies the channels by a matrix (out, in), from the first tensor of ``ends`` to the second."""
    rank = len(value.type.tensor_type.shape.dim)
    name = f"{ends[0]}_to_{ends[1]}"
    if axis == -1:
        op, weight, options = "MatMul", weight.T, {}
    elif rank == 2:
        op, options = "Gemm", {"transB": 1}
    else:
        op, weight, options = "Conv", weight.reshape(*weight.shape, *[1] * (rank - 2)), {}
    tensor = numpy_helper.from_array(np.ascontiguousarray(weight), f"{name}_weight")
    graph.initializer.append(tensor)
    inputs = [ends[0], tensor.name]
    if op == "Gemm":  # the third input is optional only since opset 11
        graph.initializer.append(numpy_helper.from_array(np.zeros(len(weight), np.float32), f"{name}_bias"))
        inputs.append(f"{name}_bias")
    return helper.make_node(op, inputs, [ends[1]], name=name, **options)


def _channels(value: onnx.ValueInfoProto, axis: int) -> int:
    """Number of channels of a float tensor that a layer can make or read; 0 of any other."""
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    fits = value.type.HasField("tensor_type") and tensor.elem_type == TensorProto.FLOAT and 2 <= len(dims) <= 5
    size = dims[axis].dim_value if fits else 0
    return size if 0 < size <= _WIDEST else 0


def _with_constants(case: Case, positions: Sequence[int]) -> Case:
    """Give these inputs the values that the case has for them, where initializers can hold them."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = _free_inputs(case.model)
    gone = set()
    for position in positions:
        value = case.values[position]
        if value is None or isinstance(value, list) or not inputs[position].type.HasField("tensor_type"):
            continue
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = inputs[position].name
        gone.add(position)
    names = {inputs[position].name for position in gone}
    if model.ir_version >= 4:
        kept = [value for value in case.model.graph.input if value.name not in names]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    values = tuple(value for position, value in enumerate(case.values) if position not in gone)
    return replace(case, model=model, values=values)
