"""Operators that treat every element alike: activations, arithmetic with broadcasting, PRelu, Dropout."""

from __future__ import annotations

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import elementwise
from ucpe_onnx.analysis.tracer import Tracer


def unary(tracer: Tracer, node: Node) -> None:
    """y[i] = f(x[i]); further inputs (Clip's bounds) are scalars."""
    tracer.pass_through(node, node.inputs[0], node.outputs[0])


def dropout(tracer: Tracer, node: Node) -> None:
    """Identity at inference; the optional mask output has the data's shape.

    In training it draws a number for every element: with fewer of them, the others would get other numbers.
    """
    if len(node.inputs) > 2 and node.inputs[2]:
        training = tracer.graph.value(node.inputs[2])
        if training is None or training.any():
            tracer.freeze_node(node, f"random numbers for each element: Dropout in training at {node.name}")
            return
    for name in node.outputs:
        if name:
            tracer.pass_through(node, node.inputs[0], name)


def broadcasting(tracer: Tracer, node: Node) -> None:
    """Y = f(a, b, ...) with numpy broadcasting; operands may be constants of any rank."""
    if "axis" in node.attributes or "broadcast" in node.attributes:
        tracer.freeze_node(node, f"broadcast form of opset < 7: {node.op_type} at {node.name}")
        return
    operands = [key for i in range(len(node.inputs)) if (key := tracer.operand(node, i)) is not None]
    elementwise(tracer, node, operands, node.outputs[0])


_UNARY = [
    "Abs",
    "Affine",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "ParametricSoftplus",
    "Reciprocal",
    "Relu",
    "Round",
    "Scale",
    "ScaledTanh",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "com.microsoft::Gelu",
    "com.microsoft::QuickGelu",
    "com.microsoft::ScaledSiLU",
]
_BROADCASTING = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
    "com.microsoft::BiasGelu",
    "com.microsoft::FastGelu",
]

RULES = dict.fromkeys(_UNARY, unary) | dict.fromkeys(_BROADCASTING, broadcasting) | {"Dropout": dropout}
