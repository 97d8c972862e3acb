"""What a model weighs, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.builders import Net
from ucpe_onnx.analysis.counts import count_macs, model_stats


def macs(net: Net, *outputs: str, **shapes: tuple[int, ...]) -> int | None:
    return count_macs(net.output(*outputs).model(), shapes)


def test_convolutions():
    net = Net()
    x = net.input("x", (2, 6, 10, 10))
    assert macs(net, net.conv(x, 4, 3)) == 2 * 4 * 100 * 6 * 9
    net = Net()
    assert macs(net, net.conv(net.input("x", (1, 6, 10, 10)), 4, 3, groups=2)) == 4 * 100 * 3 * 9
    net = Net()
    assert macs(net, net.depthwise(net.input("x", (1, 6, 10, 10)))) == 6 * 100 * 9
    net = Net()
    strided = net.conv(net.input("x", (1, 6, 10, 10)), 4, 3, strides=[2, 2])
    assert macs(net, strided) == 4 * 25 * 6 * 9


def test_transposed_convolution_counts_what_each_input_spreads():
    net = Net()
    x = net.input("x", (1, 6, 10, 10))
    y = net.op("ConvTranspose", x, net.weight(net.normal(6, 4, 2, 2)), strides=[2, 2])
    assert macs(net, y) == 6 * 100 * 4 * 4


def test_matrix_products():
    net = Net()
    assert macs(net, net.gemm(net.input("x", (5, 6)), 7)) == 5 * 6 * 7
    net = Net()
    y = net.op("Gemm", net.input("x", (6, 5)), net.weight(net.normal(6, 7)), transA=1)
    assert macs(net, y) == 5 * 6 * 7
    net = Net()
    assert macs(net, net.op("MatMul", net.input("x", (2, 3, 5, 6)), net.weight(net.normal(6, 7)))) == 2 * 3 * 5 * 6 * 7
    net = Net()
    assert macs(net, net.op("MatMul", net.input("x", (2, 5, 6)), net.input("z", (2, 6, 7)))) == 2 * 5 * 6 * 7


def test_dynamic_dimensions_are_those_of_the_run():
    net = Net()
    model = net.output(net.conv(net.input("x", ("N", 6, "H", "W")), 4)).model()
    assert count_macs(model, {"x": (3, 6, 5, 7)}) == 3 * 4 * 35 * 6
    assert count_macs(model, {}) is None


def test_other_operators_count_nothing():
    net = Net()
    assert macs(net, net.op("Relu", net.input("x", (1, 6, 4, 4)))) == 0
    net = Net()
    (y,) = net.ops("MatMul", net.input("x", (1, 6)), domain="nobody.knows", shapes=[(1, 6)])
    model = net.output(y).model()
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    assert count_macs(model, {}) == 0


def test_model_stats():
    net = Net()
    a = net.conv(net.input("x", (1, 6, 4, 4)), 8, 3)  # 6 * 8 * 9 + 8
    b, c = net.split(a, [4, 4])
    d = net.op("Concat", c, b, axis=1)
    e = net.op("Mul", d, net.constant(np.ones((1, 8, 1, 1), np.float32)))  # 8, as a Constant node
    model = net.output(net.op("Gather", e, net.ints(0, 1, 2), axis=1)).model()  # whole numbers are no parameters
    stats = model_stats(model, {})
    assert stats.parameters == 6 * 8 * 9 + 8 + 8
    assert stats.macs == 8 * 16 * 6 * 9
    assert stats.bytes == len(model.SerializeToString())
    assert stats.nodes == 6
    assert stats.copies == {"Gather": 1, "Slice": 0, "Split": 1, "Concat": 1, "Pad": 0}
    assert stats.to_dict()["copies"] == stats.copies and stats.to_dict()["nodes"] == 6


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE])
def test_parameters_of_other_widths(kind):
    net = Net()
    weight = net.weight(np.ones((8, 6), helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32))
    model = net.output(net.op("MatMul", net.input("x", (1, 8)), weight)).model()
    model.graph.initializer[0].data_type = kind
    assert model_stats(model, {}).parameters == 48


def test_macs_of_quantised_layers() -> None:
    """A layer of 8-bit integers has as many as one of floats."""
    net = Net()
    scale, zero = net.constant(0.1), net.weight(np.uint8(3))
    x = net.op("QuantizeLinear", net.input("x", (1, 3, 4, 4)), scale, zero)
    weight = net.weight(np.ones((8, 3, 1, 1), np.int8)), net.constant(0.1), net.weight(np.int8(0))
    y = net.op("QLinearConv", x, scale, zero, *weight, scale, zero)
    matrix = net.weight(np.ones((4, 5), np.int8)), net.constant(0.1), net.weight(np.int8(0))
    z = net.op("QLinearMatMul", y, scale, zero, *matrix, scale, zero)
    assert macs(net, z, x=(1, 3, 4, 4)) == 8 * 3 * 16 + 8 * 4 * 4 * 5


def test_recurrent_layers_read_their_input_and_themselves():
    net = Net()
    weights = [net.weight(net.normal(2, 4 * 5, size)) for size in (3, 5)]
    x = net.input("x", ("T", "N", 3))
    y = net.op("LSTM", x, *weights, hidden_size=5, direction="bidirectional")
    model = net.output(net.op("ReduceMean", y)).model()
    assert count_macs(model, {"x": (7, 2, 3)}) == 7 * 2 * 2 * 4 * 5 * (3 + 5)
    assert count_macs(model, {}) is None
