"""What every operator rule links and what it freezes, seen from a convolution on each side of the operator."""

from __future__ import annotations

import importlib
import pkgutil
import re

import onnx
import pytest
from onnx import TensorProto, helper

from tests.analysis.operator_cases import (
    FREEZE,
    KEEP,
    PLAIN,
    Step,
    analyse,
    between,
    segment_of,
)
from tests.analysis.rules.cases import OTHER_AXES
from tests.builders import Net, check_emission, prune
from ucpe_onnx.analysis import rules
from ucpe_onnx.analysis.rules import RULES, TAKES_CONSTANT_DATA
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import ModelError


@pytest.mark.parametrize("op_type", KEEP)
def test_passes_channels_on(op_type: str) -> None:
    opset = 20 if op_type in ("Gelu",) else 18
    model, traced = between(KEEP[op_type], opset)
    assert op_type in {node.op_type for node in model.graph.node}
    consumer = traced.consumers["b"]
    assert consumer.prunable.all(), segment_of(traced, "a").reasons
    assert consumer.slots.tolist() == list(range(8))
    assert "a" in traced.segments[consumer.segment].producers


UNDEFINED = {"Log", "Sqrt", "Acosh", "Acos", "Asin", "Atanh", "Pow", "Div", "Mod", "ReduceLogSum"}
"""These make NaN of random numbers."""


@pytest.mark.parametrize("op_type", sorted(set(KEEP) - UNDEFINED))
def test_emission_of_what_passes(op_type: str) -> None:
    model, _ = between(KEEP[op_type], 20 if op_type in ("Gelu",) else 18)
    kept = 4 if op_type == "Split" else 3  # one channel of each part must stay
    emitted = check_emission(model, {"b": [6, 3, 4]}, target=PLAIN)
    weights = {tensor.name: tensor for tensor in emitted.graph.initializer}
    nodes = {node.name: node for node in emitted.graph.node}
    assert weights[nodes["a"].input[1]].dims[0] == kept
    assert weights[nodes["b"].input[1]].dims[1] == kept


@pytest.mark.parametrize("case", FREEZE)
def test_freezes(case: str) -> None:
    step, reason = FREEZE[case]
    _, traced = between(step)
    segment = segment_of(traced, "a")
    assert segment.frozen.all()
    assert any(re.search(reason, found) for found in segment.reasons), segment.reasons


CONTRIBUTED = (
    *("Attention", "FusedConv", "FusedGemm", "FusedMatMul", "GroupQueryAttention"),
    *("MultiHeadAttention", "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
"""In test_contrib.py of the folder rules."""

WITH_TESTS_OF_THEIR_OWN = {
    *("Gemm", "Upsample", "Swish", "Affine", "Crop", "ImageScaler", "MeanVarianceNormalization"),
    *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "DequantizeLinear"),
    *("DepthToSpace", "SpaceToDepth", "Tile", "Einsum", "Gather", "GroupNormalization", "RMSNormalization"),
    *("Attention", "RotaryEmbedding", "GRU", "LSTM", "RNN", "com.microsoft::Gelu", "com.microsoft::QuickGelu"),
    *("com.microsoft::BiasGelu", "ConstantOfShape", "GatherElements", "GatherND"),
    *("Scatter", "ScatterElements", "ScatterND"),
    *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SplitToSequence", "DeformConv"),
    *("ParametricSoftplus", "Scale", "ScaledTanh", "SimplifiedLayerNormalization", "com.microsoft::ScaledSiLU"),
    *(f"com.microsoft::{op}" for op in CONTRIBUTED),
    *(op for op in RULES if op.startswith("ucpe.bodies::")),
    *("com.microsoft::FastGelu", "com.microsoft::QGemm", "com.microsoft::QLinearAdd", "com.microsoft::QLinearMul"),
    *("com.microsoft::QLinearAveragePool", "com.microsoft::QLinearGlobalAveragePool", "com.microsoft::QLinearConcat"),
    *("com.microsoft::QLinearLeakyRelu", "com.microsoft::QLinearSigmoid", "ReverseSequence"),
}
"""Most of them in the folder rules."""


def test_every_rule_has_a_case() -> None:
    """An operator rule comes with a test."""
    in_cases = {node.op_type for step in KEEP.values() for node in between(step, 20)[0].graph.node} | set(KEEP)
    in_cases |= {name.split()[0] for name in FREEZE} | set(OTHER_AXES) | WITH_TESTS_OF_THEIR_OWN
    assert set(RULES) <= in_cases, set(RULES) - in_cases


def test_registry_is_the_disjoint_union_of_its_modules() -> None:
    modules = [
        importlib.import_module(f"{rules.__name__}.{found.name}") for found in pkgutil.iter_modules(rules.__path__)
    ]
    modules = [module for module in modules if hasattr(module, "RULES")]
    assert sum(len(module.RULES) for module in modules) == len(RULES)
    assert dict(RULES) == {op: rule for module in modules for op, rule in module.RULES.items()}


def test_rules_are_for_operators_that_there_are() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    newer = {"SimplifiedLayerNormalization"}  # onnxruntime's own, though it stands in the domain of onnx
    newer |= {"Swish", "RMSNormalization", "Attention", "RotaryEmbedding"}  # which older versions of onnx don't know
    newer |= {"Affine", "Crop", "ImageScaler"}  # and those of its first years that newer ones have forgotten
    newer |= {"ParametricSoftplus", "Scale", "ScaledTanh"}
    assert {op for op in set(RULES) - known - newer if not op.startswith(("com.microsoft", "ucpe.bodies"))} == set()
    assert set(RULES) >= TAKES_CONSTANT_DATA
    assert all(callable(rule) and rule.__doc__ for rule in RULES.values())


# What the analysis must not touch


def test_initializers_that_callers_may_override_count_as_constants() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    y = net.op("Add", a, net.weight(net.normal(1, 4, 1, 1), "offset"))
    model = net.output(net.conv(y, 2, name="b")).model()
    model.graph.input.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, [1, 4, 1, 1]))
    emitted = check_emission(model, {"b": [1, 2]}, target=PLAIN)
    (declared,) = [value for value in emitted.graph.input if value.name == "offset"]
    assert [dim.dim_value for dim in declared.type.tensor_type.shape.dim] == [1, 2, 1, 1]


