"""What every operator rule links and what it freezes, seen from a convolution on each side of the operator."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.builders import Net, check_emission, prune
from ucpe_onnx.analysis import rules
from ucpe_onnx.analysis.rules import RULES, convolution, elementwise, linear, normalization, pooling, reduction, shape
from ucpe_onnx.analysis.trace import _TAKES_CONSTANT_DATA, Consumer, Segment, Trace, trace
from ucpe_onnx.errors import ModelError
from ucpe_onnx.planning import Target

Step = Callable[[Net, str], str]

PLAIN = Target(blocked=False)
"""A runtime for which widths are not rounded up, which would keep most of so few channels."""

FLOAT_UNARY = [
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh",
    "ThresholdedRelu", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
]  # fmt: skip
FLOAT_BINARY = ["Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum"]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
LOGIC = ["And", "Or", "Xor"]
BITS = ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]
REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


def cast(net: Net, x: str, to: int = TensorProto.FLOAT) -> str:
    return net.op("Cast", x, to=to)


def through(op_type: str, kind: int, inputs: int = 1) -> Step:
    """An operator on tensors of another element type, between two Casts."""
    return lambda net, x: cast(net, net.op(op_type, *[cast(net, x, kind)] * inputs))


def with_parameters(op_type: str, count: int) -> Step:
    def step(net: Net, x: str) -> str:
        return net.op(op_type, x, *[net.weight(np.abs(net.normal(net.shapes[x][1])) + 0.5) for _ in range(count)])

    return step


def resized(net: Net, x: str) -> str:
    return net.op("Resize", x, "", net.weight(np.array([1, 1, 2, 2], dtype=np.float32)))


def layer_norm(axis: int) -> Step:
    return lambda net, x: net.op("LayerNormalization", x, net.weight(net.normal(*net.shapes[x][axis:])), axis=axis)


KEEP: dict[str, Step] = (
    {name: lambda net, x, name=name: net.op(name, x) for name in FLOAT_UNARY}
    | {name: lambda net, x, name=name: net.op(name, x, x) for name in FLOAT_BINARY}
    | {name: lambda net, x, name=name: cast(net, net.op(name, x, x)) for name in COMPARISONS}
    | {name: through(name, TensorProto.BOOL, 2) for name in LOGIC}
    | {name: through(name, TensorProto.INT32, 2) for name in BITS}
    | {f"Reduce{name}": lambda net, x, name=name: net.reduce(f"Reduce{name}", x, [2, 3]) for name in REDUCTIONS}
    | {name: lambda net, x, name=name: cast(net, net.op(name, x, axis=2)) for name in ("ArgMax", "ArgMin")}
    | {
        "Cast": lambda net, x: cast(net, cast(net, x, TensorProto.DOUBLE)),
        "Not": through("Not", TensorProto.BOOL),
        "BitwiseNot": through("BitwiseNot", TensorProto.INT32),
        "Mod": through("Mod", TensorProto.INT32, 2),
        "IsInf": lambda net, x: cast(net, net.op("IsInf", x)),
        "IsNaN": lambda net, x: cast(net, net.op("IsNaN", x)),
        "Clip": lambda net, x: net.op("Clip", x, net.constant(0.0), net.constant(6.0)),
        "Where": lambda net, x: net.op("Where", cast(net, x, TensorProto.BOOL), x, x),
        "BatchNormalization": with_parameters("BatchNormalization", 4),
        "InstanceNormalization": with_parameters("InstanceNormalization", 2),
        "LayerNormalization": layer_norm(2),
        "Softmax": lambda net, x: net.op("Softmax", x, axis=-1),
        "LogSoftmax": lambda net, x: net.op("LogSoftmax", x, axis=2),
        "AveragePool": lambda net, x: net.op("AveragePool", x, kernel_shape=[2, 2]),
        "MaxPool": lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2]),
        "LpPool": lambda net, x: net.op("LpPool", x, kernel_shape=[2, 2]),
        "Resize": resized,
        "Transpose": lambda net, x: net.op("Transpose", x, perm=[0, 1, 3, 2]),
        "Squeeze": lambda net, x: net.unsqueeze(net.squeeze(net.op("GlobalMaxPool", x), [2, 3]), [2, 3]),
        "Unsqueeze": lambda net, x: net.squeeze(net.unsqueeze(x, [1]), [1]),
        "Flatten": lambda net, x: net.unsqueeze(net.op("Flatten", net.op("GlobalMaxPool", x)), [2, 3]),
        "Reshape": lambda net, x: net.reshape(net.reshape(x, 1, 8, 16), 0, 0, 4, 4),
        "Pad": lambda net, x: net.pad(x, [0, 0, 1, 1, 0, 0, 1, 1], "reflect"),
        "Slice": lambda net, x: net.slice(x, [2], [1], [3]),
        "Split": lambda net, x: net.op("Concat", *net.split(x, [3, 5]), axis=1),
        "Concat": lambda net, x: net.op("Concat", x, x, axis=3),
        "Conv": lambda net, x: net.depthwise(x),
        "ConvTranspose": lambda net, x: net.op("ConvTranspose", x, net.weight(net.normal(8, 1, 2, 2)), group=8),
        "Shape": lambda net, x: net.ops("Reshape", x, net.op("Shape", x), shapes=[(1, 8, 4, 4)])[0],
        "MatMul": lambda net, x: net.op("MatMul", x, net.weight(net.normal(4, 3))),
    }
)
"""Operators that pass eight channels on as they are, by the operator type that each case is about."""

FREEZE: dict[str, tuple[Step, str]] = {
    "unknown": (lambda net, x: net.op("CumSum", x, net.weight(np.int64(2))), "operator without a rule: CumSum"),
    "LRN": (lambda net, x: net.op("LRN", x, size=3), "channel-mixing op LRN"),
    "Softmax": (lambda net, x: net.op("Softmax", x, axis=1), "channel-mixing op Softmax"),
    "LogSoftmax": (lambda net, x: net.op("LogSoftmax", x, axis=-3), "channel-mixing op LogSoftmax"),
    "LayerNormalization": (layer_norm(1), "channel-mixing op LayerNormalization"),
    "LayerNormalization's mean": (
        lambda net, x: net.ops("LayerNormalization", x, net.weight(net.normal(4)), outputs=2)[0],
        "channel-mixing op LayerNormalization",
    ),
    "BatchNormalization at run time": (
        lambda net, x: net.op("BatchNormalization", x, *[net.reduce("ReduceMean", x, [0, 2, 3], 0)] * 4),
        "statistics computed at run time",
    ),
    "ReduceMean": (lambda net, x: net.op("Add", x, net.reduce("ReduceMean", x, [1])), "reduced axis of ReduceMean"),
    "ReduceMax of all": (lambda net, x: net.op("Mul", x, net.op("ReduceMax", x)), "reduced axis of ReduceMax"),
    "ReduceSum of unknown axes": (
        lambda net, x: net.op(
            "Add", x, net.ops("ReduceSum", x, net.input("axes", (1,), TensorProto.INT64), shapes=[(1, 8, 1, 1)])[0]
        ),
        "axes computed at run time",
    ),
    "ArgMax": (
        lambda net, x: net.op("Add", x, cast(net, net.op("ArgMax", x, axis=1))),
        "reduced axis of ArgMax",
    ),
    "MaxPool's indices": (
        lambda net, x: net.ops("MaxPool", x, outputs=2, kernel_shape=[2, 2])[0],
        "pooling indices",
    ),
    "Slice with a step": (lambda net, x: net.slice(x, [1], [0], [8], [2]), "cut axis of Slice"),
    "Slice at run time": (
        lambda net, x: net.ops(
            "Slice", x, net.input("start", (1,), TensorProto.INT64), net.ints(9), net.ints(1), shapes=[(1, 8, 4, 4)]
        )[0],
        "cut axis of Slice",
    ),
    "Pad that repeats": (
        lambda net, x: net.slice(net.pad(x, [0, 1, 0, 0, 0, 0, 0, 0], "edge"), [1], [1], [9]),
        "padded axis of Pad",
    ),
    "Pad that crops": (
        lambda net, x: net.pad(x, [0, -1, 0, 0, 0, 1, 0, 0]),
        "padded axis of Pad",
    ),
    "Resize of channels": (
        lambda net, x: net.op("Resize", x, "", net.weight(np.array([1, 2, 1, 1], dtype=np.float32))),
        "resized axis of Resize",
    ),
    "Resize that crops": (
        lambda net, x: net.op(
            "Resize",
            x,
            net.weight(np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], dtype=np.float32)),
            net.weight(np.array([1, 1, 2, 2], dtype=np.float32)),
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        "crop or unknown rank",
    ),
    "Reshape that splits": (
        lambda net, x: net.reshape(net.reshape(x, 1, 2, 4, 4, 4), 1, 8, 4, 4),
        "axes merged or split by Reshape",
    ),
    "grouped Conv": (lambda net, x: net.conv(x, 8, groups=2), r"channels bound to groups: Conv \(groups=2\)"),
    "grouped ConvTranspose": (
        lambda net, x: net.op("ConvTranspose", x, net.weight(net.normal(8, 2, 1, 1)), group=4),
        r"channels bound to groups: ConvTranspose \(groups=4\)",
    ),
    "depthwise ConvTranspose with a multiplier": (
        lambda net, x: net.op("ConvTranspose", x, net.weight(net.normal(8, 2, 1, 1)), group=8),
        "depthwise multiplier of ConvTranspose",
    ),
    "Conv with a weight at run time": (
        lambda net, x: net.op("Conv", x, net.op("Add", net.input("v", (8, 8, 1, 1)), net.constant(0.0))),
        "weight computed at run time",
    ),
    "Conv that gets channels as its weight": (
        lambda net, x: net.op("Conv", net.input("v", (1, 1, 8, 8)), net.op("Transpose", x, perm=[1, 0, 2, 3])),
        "weight computed at run time",
    ),
    "MatMul of activations": (
        lambda net, x: net.op(
            "MatMul", net.op("Transpose", x, perm=[0, 2, 3, 1]), net.op("Transpose", x, perm=[0, 2, 1, 3])
        ),
        "axis contracted between two activations",
    ),
    "Gemm of activations": (
        lambda net, x: net.op("Gemm", net.reshape(x, 8, 16), net.reshape(x, 16, 8)),
        "operand computed at run time: Gemm",
    ),
    "length used at run time": (
        lambda net, x: net.op("Mul", x, cast(net, net.op("Gather", net.op("Shape", x), net.ints(1)))),
        "length used at run time: Shape",
    ),
    "length of the whole shape": (
        lambda net, x: net.op("Mul", x, cast(net, net.op("ReduceProd", net.op("Shape", x)))),
        "length used at run time: Shape",
    ),
    "graph output": (lambda net, x: net.output(x) and x, "graph output t"),
    "subgraph": (
        lambda net, x: net.output(_if(net, x)) and x,
        "is read inside of a subgraph",
    ),
    "no reader": (lambda net, x: net.op("Relu", net.input("z", (1, 8, 4, 4))), "no consumer with a constant weight"),
}
"""Steps that fix the eight channels of the convolution before, with the reason that the user reads."""


def _if(net: Net, x: str) -> str:
    bodies = []
    for op_type in ("Relu", "Neg"):
        out = helper.make_tensor_value_info(f"{op_type}_of_{x}", TensorProto.FLOAT, net.shapes[x])
        bodies.append(helper.make_graph([helper.make_node(op_type, [x], [out.name])], "body", [], [out]))
    condition = net.input("condition", (), TensorProto.BOOL)
    return net.op("If", condition, shapes=[net.shapes[x]], then_branch=bodies[0], else_branch=bodies[1])


def between(step: Step, opset: int = 18) -> tuple[onnx.ModelProto, Trace]:
    """x -> convolution ``a`` -> step -> convolution ``b``."""
    net = Net(opset=opset, ir_version=8)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    b = step(net, a)
    if len(net.shapes[b]) != 4:
        b = net.reshape(b, *net.shapes[b], 1)
    model = net.output(net.conv(b, 4, name="b")).model()
    return model, trace(model)


def segment_of(traced: Trace, producer: str) -> Segment:
    (found,) = [segment for segment in traced.segments if producer in segment.producers]
    return found


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


def test_every_rule_has_a_case() -> None:
    """An operator rule comes with a test."""
    in_cases = {node.op_type for step in KEEP.values() for node in between(step, 20)[0].graph.node} | set(KEEP)
    in_cases |= {name.split()[0] for name in FREEZE} | {"Gemm", "Upsample", "Swish"}  # these have tests of their own
    assert set(RULES) <= in_cases, set(RULES) - in_cases


def test_registry_is_the_disjoint_union_of_its_modules() -> None:
    modules = (convolution, linear, normalization, elementwise, pooling, reduction, shape)
    assert sum(len(module.RULES) for module in modules) == len(RULES)
    assert dict(RULES) == {op: rule for module in modules for op, rule in module.RULES.items()}
    assert rules.__all__ == ["RULES"]


def test_rules_are_for_operators_of_the_standard_domain() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(RULES) - known <= {"Swish"}  # of opset 24, which older versions of onnx don't know
    assert set(RULES) >= _TAKES_CONSTANT_DATA
    assert all(callable(rule) and rule.__doc__ for rule in RULES.values())


# Consumers and producers


def analyse(net: Net, *outputs: str) -> Trace:
    return trace(net.output(*outputs).model())


def only(traced: Trace, op_type: str) -> Consumer:
    (found,) = [c for c in traced.consumers.values() if c.use.node.op_type == op_type]
    return found


def test_conv_reads_axis_1_of_its_weight_and_makes_axis_0() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 5, 3, name="a")
    traced = analyse(net, net.conv(x, 2, name="b"))
    a, b = traced.consumers["a"].use, traced.consumers["b"].use
    assert (a.weight_axis, a.groups, a.tensor_axis) == (1, 1, ("x", 1))
    assert traced.producers[0].weight_axis == 0 and traced.producers[0].tensor_axis == b.tensor_axis
    assert traced.consumers["a"].channels == 3 and not traced.consumers["a"].prunable.any()
    assert traced.segments[0].reasons == ("graph input x",)


def test_conv_transpose_reads_axis_0_and_makes_axis_1() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    y = net.op("ConvTranspose", x, net.weight(net.normal(6, 4, 2, 2)), name="t")
    traced = analyse(net, net.conv(y, 2, name="b"))
    use = traced.consumers["t"].use
    assert (use.weight_axis, traced.consumers["t"].channels) == (0, 6)
    assert traced.consumers["t"].prunable.all() and traced.consumers["b"].prunable.all()
    assert [p.weight_axis for p in traced.producers] == [0, 1, 0]


def test_grouped_conv_is_a_consumer_that_keeps_everything() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8)
    traced = analyse(net, net.conv(x, 4, groups=4, name="g"))
    assert (traced.consumers["g"].channels, traced.consumers["g"].prunable.any()) == (8, False)


@pytest.mark.parametrize("op_type, weight", [("Conv", (8, 2, 1, 1)), ("ConvTranspose", (4, 4, 1, 1))])
def test_channels_of_a_grouped_consumer_of_a_dynamic_axis(op_type: str, weight: tuple[int, ...]) -> None:
    net = Net()
    x = net.input("x", (1, "C", 4, 4))
    (y,) = net.ops(op_type, x, net.weight(net.normal(*weight)), group=2, name="g", shapes=[(1, 8, 4, 4)])
    traced = analyse(net, y)
    assert traced.consumers["g"].channels == 4
    assert "dynamic channel axis" in traced.segments[traced.consumers["g"].segment].reasons[0]


def test_depthwise_multiplier_spreads_each_channel() -> None:
    net = Net()
    x = net.depthwise(net.conv(net.input("x", (1, 3, 4, 4)), 4), multiplier=2)
    traced = analyse(net, net.conv(x, 2, name="b"))
    assert traced.consumers["b"].slots.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert traced.consumers["b"].prunable.all()
    assert len(traced.consumers) == 2  # the depthwise convolution is none


def test_computed_bias_fixes_the_outputs() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    bias = net.op("Relu", net.input("b", (5,)))
    y = net.op("Conv", x, net.weight(net.normal(5, 4, 1, 1)), bias, name="c")
    traced = analyse(net, net.conv(y, 2, name="d"))
    assert traced.consumers["c"].prunable.all()
    assert not traced.consumers["d"].prunable.any()
    assert any("bias computed at run time" in r for r in segment_of(traced, "c").reasons)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1,), (1, 5), (4, 1), (4, 5), ()])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    net = Net()
    x = net.op("MatMul", net.input("x", (3, 4) if trans_a else (4, 3)), net.weight(net.normal(4 if trans_a else 3, 6)))
    if trans_a:
        x = net.op("Transpose", net.op("MatMul", net.input("z", (4, 3)), net.weight(net.normal(3, 6))), perm=[1, 0])
    weight = net.weight(net.normal(5, 6) if trans_b else net.normal(6, 5))
    inputs = [x, weight] if bias is None else [x, weight, net.weight(net.normal(*bias))]
    y = net.op("Gemm", *inputs, name="g", transA=trans_a, transB=trans_b)
    model = net.output(net.gemm(y, 2, name="h")).model()
    traced = trace(model)
    g = traced.consumers["g"]
    assert g.use.weight_axis == (1 if trans_b else 0)
    assert g.use.tensor_axis == (x, 0 if trans_a else 1)
    assert (g.channels, g.prunable.all(), traced.consumers["h"].prunable.all()) == (6, True, True)
    check_emission(model, {"g": [1, 4], "h": [2]}, target=PLAIN)
    check_emission(model, {"g": [1, 4], "h": [2]}, target=PLAIN, lowering="gather")


def test_gemm_rows_carry_channels_into_a_bias() -> None:
    """Channels on the rows of a Gemm: its bias has one row for each."""
    net = Net()
    x = net.conv(net.input("x", (1, 3, 2, 2)), 8)
    rows = net.reshape(x, 8, 4)
    y = net.op("Gemm", rows, net.weight(net.normal(4, 6)), net.weight(net.normal(8, 1)))
    model = net.output(net.conv(net.reshape(y, 1, 8, 6, 1), 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [0, 5, 6, 7]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("side, axis, weight_axis", [("right", 2, 0), ("left", 1, 1)])
def test_matmul_reads_the_contracted_axis(side: str, axis: int, weight_axis: int) -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 2, 2)), 6)
    x = net.reshape(x, 1, 6, 4)
    if side == "right":
        x = net.op("Transpose", x, perm=[0, 2, 1])
        y = net.op("MatMul", x, net.weight(net.normal(6, 5)), name="m")
        out = net.op("MatMul", y, net.weight(net.normal(5, 2)), name="n")
    else:
        y = net.op("MatMul", net.weight(net.normal(5, 6)), x, name="m")
        out = net.op("MatMul", net.weight(net.normal(2, 5)), y, name="n")
    model = net.output(out).model()
    traced = trace(model)
    for name, channels in (("m", 6), ("n", 5)):
        consumer = traced.consumers[name]
        assert (consumer.use.tensor_axis[1], consumer.use.weight_axis) == (axis, weight_axis)
        assert (consumer.channels, consumer.prunable.all()) == (channels, True)
    check_emission(model, {"m": [5, 0], "n": [1, 3]}, target=PLAIN, lowering="gather")


def test_matmul_of_activations_carries_rows_and_columns() -> None:
    net = Net()
    tokens = net.input("x", (1, 4, 3))
    q, v = (net.op("MatMul", tokens, net.weight(net.normal(3, 6))) for _ in "qv")
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", q, perm=[0, 2, 1])))
    y = net.op("MatMul", scores, v)
    traced = analyse(net, net.op("MatMul", y, net.weight(net.normal(6, 2)), name="o"))
    assert traced.consumers["o"].prunable.all()  # the values' columns
    reasons = segment_of(traced, net.nodes[0].name or "MatMul_0").reasons
    assert any("axis contracted between two activations" in reason for reason in reasons)


# Elementwise operators


def test_add_makes_slots_of_two_producers_one() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    y = net.op("Add", net.conv(x, 4, name="a"), net.conv(x, 4, name="b"))
    traced = analyse(net, net.conv(y, 2, name="c"))
    segment = traced.segments[traced.consumers["c"].segment]
    assert segment.producers == ("a", "b")
    assert len(segment.classes) == 4


def test_squeeze_and_excitation_shares_slots_by_broadcasting() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", x), 6, name="gate"))
    traced = analyse(net, net.conv(net.op("Mul", gate, x), 2, name="b"))
    assert traced.segments[traced.consumers["b"].segment].producers == ("a", "gate")
    assert traced.consumers["gate"].segment == traced.consumers["b"].segment
    assert traced.consumers["b"].prunable.all()


def test_broadcast_along_the_channels_freezes_the_short_operand_only() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    one = net.conv(x, 1, name="one")
    y = net.op("Add", net.conv(x, 4, name="a"), one)
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert traced.consumers["b"].prunable.all()
    assert segment_of(traced, "one").frozen.tolist() == [True]
    assert "broadcast operand of Add" in segment_of(traced, "one").reasons[0]


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1, 6, 4, 4), (1, 1, 4), (), (1,)])
def test_constants_follow_the_channels(shape: tuple[int, ...]) -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6)
    y = net.op("Mul", net.weight(net.normal(*shape), "scale"), x)
    model = net.output(net.conv(y, 2, name="b")).model()
    emitted = check_emission(model, {"b": [0, 2]}, target=PLAIN)
    (scale,) = [tensor for tensor in emitted.graph.initializer if tensor.name == "scale"]
    assert tuple(scale.dims) == tuple(2 if d == 6 else d for d in shape)


def test_channels_may_come_from_a_constant() -> None:
    net = Net()
    one = net.conv(net.input("x", (1, 3, 4, 4)), 1)
    y = net.op("Mul", one, net.weight(net.normal(1, 6, 1, 1), "scale"))
    model = net.output(net.conv(y, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    emitted = check_emission(model, {"b": [5]}, target=PLAIN, lowering="gather")
    assert {t.name: list(t.dims) for t in emitted.graph.initializer}["scale"] == [1, 1, 1, 1]


def test_broadcast_over_a_dynamic_axis() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    (y,) = net.ops("Add", x, net.input("z", (1, "C", 1, 1)), shapes=[(1, 6, 4, 4)])
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()
    assert any("broadcast along a dynamic axis: Add" in reason for reason in segment_of(traced, "a").reasons)


def test_broadcast_form_of_old_opsets() -> None:
    net = Net(opset=6, ir_version=4)
    x = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    y = net.op("Add", x, net.weight(net.normal(6)), broadcast=1, axis=1)
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert any("broadcast form of opset < 7" in reason for reason in segment_of(traced, "a").reasons)


def test_softmax_before_opset_13_mixes_all_later_axes() -> None:
    for axis, prunable in ((1, False), (2, True)):
        _, traced = between(lambda net, x, axis=axis: net.op("Softmax", x, axis=axis), opset=11)
        assert traced.consumers["b"].prunable.all() == prunable
    _, traced = between(lambda net, x: net.op("Softmax", x), opset=11)  # the default axis is 1 there
    assert not traced.consumers["b"].prunable.any()


def test_upsample_keeps_channels_with_scale_1() -> None:
    for scale, prunable in ((1, True), (2, False)):
        factor = np.array([1, scale, 2, 2], dtype=np.float32)
        _, traced = between(lambda net, x, f=factor: net.op("Upsample", x, net.weight(f)), opset=9)
        assert traced.consumers.get("b").prunable.all() == prunable


# Joining and cutting


def test_concat_puts_slots_one_after_the_other_in_groups_of_their_own() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = net.conv(x, 4, name="a"), net.conv(x, 2, name="b")
    traced = analyse(net, net.conv(net.op("Concat", b, a, axis=1), 2, name="c"))
    segment = traced.segments[traced.consumers["c"].segment]
    assert segment.producers == ("a", "b")
    assert segment.groups == ((0, 1, 2, 3), (4, 5))
    assert traced.consumers["c"].slots.tolist() == [4, 5, 0, 1, 2, 3]


def test_concat_of_a_tensor_with_itself() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 3, name="a")
    traced = analyse(net, net.conv(net.op("Concat", a, a, axis=1), 2, name="c"))
    assert traced.consumers["c"].slots.tolist() == [0, 1, 2, 0, 1, 2]
    assert traced.consumers["c"].prunable.all()
    assert segment_of(traced, "a").groups == ((0, 1, 2),)


def test_concat_with_the_graph_input_freezes_that_part() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    traced = analyse(net, net.conv(net.op("Concat", x, net.conv(x, 4), axis=1), 2, name="c"))
    assert traced.consumers["c"].prunable.tolist() == [False] * 3 + [True] * 4


def test_nested_concats() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = net.conv(x, 2, name="a"), net.conv(x, 3, name="b")
    inner = net.op("Concat", a, b, axis=1)
    model = net.output(net.conv(net.op("Concat", b, inner, a, axis=1), 2, name="c")).model()
    traced = trace(model)
    assert traced.consumers["c"].slots.tolist() == [2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert set(segment_of(traced, "a").groups) == {(0, 1), (2, 3, 4)}
    check_emission(model, {"c": [0, 3, 9]}, target=PLAIN, lowering="gather")


def test_padding_channels_stay() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    model = net.output(net.conv(net.pad(a, [0, 1, 0, 0, 0, 2, 0, 0]), 2, name="b")).model()
    traced = trace(model)
    assert traced.consumers["b"].prunable.tolist() == [False] + [True] * 4 + [False] * 2
    assert segment_of(traced, "a").reasons == (f"padding channels of Pad at {net.nodes[1].name or 'Pad_1'}",)
    check_emission(model, {"b": [2, 3]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("opset", [9, 17])
def test_slice_follows_its_channels(opset: int) -> None:
    net = Net(opset=opset)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    b = net.conv(net.slice(a, [1], [2], [6]), 2, name="b")
    model = net.output(b, net.conv(a, 2, name="c")).model()
    traced = trace(model)
    assert traced.consumers["b"].slots.tolist() == [2, 3, 4, 5]
    assert segment_of(traced, "a").groups == ((0, 1), (2, 3, 4, 5), (6, 7))
    emitted = check_emission(model, {"b": [1, 3], "c": [1, 3, 5, 7]}, target=PLAIN, lowering="gather")
    (cut,) = [node for node in emitted.graph.node if node.op_type == "Slice" and node.input[0] == a]
    if opset == 9:
        assert [list(a.ints) for a in cut.attribute if a.name in ("starts", "ends")] == [[1], [3]]


def test_slice_starts_earlier_when_channels_before_it_go() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 16, name="a")
    tail = net.slice(a, [1], [12], [2**31 - 1])
    out = net.op("CumSum", tail, net.weight(np.int64(1)))  # fixes what it reads
    model = net.output(out, net.conv(a, 2, name="b")).model()
    traced = trace(model)
    assert traced.consumers["b"].prunable.tolist() == [True] * 12 + [False] * 4
    emitted = check_emission(model, {"b": [3, *range(12, 16)]}, target=PLAIN)
    values = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in emitted.graph.initializer}
    (cut,) = [node for node in emitted.graph.node if node.op_type == "Slice"]
    assert (values[cut.input[1]], values[cut.input[2]]) == ([1], [5])


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split_lengths_follow(opset: int) -> None:
    net = Net(opset=opset)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 16, name="a")
    if opset >= 18:
        parts = net.ops("Split", a, outputs=2, axis=1, num_outputs=2)
    elif opset == 13:
        parts = net.ops("Split", a, outputs=2, axis=1)
    else:
        parts = net.split(a, [8, 8])
    model = net.output(*[net.conv(part, 2, name=f"b{i}") for i, part in enumerate(parts)]).model()
    emitted = check_emission(model, {"b0": [0], "b1": [1, 2, 3, 5, 7]}, target=PLAIN)
    shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(emitted).graph.value_info}
    assert [shapes[part].type.tensor_type.shape.dim[1].dim_value for part in parts] == [1, 5]


def test_split_along_space_is_left_alone() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    parts = net.ops("Split", a, outputs=2, axis=2)
    model = net.output(*[net.conv(part, 2, name=f"b{i}") for i, part in enumerate(parts)]).model()
    emitted = check_emission(model, {"b0": [0], "b1": [0]}, target=PLAIN)
    (node,) = [node for node in emitted.graph.node if node.op_type == "Split"]
    assert list(node.input) == [a]


def test_swapped_halves_tied_by_an_add_are_frozen() -> None:
    """Add(x, concat(second half, first half)): channel i is the same slot as channel i + n/2."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    first, second = net.split(a, [2, 2])
    y = net.op("Add", a, net.op("Concat", second, first, axis=1))
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()
    assert any("tied to each other" in reason for reason in segment_of(traced, "a").reasons)


