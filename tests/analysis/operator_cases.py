"""Operators that pass channels on, operators that freeze them, and the graph that both are tried in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builders import Net
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace, trace
from ucpe_onnx.runtime.target import Target

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
        "BitShift": lambda net, x: cast(
            net, net.op("BitShift", *[cast(net, x, TensorProto.UINT8)] * 2, direction="LEFT")
        ),
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
    "unknown": (
        lambda net, x: net.ops("Compress", x, net.weight(np.ones(8, bool)), axis=1, shapes=[(1, 8, 4, 4)])[0],
        "places or numbers of elements that the run decides: Compress",
    ),
    "CumSum": (lambda net, x: net.op("CumSum", x, net.weight(np.int64(1))), "order along the axis matters: CumSum"),
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
        lambda net, x: net.output(net.op("Gather", net.op("Shape", x), net.ints(1))) and x,
        "length used at run time: Shape",
    ),
    "graph output": (lambda net, x: net.output(x) and x, "graph output t"),
    "DynamicQuantizeLinear": (
        lambda net, x: net.op("DequantizeLinear", *net.ops("DynamicQuantizeLinear", x, outputs=3)),
        "scale taken from all channels",
    ),
    "If": (lambda net, x: net.output(_if(net, x)) and x, "hands on different shapes"),
    "no reader": (lambda net, x: net.op("Relu", net.input("z", (1, 8, 4, 4))), "no consumer with a constant weight"),
}
"""Steps that fix the eight channels of the convolution before, with the reason that the user reads."""


def _if(net: Net, x: str) -> str:
    """One branch hands on the tensor, the other a matrix."""
    bodies = []
    for op_type in ("Relu", "Flatten"):
        out = helper.make_tensor_value_info(f"{op_type}_of_{x}", TensorProto.FLOAT, None)
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


def analyse(net: Net, *outputs: str) -> Trace:
    return trace(net.output(*outputs).model())


def only(traced: Trace, op_type: str) -> Consumer:
    (found,) = [c for c in traced.consumers.values() if c.use.node.op_type == op_type]
    return found