def test_malformed_nodes_are_reported_not_raised() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    y = net.op("Transpose", a, perm=[0, 1, 2, 3])
    model = onnx.shape_inference.infer_shapes(net.output(net.conv(y, 2, name="b")).model())
    (node,) = [node for node in model.graph.node if node.op_type == "Transpose"]
    node.attribute[0].CopyFrom(helper.make_attribute("perm", 3))
    (reason,) = [r for r in segment_of(trace(model), "a").reasons if "Transpose" in r]
    assert reason.startswith("malformed node (TypeError: ") and reason.endswith("): Transpose at Transpose_1")


def test_nodes_of_another_domain_freeze_what_they_touch() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    (y,) = net.ops("Relu", a, domain="com.example", shapes=[(1, 4, 4, 4)])
    model = net.output(net.conv(y, 2, name="b")).model()
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4, 4, 4]))
    traced = trace(model)
    assert not traced.consumers["b"].prunable.any()
    assert any("operator without a rule: com.example::Relu" in r for r in segment_of(traced, "a").reasons)


def test_slots_of_one_producer_are_its_output_channels() -> None:
    """Also where a reader that comes first sees them in another order."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    first, second = net.split(a, [2, 4])
    traced = analyse(net, net.conv(net.op("Concat", second, first, axis=1), 2, name="b"), net.conv(a, 1, name="c"))
    assert segment_of(traced, "a").producers == ("a",)
    assert traced.consumers["b"].slots.tolist() == [2, 3, 4, 5, 0, 1]
    assert traced.consumers["c"].slots.tolist() == list(range(6))


def test_sparse_initializers_stay() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    y = net.op("Add", a, net.input("sparse", (4, 1, 1)))
    model = onnx.shape_inference.infer_shapes(net.output(net.conv(y, 2, name="b")).model())
    del model.graph.input[1]
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [2], [0, 3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 1, 1]))
    assert not trace(model).consumers["b"].prunable.any()
    model.graph.value_info.append(helper.make_tensor_value_info("sparse", TensorProto.FLOAT, [4, 1, 1]))
    assert "sparse initializer sparse" in segment_of(trace(model), "a").reasons
    assert not trace(model).consumers["b"].prunable.any()


# What is not known


@pytest.mark.parametrize("op_type", KEEP)
def test_tensors_of_unknown_rank_are_left_alone(op_type: str) -> None:
    """Each operator behind a node of which nobody knows what it makes."""
    model, _ = between(KEEP[op_type], 20 if op_type in ("Gelu",) else 18)
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    traced = trace(model)
    assert not any(consumer.prunable.any() for consumer in traced.consumers.values())
    assert all(segment.frozen.all() and segment.reasons for segment in traced.segments)
    emitted = prune(model, {})[2]
    assert [node.op_type for node in emitted.graph.node] == [node.op_type for node in model.graph.node]


def at_run_time(op_type: str, shape: tuple[int, ...], *parameters: tuple[int, ...]) -> Step:
    """An operator whose parameters are graph inputs."""

    def step(net: Net, x: str) -> str:
        names = [net.input(f"p{i}", p, TensorProto.INT64) for i, p in enumerate(parameters)]
        return net.ops(op_type, x, *names, shapes=[shape])[0]

    return step


RUN_TIME = {
    "Squeeze": at_run_time("Squeeze", (8, 4, 4, 1), (1,)),
    "Unsqueeze": at_run_time("Unsqueeze", (1, 8, 4, 4), (1,)),
    "Pad": at_run_time("Pad", (1, 8, 4, 4), (8,)),
    "ReduceMean": at_run_time("ReduceMean", (1, 8, 1, 1), (1,)),
    "Expand": at_run_time("Expand", (1, 8, 4, 4), (4,)),
}


@pytest.mark.parametrize("op_type", RUN_TIME)
def test_parameters_at_run_time(op_type: str) -> None:
    _, traced = between(RUN_TIME[op_type])
    assert segment_of(traced, "a").frozen.all()
    assert any(f"{op_type} at" in reason for reason in segment_of(traced, "a").reasons)


def test_lengths_of_a_split_at_run_time_are_known_by_what_they_make() -> None:
    """Shape inference says how long the parts are; the emitted lengths are constants."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    lengths = net.input("lengths", (2,), TensorProto.INT64)
    parts = net.ops("Split", a, lengths, outputs=2, axis=1, shapes=[(1, 3, 4, 4), (1, 5, 4, 4)])
    model = net.output(*[net.conv(part, 2, name=f"b{i}") for i, part in enumerate(parts)]).model()
    for part, size in zip(parts, (3, 5), strict=True):
        model.graph.value_info.append(helper.make_tensor_value_info(part, TensorProto.FLOAT, [1, size, 4, 4]))
    assert trace(model).consumers["b1"].slots.tolist() == [3, 4, 5, 6, 7]
    _, _, emitted = prune(model, {"b0": [0], "b1": [4]}, target=PLAIN)
    (node,) = [node for node in emitted.graph.node if node.op_type == "Split"]
    assert [onnx.numpy_helper.to_array(t).tolist() for t in emitted.graph.initializer if t.name == node.input[1]] == [
        [1, 1]
    ]