def test_orders_that_contradict_each_other_freeze_the_segment() -> None:
    """A channels-last flatten, cut in the middle of a pixel: in the cut some channels occur more often than others."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 2, 2)), 4, name="a")
    flat = net.op("Flatten", net.op("Transpose", a, perm=[0, 2, 3, 1]))
    model = net.output(net.gemm(net.slice(flat, [1], [0], [6]), 2, name="g")).model()
    traced = trace(model)
    assert not traced.consumers["g"].prunable.any()
    (reason,) = [r for r in segment_of(traced, "a").reasons if "no order" in r]
    assert "no order of the channels suits every operator" in reason
    check_emission(model, {"g": [0, 5]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("last", [False, True])
def test_flattened_space(last: bool) -> None:
    """Every channel is read at several positions: side by side, or a whole image row apart if channels come last."""
    net = Net()
    a = net.conv(net.input("x", (2, 3, 2, 3)), 5, name="a")
    flat = net.op("Flatten", net.op("Transpose", a, perm=[0, 2, 3, 1]) if last else a)
    model = net.output(net.gemm(flat, 2, name="g"), net.conv(a, 2, name="b")).model()
    consumer = trace(model).consumers["g"]
    assert consumer.prunable.all()
    assert consumer.slots.tolist() == (list(range(5)) * 6 if last else [slot for slot in range(5) for _ in range(6)])
    kept = [i for i, slot in enumerate(consumer.slots) if slot in (1, 4)]
    for lowering in ("union", "gather", "slice"):
        emitted = check_emission(model, {"g": kept, "b": [0, 4]}, target=PLAIN, lowering=lowering)
        check_emission(model, {"g": kept[1::2], "b": [3]}, target=PLAIN, lowering=lowering)
        assert {t.name: t.dims[0] for t in emitted.graph.initializer}[net.nodes[0].input[1]] == 3


def test_squeeze_without_axes_does_not_take_a_last_channel_with_it() -> None:
    for opset in (11, 13):
        net = Net(opset=opset)
        a = net.op("GlobalAveragePool", net.conv(net.input("x", (2, 3, 2, 2)), 3, name="a"))
        model = net.output(net.gemm(net.squeeze(a), 2, name="g")).model()
        assert trace(model).consumers["g"].prunable.all()
        check_emission(model, {"g": [1]}, target=PLAIN)


def test_reshape_target_computed_from_another_tensor() -> None:
    """A length that only ends in a Reshape's target does not freeze it, and the target becomes a constant."""
    net = Net()
    x = net.input("x", (1, 8, 4, 4))
    a = net.conv(x, 8, name="a")
    count = net.op("Gather", net.op("Shape", a), net.ints(1), axis=0)
    target = net.op("Concat", net.ints(1), count, net.ints(-1), axis=0)
    (y,) = net.ops("Reshape", x, target, shapes=[(1, 8, 16)])
    model = net.output(y, net.conv(a, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.all()
    check_emission(model, {"b": [1, 2]}, target=PLAIN, lowering="gather")


@pytest.mark.parametrize("target", [(1, 8, 16), (0, 0, -1), (1, -1, 16), (-1, 8, 16)])
def test_reshape_targets_that_name_the_channels(target: tuple[int, ...]) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("Transpose", net.reshape(a, *target), perm=[0, 2, 1])
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="m")).model()
    assert trace(model).consumers["m"].prunable.all()
    check_emission(model, {"m": [7]}, target=PLAIN, lowering="gather")


