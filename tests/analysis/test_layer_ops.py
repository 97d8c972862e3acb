"""The table of operators with weights agrees with ONNX's schemas, the masked reference, and the rules."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as pybind

from ucpe_onnx import masked
from ucpe_onnx.analysis import rules
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.layer_ops import BLOCKED, CONVOLUTIONS, FUSING, LAYER_OPS, Kind, LayerOp, channel_axis
from ucpe_onnx.analysis.quantised import zero_value
from ucpe_onnx.analysis.rules import RULES
from ucpe_onnx.analysis.trace import trace

EXCEPTIONS = {
    "com.microsoft::Attention": "one weight makes queries, keys and values, of which heads stay",
    "DeformConv": "its offsets say where it reads: it is refitted and summed up like no convolution",
    "Einsum": "its equation names the axes",
    "GRU": "gates are stacked on one axis, and a second weight reads the state",
    "Gather": "an embedding is looked up by indices, which have no channels",
    "LSTM": "gates are stacked on one axis, and a second weight reads the state",
    "RNN": "the hidden units are read by a second weight",
}
"""Operators whose rules consume or produce by a weight, and that are not in the table."""

OPSET = 21

every_op = pytest.mark.parametrize("op", LAYER_OPS.values(), ids=LAYER_OPS)
integers = pytest.mark.parametrize(
    "op", [op for op in LAYER_OPS.values() if not op.real], ids=[n for n, op in LAYER_OPS.items() if not op.real]
)


def parameters_of(op: LayerOp) -> list[tuple[str, bool]]:
    """The inputs that the operator's schema lists, in lower case, each with whether it may be left out."""
    domain = op.op_type.rpartition("::")[0]
    if domain:
        schemas = [s for s in pybind.get_all_operator_schema() if (s.domain, s.name) == (domain, op.name)]
        optional = pybind.schemadef.OpSchema.FormalParameterOption.Optional if schemas else None
    else:
        schemas = [onnx.defs.get_schema(op.name, OPSET)]
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    if not schemas:
        pytest.skip(f"this onnxruntime does not list {op.op_type}")
    return [(parameter.name.lower(), parameter.option == optional) for parameter in schemas[-1].inputs]


# ONNX's schemas


@every_op
def test_inputs_are_what_the_schema_calls_them(op: LayerOp) -> None:
    names = [name for name, _ in parameters_of(op)]
    data, weight = names[op.data], names[op.weight]
    assert (data, weight) in {("x", "w"), ("a", "b")}
    expected = {op.data: data, op.weight: weight}
    codings = {data: op.data_coding, weight: op.weight_coding, "y": op.output_coding}
    for operand, coding in codings.items():
        if coding.scale is not None:
            expected[coding.scale] = f"{operand}_scale"
        if coding.zero_point is not None:
            expected[coding.zero_point] = f"{operand}_zero_point"
    if op.added is not None:
        expected[op.added] = "z"
    if op.bias is not None:
        expected[op.bias] = names[op.bias]
        assert names[op.bias] in ("b", "c", "bias")
    assert expected == dict(enumerate(names)), "every input of the schema stands in the table"


@every_op
def test_a_bias_may_be_left_out(op: LayerOp) -> None:
    assert op.bias is None or parameters_of(op)[op.bias][1]
    if op.bias_optional_since > 1:
        before = onnx.defs.get_schema(op.name, op.bias_optional_since - 1)
        assert before.inputs[op.bias or 0].option == onnx.defs.OpSchema.FormalParameterOption.Single


@every_op
def test_kind_by_the_attributes_of_the_schema(op: LayerOp) -> None:
    float_form = onnx.defs.get_schema(op.float_form.rpartition("::")[2].removeprefix("Fused"), OPSET)
    attributes = set(float_form.attributes)
    kind = Kind.CONVOLUTION if "group" in attributes else Kind.GEMM if "transB" in attributes else Kind.PRODUCT
    assert op.kind is kind
    assert op.transposed == ("output_padding" in attributes)


@every_op
def test_an_operator_is_linear_if_its_data_are_real_numbers_and_stay_so(op: LayerOp) -> None:
    assert op.real == (op.float_form == op.op_type)
    assert op.linear == (op.real and not op.activates)
    floats = LAYER_OPS[op.float_form]
    assert floats.real
    assert (floats.kind, floats.transposed) == (op.kind, op.transposed)
    assert set(op.scalars).isdisjoint(op.followers)


def test_sets() -> None:
    assert BLOCKED < FUSING < CONVOLUTIONS < LAYER_OPS.keys()


# Axes, by the shapes that onnx infers


SHAPES = {Kind.CONVOLUTION: (1, 4, 3, 3), Kind.GEMM: (2, 4), Kind.PRODUCT: (2, 4)}
MADE = 6