def test_matmul_with_a_constant_that_is_no_matrix() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("MatMul", a, net.weight(net.normal(4)), name="m")
    assert net.shapes[y] == (1, 8, 4)
    traced = analyse(net, y)
    assert "m" not in traced.consumers
    assert any("operands of an unsupported form: MatMul" in reason for reason in segment_of(traced, "a").reasons)


def test_matmul_of_activations_with_broadcast_batches() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("MatMul", a, net.input("z", (1, 1, 4, 4)))
    check_emission(net.output(net.conv(y, 2, name="b")).model(), {"b": [1, 6]}, target=PLAIN)


def test_matmul_of_activations_with_equal_batches_carries_channels() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    model = net.output(net.conv(net.op("MatMul", a, net.op("Relu", a)), 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [1, 6]}, target=PLAIN)


def test_batch_and_spatial_lengths_may_be_unknown() -> None:
    net = Net()
    a = net.conv(net.input("x", ("N", 3, "H", "W")), 8, 3, name="a")
    y = net.op("Add", net.op("Relu", a), net.conv(a, 8, 3, name="b"))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.batch_norm(y)))
    model = net.output(net.gemm(pooled, 2, name="g")).model()
    traced = trace(model)
    assert traced.consumers["b"].prunable.all() and traced.consumers["g"].prunable.all()
    check_emission(model, {"b": [1, 6], "g": [0, 1, 6]}, target=PLAIN)


def test_reshape_with_an_unknown_batch() -> None:
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 4, 4)), 8, name="a")
    length = net.op("Gather", net.op("Shape", a), net.ints(0), axis=0)
    target = net.op("Concat", length, net.ints(8, 16), axis=0)
    (y,) = net.ops("Reshape", a, target, shapes=[("N", 8, 16)])
    model = net.output(net.op("MatMul", net.op("Transpose", y, perm=[0, 2, 1]), net.weight(net.normal(8, 2)), name="m"))
    assert trace(model.model()).consumers["m"].prunable.all()
    check_emission(model.model(), {"m": [1, 6]}, target=PLAIN)