def test_zero_in_a_target_means_the_input_axis_not_the_slot() -> None:
    """(1, 4, 4) regrouped to (4, 4): target axis 1 copies input axis 1, whose slots went to target axis 0."""
    net = Net()
    a = net.reshape(net.conv(net.input("x", (1, 3, 2, 2)), 4, name="a"), 1, 4, 4)
    y = net.op("MatMul", net.weight(net.normal(3, 4)), net.reshape(a, 4, 0), name="m")
    model = net.output(y).model()
    assert trace(model).consumers["m"].prunable.all()
    check_emission(model, {"m": [2]}, target=PLAIN, lowering="gather")


# What the analysis must not touch


def test_initializers_that_callers_may_override_stay() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    y = net.op("Add", a, net.weight(net.normal(1, 4, 1, 1), "offset"))
    model = net.output(net.conv(y, 2, name="b")).model()
    model.graph.input.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, [1, 4, 1, 1]))
    traced = trace(model)
    assert not traced.consumers["b"].prunable.any()
    assert "graph input offset" in segment_of(traced, "a").reasons


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


@pytest.mark.parametrize(
    "shape, out", [((4,), (1, 8, 4)), ((8, 4, 3), (1, 8, 4, 3)), ((1, 1, 4, 3), (1, 8, 4, 3))], ids=str
)
def test_matmul_with_a_constant_that_is_no_matrix(shape: tuple[int, ...], out: tuple[int, ...]) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("MatMul", a, net.weight(net.normal(*shape)), name="m")
    assert net.shapes[y] == out
    traced = analyse(net, y)
    assert "m" not in traced.consumers
    assert any("operands of an unsupported form: MatMul" in reason for reason in segment_of(traced, "a").reasons)


def test_matmul_of_activations_with_broadcast_batches() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    y = net.op("MatMul", a, net.input("z", (1, 1, 4, 4)))
    traced = analyse(net, net.conv(y, 2, name="b"))
    assert not traced.consumers["b"].prunable.any()
    assert any("broadcast batch axis: MatMul" in reason for reason in segment_of(traced, "a").reasons)


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
        a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
        product = net.op("ReduceProd", net.op("Shape", a, **options), keepdims=0)
        scaled = net.op("Div", a, net.op("Cast", product, to=TensorProto.FLOAT))
        model = net.output(net.conv(scaled, 2, name="b")).model()
        assert trace(model).consumers["b"].prunable.all() == prunable, options
        check_emission(model, {"b": [1, 6]}, target=PLAIN)


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
