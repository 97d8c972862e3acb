"""Quantised graphs and weights of other precision: what stays of the producer, and exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.analysis.operator_cases import PLAIN
from tests.analysis.rules.cases import checked, made_by
from tests.builders import Net, check_emission
from ucpe_onnx.analysis.trace import trace


def quantised(net: Net, shape: tuple[int, ...], axis: int, *, zero: bool = False) -> list[str]:
    """An int8 weight, its scales along an axis, and their zero points."""
    count = shape[axis]
    value = net.weight(net.random.integers(-100, 100, shape).astype(np.int8))
    scale = net.weight(net.random.uniform(0.005, 0.02, count).astype(np.float32))
    points = net.random.integers(-5, 5, count) if zero else np.zeros(count)
    return [value, scale, net.weight(points.astype(np.int8))]


def test_weights_behind_dequantize_linear() -> None:
    def step(net: Net, x: str) -> str:
        scale, zero = net.constant(0.05), net.weight(np.uint8(128))
        y = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
        weight = net.op("DequantizeLinear", *quantised(net, (6, 8, 1, 1), 0), axis=0)
        bias = net.op(
            "DequantizeLinear", net.weight(np.arange(6, dtype=np.int32)), net.weight(np.full(6, 0.01)), axis=0
        )
        return net.op("Conv", y, weight, bias, name="q")

    net = Net()
    y = step(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    model = onnx.shape_inference.infer_shapes(net.output(net.conv(y, 4, name="b")).model())
    emitted = check_emission(model, {"q": [1, 2, 7], "b": [0, 5]}, target=PLAIN)
    assert made_by(emitted, "a") == 3
    sizes = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    codec = next(n for n in emitted.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in sizes)
    assert [sizes[name] for name in codec.input] == [[2, 3, 1, 1], [2], [2]]


def test_weights_behind_quantize_and_dequantize_linear() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 3)), net.weight(net.normal(3, 8)), name="a")
    scale = net.weight(net.random.uniform(0.005, 0.02, 5).astype(np.float32))
    point = net.weight(np.zeros(5, dtype=np.int8))
    weight = net.op("QuantizeLinear", net.weight(net.normal(8, 5)), scale, point, axis=1)
    y = net.op("MatMul", a, net.op("DequantizeLinear", weight, scale, point, axis=1), name="q")
    model = net.output(net.op("MatMul", y, net.weight(net.normal(5, 2)), name="b")).model()
    emitted = check_emission(model, {"q": [0, 6], "b": [1]}, target=PLAIN, optimise=False)
    assert made_by(emitted, "a", 1) == 2


def test_a_quantised_weight_with_two_readers_is_frozen() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 3)), net.weight(net.normal(3, 8)), name="a")
    weight = net.op("DequantizeLinear", *quantised(net, (8, 8), 1), axis=1)
    y = net.op("MatMul", net.op("MatMul", a, weight, name="q"), weight, name="r")
    traced = trace(net.output(y).model())
    assert set(traced.consumers) == {"a"}
    assert traced.segments[-1].frozen.all()


def linear_codec(net: Net, x: str) -> tuple[str, list[str]]:
    parameters = [net.constant(0.05), net.weight(np.uint8(120))]
    return net.op("QuantizeLinear", x, *parameters), parameters


@pytest.mark.parametrize("zero", [False, True])
def test_qlinear_conv(zero: bool) -> None:
    def step(net: Net, x: str) -> str:
        y, parameters = linear_codec(net, x)
        weight = quantised(net, (6, 8, 1, 1), 0, zero=zero)
        bias = net.weight(np.arange(6, dtype=np.int32))
        y = net.op("QLinearConv", y, *parameters, *weight, *parameters, bias, name="q")
        return net.op("DequantizeLinear", y, *parameters)

    emitted = checked(step, {"q": [1, 2, 7], "b": [0, 5]})
    (node,) = [node for node in emitted.graph.node if node.op_type == "QLinearConv"]
    sizes = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    assert [sizes[node.input[i]] for i in (3, 4, 5, 8)] == [[2, 3, 1, 1], [2], [2], [2]]


def test_qlinear_matmul_and_integer_products() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 3)), net.weight(net.normal(3, 8)), name="a")
    y, parameters = linear_codec(net, a)
    weight = [quantised(net, (8, 6), 1)[0], net.constant(0.01), net.weight(np.int8(3))]
    y = net.op("QLinearMatMul", y, *parameters, *weight, *parameters, name="q")
    integers = net.weight(net.random.integers(0, 9, (6, 5)).astype(np.uint8))
    z = net.op("MatMulInteger", y, integers, parameters[1], name="i")
    model = net.output(net.op("Cast", z, to=TensorProto.FLOAT)).model()
    emitted = check_emission(model, {"q": [1, 2, 7], "i": [0, 5]}, target=PLAIN)
    assert made_by(emitted, "a", 1) == 3
    assert made_by(emitted, "i") == 2


def test_conv_integer() -> None:
    def step(net: Net, x: str) -> str:
        y, parameters = linear_codec(net, x)
        weight = net.weight(net.random.integers(0, 9, (6, 8, 1, 1)).astype(np.uint8))
        y = net.op("ConvInteger", y, weight, parameters[1], name="q")
        return net.op("Cast", y, to=TensorProto.FLOAT)

    assert made_by(checked(step, {"q": [1, 2, 7], "b": [0, 5]}), "a") == 3


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_weights_of_other_precision(kind: int) -> None:
    """Cast to float in the graph: the folded constant is what is cut."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    stored = numpy_helper.from_array(net.normal(4, 8, 1, 1).astype(helper.tensor_dtype_to_np_dtype(kind)))
    net.initializers["half"] = stored
    stored.name = "half"
    net._learn("half", helper.make_tensor_type_proto(kind, [4, 8, 1, 1]))
    y = net.op("Conv", a, net.op("Cast", "half", to=TensorProto.FLOAT), name="b")
    assert made_by(check_emission(net.output(y).model(), {"b": [2, 5]}, target=PLAIN), "a") == 2


