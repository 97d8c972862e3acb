"""Scales and zero points that vary along axes where they are seldom expected."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.builders import Net, check_emission, prune
from ucpe_onnx.analysis.trace import trace

WIDTH = 8
LOWERINGS = ("auto", "union", "gather", "slice", "partial", "concat", "duplicate")
LAYERS = {
    # kind: (shape of the quantised weight, the axis of its scale, operator, attributes)
    "Conv": ((4, WIDTH, 1, 1), 1, "Conv", {}),
    "ConvTranspose": ((WIDTH, 4, 1, 1), 0, "ConvTranspose", {}),
    "ConvTranspose, made": ((WIDTH, 4, 1, 1), 1, "ConvTranspose", {}),
    "Gemm": ((WIDTH, 4), 0, "Gemm", {}),
    "Gemm, transposed": ((4, WIDTH), 1, "Gemm", {"transB": 1}),
    "MatMul": ((WIDTH, 4), 0, "MatMul", {}),
    "MatMul, made": ((WIDTH, 4), 1, "MatMul", {}),
    "MatMul on the left": ((4, WIDTH), 1, "MatMul", {}),
    "grouped Conv": ((4, WIDTH // 2, 1, 1), 1, "Conv", {"group": 2}),
    "grouped ConvTranspose": ((WIDTH, 2, 1, 1), 1, "ConvTranspose", {"group": 2}),
}


def dequantised(net: Net, shape: tuple[int, ...], axis: int) -> str:
    random = np.random.default_rng(1)
    weight = net.weight(random.integers(-99, 99, shape).astype(np.int8))
    scale = net.weight((0.005 + 0.01 * random.random(shape[axis])).astype(np.float32))
    zero = net.weight(random.integers(-9, 9, shape[axis]).astype(np.int8))
    return net.op("DequantizeLinear", weight, scale, zero, axis=axis)


def network(kind: str) -> Net:
    """A layer that makes channels, and one whose weight is dequantised, and then another one."""
    shape, axis, op, attributes = LAYERS[kind]
    net = Net()
    flat = len(shape) == 2
    x = net.input(shape=(2, 3) if flat else (1, 3, 4, 4))
    x = net.op("Relu", net.gemm(x, WIDTH, name="first") if flat else net.conv(x, WIDTH, name="first"))
    weight = dequantised(net, shape, axis)
    if kind == "MatMul on the left":
        return net.output(net.op(op, weight, net.op("Transpose", x, perm=[1, 0]), name="second"))
    y = net.op(op, x, weight, name="second", **attributes)
    return net.output(net.gemm(y, 2, name="third") if flat else net.conv(y, 2, name="third"))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_scales_for_each_input_channel(kind: str, lowering: str) -> None:
    model = network(kind).model()
    kept = {"second": [0, 3, 4, 7]}
    if "third" in trace(model).consumers:
        kept["third"] = [0, 3]
    check_emission(model, kept, lowering=lowering)


@pytest.mark.parametrize("kind", LAYERS)
def test_they_go_with_their_channels(kind: str) -> None:
    model = network(kind).model()
    traced, _, emitted = prune(model, {"second": [0, 3, 4, 7]}, lowering="gather")
    left = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    frozen = [segment for segment in traced.segments if "second" in segment.consumers and segment.frozen.all()]
    assert bool(frozen) == (kind == "grouped Conv")
    if not frozen and LAYERS[kind][0][LAYERS[kind][1]] == WIDTH:
        (node,) = (node for node in emitted.graph.node if node.op_type == "DequantizeLinear")
        assert left[node.input[1]] == left[node.input[2]] == [4]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("op", ["MatMulInteger", "QLinearMatMul"])
def test_scales_for_each_column_of_a_computed_matrix(op: str, flat: bool) -> None:
    """Both operands are computed; the right one's columns have a zero point, or a scale, each."""
    net = Net()
    x = net.input(shape=(6, WIDTH) if flat else (1, 6, WIDTH))
    one, zero = net.weight(np.float32(0.05)), net.weight(np.uint8(128))
    rows = net.op("QuantizeLinear", net.op("MatMul", x, net.weight(net.normal(WIDTH, 5)), name="rows"), one, zero)
    made = net.op("MatMul", x, net.weight(net.normal(WIDTH, WIDTH)), name="columns")
    columns = net.op("QuantizeLinear", made, one, zero)
    random = np.random.default_rng(0)
    per_column = (WIDTH,) if flat else (1, 1, WIDTH)
    zeros = net.weight(random.integers(120, 130, per_column).astype(np.uint8))
    turned = net.op("Transpose", rows, perm=[1, 0] if flat else [0, 2, 1])
    if op == "MatMulInteger":
        scales = zeros
        y = net.op("Cast", net.op(op, turned, columns, zero, zeros, elem_type=TensorProto.INT32), to=1)
    else:
        scales = net.weight((0.01 + 0.01 * random.random(per_column)).astype(np.float32))
        y = net.op(op, turned, one, zero, columns, scales, zeros, one, zero, elem_type=TensorProto.UINT8)
        y = net.op("DequantizeLinear", y, one, zero)
    model = net.output(net.op("MatMul", y, net.weight(net.normal(WIDTH, 3)), name="reader")).model()
    for lowering in ("union", "gather"):
        emitted = check_emission(model, {"reader": [1, 2, 5, 6]}, lowering=lowering, optimise=False)
        assert {tuple(t.dims)[-1] for t in emitted.graph.initializer if t.name in (zeros, scales)} == {4}
