"""A small model for each operator and each of its forms, with a range that its inputs are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builders import Net

Build = Callable[[Net], "str | Sequence[str]"]


@dataclass(frozen=True)
class Case:
    """What to build, at which opset, and between which values inputs lie."""

    build: Build
    opset: int = 17
    low: float = -2.0
    high: float = 2.0
    shape: tuple[int, ...] = (2, 4, 5, 6)

    def model(self) -> onnx.ModelProto:
        net = Net(opset=self.opset, ir_version=8 if self.opset < 18 else 10 if self.opset < 23 else 11)
        net.input("x", self.shape)
        made = self.build(net)
        return net.output(*([made] if isinstance(made, str) else made)).model()


def plain(op_type: str, **attributes: object) -> Build:
    return lambda net: net.op(op_type, "x", **attributes)


def cast(net: Net, x: str, to: int = TensorProto.FLOAT) -> str:
    return net.op("Cast", x, to=to)


def ints(net: Net, x: str = "x") -> str:
    """The input as integers, some of them negative."""
    return cast(net, net.op("Mul", x, net.constant(7.0)), TensorProto.INT64)


def with_row(op_type: str) -> Build:
    """An operand that is broadcast."""
    return lambda net: net.op(op_type, "x", net.weight(np.linspace(-1.5, 1.5, 6)))


def truths(op_type: str, inputs: int) -> Build:
    def build(net: Net) -> str:
        given = [net.op("Less", "x", net.constant(limit)) for limit in (0.5, -0.5)[:inputs]]
        return cast(net, net.op(op_type, *given))

    return build


def bits(op_type: str, inputs: int) -> Build:
    return lambda net: cast(net, net.op(op_type, *[ints(net), net.constant(np.array([5], dtype=np.int64))][:inputs]))


def parameters(op_type: str, count: int, size: int = 4, **attributes: object) -> Build:
    return lambda net: net.op(
        op_type, "x", *[net.weight(np.abs(net.normal(size)) + 0.5) for _ in range(count)], **attributes
    )


def reduced(op_type: str, axes: Sequence[int], keepdims: int = 1) -> Build:
    return lambda net: net.reduce(op_type, "x", axes, keepdims)


def indices(net: Net, values: object) -> str:
    return net.constant(np.array(values, dtype=np.int64))


def int_quotients(net: Net) -> str:
    return cast(net, net.op("Div", ints(net), indices(net, [[2], [-3], [4], [5], [7]])))


def int_remainders(net: Net) -> str:
    return cast(net, net.op("Mod", ints(net), indices(net, [[2], [-3], [4], [5], [7]])))


def infinities(net: Net) -> list[str]:
    x = net.op("Div", "x", net.op("Floor", net.op("Abs", "x")))
    made = [net.op("IsInf", x), net.op("IsInf", x, detect_negative=0), net.op("IsInf", x, detect_positive=0)]
    return [cast(net, tensor) for tensor in [*made, net.op("IsNaN", net.op("Sqrt", "x"))]]


def where(net: Net) -> str:
    return net.op("Where", net.op("Greater", "x", net.constant(0.3)), "x", net.constant(np.zeros((4, 1, 1))))


def uneven_split(net: Net) -> list[str]:
    return net.ops("Split", "x", outputs=3, axis=3, num_outputs=3, shapes=[(2, 4, 5, 2)] * 3)


def dropout(net: Net) -> list[str]:
    kept, mask = net.ops("Dropout", "x", net.constant(0.3), outputs=2)
    return [kept, cast(net, mask)]


def shape_of(net: Net) -> list[str]:
    whole = net.op("Reshape", net.op("Transpose", "x"), net.op("Shape", net.op("Transpose", "x", perm=[1, 0, 3, 2])))
    return [whole, net.op("Shape", "x", start=1, end=-1), net.op("Size", "x")]


def made_up(net: Net) -> list[str]:
    """Ranges and filled tensors, whose shapes onnx can't always infer."""
    whole = [indices(net, value) for value in (2, 11, 3)]
    steps = net.ops("Range", *whole, shapes=[(3,)], elem_type=TensorProto.INT64)[0]
    shape = indices(net, [2, 3])
    fives = helper.make_tensor("value", TensorProto.INT64, [1], [5])
    filled = net.ops("ConstantOfShape", shape, value=fives, shapes=[(2, 3)], elem_type=TensorProto.INT64)[0]
    zeros = net.ops("ConstantOfShape", shape, shapes=[(2, 3)])[0]
    numbers = net.ops("Range", *[net.constant(v) for v in (0.5, 2.0, 0.25)], shapes=[(6,)])[0]
    return [steps, filled, zeros, net.op("Mul", "x", numbers), net.op("CastLike", steps, "x")]