def qlinear(net: Net, op_type: str, *inputs: str, shape: tuple[int, ...], name: str = "", **attributes: object) -> str:
    """A quantised operator of onnxruntime; onnx does not know it, so the shape of its result is given."""
    (y,) = net.ops(op_type, *inputs, domain="com.microsoft", shapes=[shape], name=name, **attributes)
    net._learn(y, helper.make_tensor_type_proto(TensorProto.UINT8, shape))
    return y


def quantised_layers() -> onnx.ModelProto:
    """Convolutions, a residual sum, a product, a concatenation, pools and a Gemm, all in 8 bits."""
    net = Net()
    x, p = linear_codec(net, net.input("x", (1, 3, 6, 6)))

    def conv(y: str, out: int, name: str) -> str:
        weight = quantised(net, (out, net.shapes[y][1], 1, 1), 0, zero=True)
        return net.op("QLinearConv", y, *p, *weight, *p, name=name)

    def made(op_type: str, *inputs: str, **options: object) -> str:
        return qlinear(net, op_type, *inputs, **{"shape": (1, 8, 6, 6)} | options)

    a = conv(x, 8, "a")
    gate = made("QLinearSigmoid", conv(a, 8, "c"), *p, *p)
    y = made("QLinearMul", made("QLinearAdd", a, *p, conv(a, 8, "b"), *p, *p), *p, gate, *p, *p)
    y = made("QLinearLeakyRelu", y, *p, *p, alpha=0.1)
    y = made("QLinearConcat", *p, y, *p, a, *p, axis=1, shape=(1, 16, 6, 6))
    y = made("QLinearAveragePool", y, *p, *p, kernel_shape=[2, 2], shape=(1, 16, 5, 5))
    y = made("QLinearGlobalAveragePool", conv(y, 6, "d"), *p, *p, shape=(1, 6, 1, 1))
    matrix, scale, point = quantised(net, (4, 6), 0, zero=True)
    y = made("QGemm", net.op("Flatten", y), *p, matrix, scale, point, "", *p, name="g", transB=1, shape=(1, 4))
    return net.output(net.op("DequantizeLinear", y, *p)).model()


def test_quantised_operators_of_onnxruntime() -> None:
    model = quantised_layers()
    traced = trace(model)
    masks = {"b": [0, 5], "c": [0, 1, 2], "d": [0, 5, 8, 13], "g": [1, 4]}
    assert all(traced.consumers[name].prunable.all() for name in masks)
    emitted = check_emission(model, masks, target=PLAIN)
    dims = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    weights = {node.name: dims[node.input[3]] for node in emitted.graph.node if node.name in traced.consumers}
    assert (weights["a"][0], weights["d"][0], weights["g"]) == (4, 2, [4, 2])


def test_codec_that_nothing_reads() -> None:
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    net.op("DequantizeLinear", net.weight(np.array([18], np.int8)), net.weight(np.float32(0.02)))
    check_emission(net.output(net.conv(y, 2, name="b")).model(), {"b": [1]}, target=PLAIN)


def test_quantised_constant_that_several_nodes_read() -> None:
    """It stays as it is, and with it the channels that it joins; the nodes that join it are followed."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, c = net.conv(x, 4, name="a"), net.conv(x, 4, name="c")
    constant = net.op("DequantizeLinear", net.weight(np.ones((1, 3, 4, 4), np.int8)), net.weight(np.float32(0.02)))
    total = net.op("Add", net.op("Concat", constant, a, axis=1), net.op("Concat", constant, c, axis=1))
    model = net.output(net.conv(total, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.tolist() == [False] * 3 + [True] * 4
    emitted = check_emission(model, {"b": [1, 3, 6]}, target=PLAIN)
    assert made_by(emitted, "a") == made_by(emitted, "c") == 2