def model_of(op: LayerOp, *, transposed: int = 0, left: bool = False, zeros: Sequence[int] | None = None) -> Any:
    """One node of an operator with a constant weight that reads 4 channels and makes 6, as a model.

    Args:
        op: the operator.
        transposed: ``transB`` of a Gemm.
        left: the weight is the left one of a product.
        zeros: zero point of the weight for each output channel; one for all if it is left out.
    """
    attributes = {"transB": transposed} if op.kind is Kind.GEMM else {}
    at = op.data if left else op.weight
    reads, makes = op.weight_axes(attributes, at)
    sizes = {reads: 4, makes: MADE}
    shape = (sizes[0], sizes[1], *((1, 1) if op.convolution else ()))
    kind = np.float32 if op.real else np.uint8
    weight = np.random.default_rng(0).integers(1, 99, shape).astype(kind)
    inputs = [""] * (1 + max(op.data, op.weight, *op.scalars, *op.weight_coding.inputs))
    stored = {"weight": weight}
    for name, coding in (("x", op.data_coding), ("w", op.weight_coding), ("y", op.output_coding)):
        points = zeros if name == "w" and zeros is not None else [3]
        point = np.array(points if len(points) > 1 else points[0], np.uint8)
        for index, value in ((coding.scale, np.full(point.shape, 0.5, np.float32)), (coding.zero_point, point)):
            if index is not None:
                stored[f"input{index}"] = value
                inputs[index] = f"input{index}"
    inputs[at] = "weight"
    inputs[op.weight if left else op.data] = "data"
    data = SHAPES[op.kind][::-1] if left else SHAPES[op.kind]
    domain = op.op_type.rpartition("::")[0]
    node = helper.make_node(op.name, inputs, ["made"], name="layer", domain=domain, **attributes)
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    axes = [None] * len(data)
    into = TensorProto.INT32 if op.op_type.endswith("Integer") else elem_type
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("data", elem_type, data)],
        [helper.make_tensor_value_info("made", into, axes)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def forms() -> list[Any]:
    """Every operator, with each way in which it may take its weight."""
    cases = []
    for op in LAYER_OPS.values():
        cases.append(pytest.param(op, 0, False, id=op.op_type))
        if op.kind is Kind.GEMM:
            cases.append(pytest.param(op, 1, False, id=f"{op.op_type}, transB"))
        if op.kind is Kind.PRODUCT and op.real:
            cases.append(pytest.param(op, 0, True, id=f"{op.op_type}, weight on the left"))
    return cases


@pytest.mark.parametrize("op, transposed, left", forms())
def test_axes_are_those_of_the_operator(op: LayerOp, transposed: int, left: bool) -> None:
    """The analysis finds 4 channels read and 6 made, on the axes that the table says."""
    traced = trace(model_of(op, transposed=transposed, left=left))
    use = traced.consumers["layer"].use
    (made,) = traced.producers
    assert traced.consumers["layer"].channels == 4
    assert (use.weight_axis, made.weight_axis) == op.weight_axes(use.node.attributes, use.weight_input)
    shape = traced.graph.shape("made")
    assert shape is not None and shape[made.tensor_axis[1]] == MADE
    if not left:
        rank = len(SHAPES[op.kind])
        assert channel_axis(op.op_type, rank) == use.tensor_axis[1] == made.tensor_axis[1]


# The masked reference, which has a table of its own


def test_the_reference_knows_the_same_operators() -> None:
    known = {op.name: op.weight for op in LAYER_OPS.values()}
    apart = {name.rpartition("::")[2] for name in EXCEPTIONS}
    assert {name: at for name, at in masked._WEIGHT_INPUT.items() if name not in apart} == known


@pytest.mark.parametrize("op, transposed, left", forms())
def test_the_reference_says_the_same_of_the_weight(op: LayerOp, transposed: int, left: bool) -> None:
    model = model_of(op, transposed=transposed, left=left)
    weight = masked._Weights(model).of(0)
    use = trace(model).consumers["layer"].use
    assert weight is not None
    assert (weight.node, weight.input) == (0, use.weight_input) == (0, op.data if left else op.weight)
    assert (weight.tensor, weight.axis) == ("weight", use.weight_axis)
    assert weight.channels == 4


@integers
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("zeros", [[7], list(range(MADE))], ids=["one", "per channel"])
def test_the_reference_says_the_same_of_zero(op: LayerOp, transposed: int, zeros: list[int]) -> None:
    model = model_of(op, transposed=transposed, zeros=zeros)
    weight = masked._Weights(model).of(0)
    shape = numpy_helper.to_array(model.graph.initializer[0]).shape
    assert weight is not None
    zero = zero_value(GraphView(model), (0, op.weight), len(shape))
    assert np.array_equal(np.broadcast_to(weight.zero, shape), np.broadcast_to(zero, shape))
    assert sorted(set(zero.reshape(-1).tolist())) == zeros


# The rules


def test_every_operator_that_reads_or_makes_channels_by_a_weight_is_in_the_table() -> None:
    """By the text of the rule's module, as far as its functions are reached from the rule."""
    found = {op for op, rule in RULES.items() if _uses_weights(rule.__module__, rule.__name__)}
    assert found == LAYER_OPS.keys() | EXCEPTIONS.keys()


def _uses_weights(module: str, function: str) -> bool:
    """Whether a function of a module of rules, or one of the module that it calls, consumes or produces."""
    functions = vars(getattr(rules, module.rpartition(".")[2]))
    seen: set[str] = set()
    todo = [function]
    while todo:
        name = todo.pop()
        seen.add(name)
        names = set(functions[name].__code__.co_names)
        if names & {"consume", "produce"}:
            return True
        todo += [n for n in names - seen if inspect.isfunction(functions.get(n)) and functions[n].__module__ == module]
    return False