def gathered(net: Net) -> list[str]:
    every = indices(net, np.arange(-2, 4).reshape(1, 1, 6, 1).repeat(6, 3)[:, :, :5])
    return [
        net.op("Gather", "x", indices(net, [[0, -1], [2, 2]]), axis=1),
        net.op("Gather", "x", indices(net, -2), axis=-1),
        net.op("GatherElements", "x", every, axis=1),
        net.op("GatherND", "x", indices(net, [[1, -1], [0, 2]])),
        net.op("GatherND", "x", indices(net, [[[1, -1], [0, 2]], [[3, 0], [2, 2]]]), batch_dims=1),
    ]


def scattered(net: Net) -> list[str]:
    updates = net.weight(net.normal(2, 5, 6))
    element = net.weight(net.normal(1, 1, 1, 6))
    places = indices(net, np.array([-1, 0, 1, 2, 0, 3]).reshape(1, 1, 1, 6))
    made = []
    for kind in ("none", "add"):
        made.append(net.op("ScatterND", "x", indices(net, [[1, -1], [0, 2]]), updates, reduction=kind))
        made.append(net.op("ScatterElements", "x", places, element, axis=1, reduction=kind))
    return made


def sliced(net: Net) -> list[str]:
    return [
        net.slice("x", [1, -1], [-3, 1], [2**62, -1], [2, 1]),
        net.slice("x", [2, 3], [-1, 4], [-(2**62), 0], [-1, -2]),
        net.slice("x", [0], [5], [9]),
    ]


def one_hot(net: Net) -> list[str]:
    places = indices(net, [[0, 2], [-1, 1]])
    values = net.constant(np.array([-1.0, 3.0]))
    return [net.op("OneHot", places, indices(net, 4), values, axis=axis) for axis in (-1, 0, 1)]


def found(net: Net) -> list[str]:
    k = indices(net, [3])
    steps = net.op("Round", "x")
    largest, places = net.ops("TopK", steps, k, outputs=2, axis=2)
    smallest = net.ops("TopK", "x", k, outputs=2, axis=-1, largest=0)[0]
    kinds = [{"axis": 1}, {"axis": -1, "keepdims": 0}, {"axis": 2, "select_last_index": 1}]
    extremes = [net.op(op_type, steps, **kind) for op_type in ("ArgMax", "ArgMin") for kind in kinds]
    return [largest, places, smallest, *extremes]


def places(net: Net) -> str:
    return net.ops("NonZero", net.op("Relu", "x"), shapes=[(4, "n")], elem_type=TensorProto.INT64)[0]


def running_sums(net: Net) -> list[str]:
    axis = net.constant(np.int64(-1))
    return [net.op("CumSum", "x", axis, exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)]


def triangles(net: Net) -> list[str]:
    return [net.op("Trilu", "x", net.constant(np.int64(k)), upper=u) for k in (-1, 0, 2) for u in (0, 1)]


def einsum(net: Net) -> list[str]:
    return [
        net.op("Einsum", "x", net.weight(net.normal(6, 3)), equation="nchw,wo->nocho".replace("ocho", "cho")),
        net.op("Einsum", "x", net.weight(net.normal(4, 7)), equation="b c ... , c o -> b o ..."),
    ]


def products(net: Net) -> list[str]:
    vectors = net.op("MatMul", "x", net.weight(net.normal(6)))
    return [
        net.op("MatMul", "x", net.weight(net.normal(6, 3))),
        net.op("MatMul", net.weight(net.normal(4, 3, 5)), "x"),
        net.op("MatMul", "x", net.op("Transpose", "x", perm=[0, 1, 3, 2])),
        vectors,
    ]


def gemms(net: Net) -> list[str]:
    flat = net.op("Flatten", "x", axis=2)
    made = []
    for alpha, beta, trans_a, trans_b in [(1.0, 1.0, 0, 0), (0.5, 2.0, 1, 0), (1.5, 0.5, 0, 1), (1.0, 1.0, 1, 1)]:
        width = 8 if trans_a else 30
        weight = net.weight(net.normal(3, width) if trans_b else net.normal(width, 3))
        rows = 30 if trans_a else 8
        for c in ([], [net.weight(net.normal(3))], [net.weight(net.normal(rows, 1))], [net.weight(net.normal(1))]):
            options = {"alpha": alpha, "beta": beta, "transA": trans_a, "transB": trans_b}
            made.append(net.op("Gemm", flat, weight, *c, **options))
    return made