def test_reshape_with_too_many_unknown_lengths() -> None:
    net = Net()
    a = net.conv(net.input("x", ("N", 3, "H", 4)), 8, name="a")
    target = net.op("Concat", net.slice(net.op("Shape", a), [0], [0], [3]), net.ints(2, 2), axis=0)
    (y,) = net.ops("Reshape", a, target, shapes=[("N", 8, "H", 2, 2)])
    traced = analyse(net, net.reshape(y, 0, 0, 0, 4), net.conv(a, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()


def test_shape_in_parts() -> None:
    """Only the lengths that somebody uses are fixed: a Shape of the spatial axes does not hold the channels."""
    for options, prunable in (({"start": 2}, True), ({"start": -2}, True), ({"end": 2}, False), ({}, False)):
        net = Net(opset=18)
        a = net.conv(net.input("x", ("N", 3, 4, "W")), 8, name="a")
        product = net.op("ReduceProd", net.op("Shape", a, **options), keepdims=0)
        scaled = net.op("Div", a, net.op("Cast", product, to=TensorProto.FLOAT))
        model = net.output(net.conv(scaled, 2, name="b")).model()
        assert trace(model).consumers["b"].prunable.all() == prunable, options
        check_emission(model, {"b": [1, 6]}, target=PLAIN)


def test_static_lengths_are_written_down_when_channels_go() -> None:
    """What is computed from the number of channels keeps the value that it has in the input model."""
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 4, 4)), 8, name="a")
    count = net.op("Cast", net.op("Gather", net.op("Shape", a), net.ints(1)), to=TensorProto.FLOAT)
    model = net.output(net.conv(net.op("Mul", a, net.op("Sqrt", count)), 2, name="b")).model()
    emitted = check_emission(model, {"b": [1, 6]}, target=PLAIN)
    assert {node.op_type for node in emitted.graph.node} == {"Conv", "Mul"}
    unchanged = check_emission(model, {"b": list(range(8))}, target=PLAIN)
    assert "Shape" in {node.op_type for node in unchanged.graph.node}


def test_channels_chunked_by_a_computed_half() -> None:
    """PyTorch's chunk, traced: Shape, Gather, Div, and Slice up to there."""
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 4, 4)), 8, name="a")
    half = net.op("Div", net.op("Gather", net.op("Shape", a), net.ints(1)), net.ints(2))
    (first,) = net.ops("Slice", a, net.ints(0), half, net.ints(1), shapes=[("N", 4, 4, 4)])
    (second,) = net.ops("Slice", a, half, net.ints(2**31), net.ints(1), shapes=[("N", 4, 4, 4)])
    model = net.output(net.conv(first, 2, name="b"), net.conv(second, 2, name="c")).model()
    emitted = check_emission(model, {"b": [1], "c": [0, 3]}, target=PLAIN)
    assert {t.name: t for t in emitted.graph.initializer}[emitted.graph.node[0].input[1]].dims[0] == 3


def test_shape_that_is_an_output() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    traced = analyse(net, net.op("Shape", a), net.conv(a, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()


def test_resize_to_sizes() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("Resize", a, "", "", net.ints(1, 8, 6, 6))
    model = net.output(net.conv(y, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [1, 6]}, target=PLAIN)


def test_resize_to_sizes_of_some_axes() -> None:
    net = Net(opset=18)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("Resize", a, "", "", net.ints(6, 6), axes=[2, 3])
    model = net.output(net.conv(y, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [1, 6]}, target=PLAIN)


def test_resize_by_scales_at_run_time() -> None:
    net = Net(opset=18)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    (y,) = net.ops("Resize", a, "", net.input("scales", (4,)), shapes=[(1, 8, 8, 8)])
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert "b" not in traced.consumers or not traced.consumers["b"].prunable.any()


def test_depthwise_convolution_over_an_unknown_number_of_channels() -> None:
    net = Net()
    (y,) = net.ops(
        "Conv", net.input("x", (1, "C", 4, 4)), net.weight(net.normal(4, 1, 1, 1)), group=4, shapes=[(1, 4, 4, 4)]
    )
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()
    assert list(traced.consumers) == ["b"]


def test_constant_data_is_left_alone() -> None:
    """A Conv over a constant that could not be folded away reads no activation."""
    net = Net()
    a = net.op("Conv", net.weight(net.normal(1, 3, 4, 4)), net.input("v", (8, 3, 1, 1)), name="a")
    traced = analyse(net, net.conv(a, 2, name="b"))
    assert list(traced.consumers) == ["b"] and not traced.consumers["b"].prunable.any()


@pytest.mark.parametrize("attribute", ["value_float", "value_floats", "value_int", "value_ints"])
def test_constants_in_short_form(attribute: str) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    number = 3.0 if "float" in attribute else 3
    constant = net.op("Constant", **{attribute: [number] if attribute.endswith("s") else number})
    constant = constant if "float" in attribute else net.op("Cast", constant, to=TensorProto.FLOAT)
    model = net.output(net.conv(net.op("Mul", a, constant), 2, name="b")).model()
    assert trace(model).graph.value(constant).tolist() in (3.0, [3.0])
    check_emission(model, {"b": [1, 2]}, target=PLAIN)


def test_initializers_whose_bytes_do_not_fit() -> None:
    net = Net()
    model = net.output(net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")).model()
    model.graph.initializer[0].raw_data = b"123"
    with pytest.raises(ModelError, match="its data does not fit its shape and type"):
        trace(model).graph.value(model.graph.initializer[0].name)