def last_window(net: Net) -> list[str]:
    """With ceil_mode, a window that would begin in the padding behind is left out; shape inference counts it."""
    options = {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1}
    mean = net.op("AveragePool", "x", count_include_pad=1, shapes=[(2, 4, None, None)], **options)
    return [net.op("MaxPool", "x", shapes=[(2, 4, None, None)], **options), mean]


def local(op_type: str, *, opset: int, axis: int) -> Case:
    return Case(plain(op_type, axis=axis), opset)


MATHS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(["Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "Identity", "Neg", "Round"], (-3, 3)),
    **dict.fromkeys(["Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Asinh", "Cosh", "Tanh"], (-3, 3)),
    **dict.fromkeys(["Acos", "Asin", "Atanh", "Tan"], (-0.9, 0.9)),
    **dict.fromkeys(["Log", "Sqrt", "Reciprocal"], (0.1, 3)),
    "Acosh": (1.1, 3),
    "Relu": (-1, 1),
}

CASES: dict[str, Case] = {
    **{name: Case(plain(name), low=low, high=high) for name, (low, high) in MATHS.items()},
    **{name: Case(with_row(name)) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")},
    **{name: Case(truths(name, 2)) for name in ("And", "Or", "Xor")},
    "Not": Case(truths("Not", 1)),
    **{name: Case(bits(name, 2), 18) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")},
    "BitwiseNot": Case(bits("BitwiseNot", 1), 18),
    **{
        name: Case(lambda net, name=name: cast(net, net.op(name, ints(net), indices(net, [2]))))
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    "variadic": Case(
        lambda net: [net.op(o, "x", *[net.weight(net.normal(6)) for _ in "ab"]) for o in ("Max", "Min", "Sum", "Mean")]
    ),
    "Div of integers": Case(int_quotients),
    "Mod": Case(int_remainders),
    "fmod": Case(lambda net: net.op("Mod", "x", net.constant(0.7), fmod=1)),
    "Pow": Case(lambda net: [net.op("Pow", "x", net.constant(v)) for v in (2.0, 0.5, np.int64(3))], low=0.1),
    "IsInf, IsNaN": Case(infinities, 20),
    "Where": Case(where),
    "Clip": Case(lambda net: net.op("Clip", "x", net.constant(-0.5), net.constant(1.0))),
    "Clip above": Case(lambda net: net.op("Clip", "x", "", net.constant(1.0))),
    "Clip of nothing": Case(plain("Clip")),
    "Clip by attributes": Case(plain("Clip", min=-0.5), 10),
    "Elu": Case(plain("Elu", alpha=0.7)),
    "Celu": Case(plain("Celu", alpha=0.7)),
    "Selu": Case(plain("Selu", alpha=1.5, gamma=0.9)),
    "LeakyRelu": Case(plain("LeakyRelu", alpha=0.2)),
    "PRelu": Case(lambda net: net.op("PRelu", "x", net.weight(net.normal(4, 1, 1)))),
    "ThresholdedRelu": Case(plain("ThresholdedRelu", alpha=0.6)),
    "HardSigmoid": Case(plain("HardSigmoid", alpha=0.3, beta=0.4)),
    "HardSwish": Case(plain("HardSwish"), low=-5, high=5),
    "Mish": Case(plain("Mish"), 18),
    "Gelu": Case(plain("Gelu"), 20),
    "Gelu by tanh": Case(plain("Gelu", approximate="tanh"), 20),
    "Swish": Case(plain("Swish", alpha=1.3), 24),
    "Shrink": Case(plain("Shrink", bias=0.3, lambd=0.8)),
    **{f"{name} {axis}": local(name, opset=17, axis=axis) for name in ("Softmax", "LogSoftmax") for axis in (-1, 1)},
    **{f"{name} old": local(name, opset=11, axis=2) for name in ("Softmax", "LogSoftmax", "Hardmax")},
    "Hardmax": local("Hardmax", opset=17, axis=1),
    "Dropout": Case(dropout),
    "Dropout by attribute": Case(plain("Dropout", ratio=0.3), 11),
    "Einsum": Case(einsum),
    "MatMul": Case(products),
    "Gemm": Case(gemms),
    "BatchNormalization": Case(parameters("BatchNormalization", 4, epsilon=1e-2)),
    "BatchNormalization 9": Case(parameters("BatchNormalization", 4), 9),
    "InstanceNormalization": Case(parameters("InstanceNormalization", 2, epsilon=1e-2)),
    "GroupNormalization": Case(parameters("GroupNormalization", 2, num_groups=2, shapes=[(2, 4, 5, 6)]), 21),
    "LayerNormalization": Case(lambda net: net.ops("LayerNormalization", "x", net.weight(net.normal(6)), outputs=3)),
    "LayerNormalization broadcast": Case(
        lambda net: net.op("LayerNormalization", "x", *[net.weight(net.normal(6)) for _ in "ab"], axis=2)
    ),
    "RMSNormalization": Case(lambda net: net.op("RMSNormalization", "x", net.weight(net.normal(6))), 23),
    "LRN": Case(plain("LRN", size=3, alpha=0.1, beta=0.6, bias=1.5)),
    "LpNormalization": Case(lambda net: [net.op("LpNormalization", "x", axis=1, p=p) for p in (1, 2)]),
    "MeanVarianceNormalization": Case(plain("MeanVarianceNormalization", axes=[1], shapes=[(2, 4, 5, 6)])),
    **{name: Case(plain(name)) for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")},
    "last window": Case(last_window),
    "Reshape": Case(lambda net: net.reshape("x", 0, -1, 3)),
    "Reshape zero": Case(lambda net: net.op("Reshape", net.slice("x", [0], [0], [0]), net.ints(4, 0), allowzero=1)),
    "Flatten": Case(lambda net: [net.op("Flatten", "x", axis=axis) for axis in (0, 2, -1, 4)]),
    "Squeeze": Case(lambda net: [net.squeeze("x", [0, -1]), net.squeeze("x")], shape=(1, 4, 5, 1)),
    "Squeeze by attribute": Case(lambda net: net.squeeze("x", [0]), 11, shape=(1, 4, 5, 1)),
    "Unsqueeze": Case(lambda net: net.unsqueeze("x", [-1, 0, 3])),
    "Unsqueeze by attribute": Case(lambda net: net.unsqueeze("x", [4, 0]), 11),
    "Transpose": Case(lambda net: [net.op("Transpose", "x"), net.op("Transpose", "x", perm=[2, 0, 3, 1])]),
    "Expand": Case(lambda net: [net.op("Expand", "x", net.ints(3, 1, 4, 1, 6)), net.op("Expand", "x", net.ints(1))]),
    "Tile": Case(lambda net: net.op("Tile", "x", net.ints(1, 2, 1, 3))),
    "Concat": Case(lambda net: net.op("Concat", "x", net.weight(net.normal(2, 4, 2, 6)), "x", axis=-2)),
    "Split": Case(lambda net: [*net.split("x", [1, 3]), *net.ops("Split", "x", outputs=2, axis=3)]),
    "Split by attribute": Case(lambda net: net.split("x", [1, 3]), 11),
    "Split uneven": Case(lambda net: net.ops("Split", "x", outputs=2, axis=2, num_outputs=2), 18),
    "Cast": Case(lambda net: cast(net, cast(net, cast(net, "x", TensorProto.INT32), TensorProto.BOOL))),
    **{f"DepthToSpace {mode}": Case(plain("DepthToSpace", blocksize=2, mode=mode)) for mode in ("DCR", "CRD")},
    "SpaceToDepth": Case(plain("SpaceToDepth", blocksize=2), shape=(2, 3, 4, 6)),
    "shapes": Case(shape_of),
    "Range, ConstantOfShape": Case(made_up),
    "Gather": Case(gathered),
    "Scatter": Case(scattered, 16),
    "Slice": Case(sliced),
    "Slice by attributes": Case(lambda net: net.slice("x", [1, 3], [1, -4], [9, -1]), 9),
    "OneHot": Case(one_hot),
    "TopK, ArgMax": Case(found),
    "NonZero": Case(places),
    "CumSum": Case(running_sums),
    "Trilu": Case(triangles),
    **{
        f"Reduce{name} {opset}": Case(
            lambda net, name=name: [
                net.reduce(f"Reduce{name}", "x", axes, keep) for axes, keep in (([1, -1], 1), ([2], 0), ([], 1))
            ],
            opset,
            low=0.1,
        )
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        for opset in (11, 18)
    },
    "ReduceMean of integers": Case(lambda net: cast(net, net.reduce("ReduceMean", ints(net), [1, 2])), low=1),
    "no reduction": Case(lambda net: net.op("ReduceMean", "x", noop_with_empty_axes=1), 18),
    "Upsample": Case(lambda net: net.op("Upsample", "x", net.weight(np.array([1, 1, 2, 3], np.float32))), 9),
    "Upsample by attribute": Case(plain("Upsample", scales=[1.0, 1.0, 2.0, 1.5], mode="linear"), 7),
    "Resize 10": Case(lambda net: net.op("Resize", "x", net.weight(np.array([1, 1, 2, 0.5], np.float32))), 10),
}
"""Convolutions, pools, Pad, Resize and recurrent layers have so many forms that tests draw them."""
