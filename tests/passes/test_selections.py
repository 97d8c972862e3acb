"""Where selections stand, and what they leave together."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.builders import Net
from tests.passes.routed import named, nodes, routed, split_plan, written
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import MaskError


def fork_behind_concat(*between: str) -> onnx.ModelProto:
    """Two producers, joined; two consumers, each behind operators of its own."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    y = net.op("Concat", net.conv(x, 4, name="a"), net.conv(x, 4, name="b"), axis=1, name="both")
    for name in ("c", "d"):
        z = y
        for op in between:
            z = net.batch_norm(z) if op == "BatchNormalization" else net.op(op, z, name=f"{op}_{name}")
        net.output(net.conv(z, 4, name=name))
    return net.model()


def test_a_selection_goes_up_through_what_works_for_its_reader_alone() -> None:
    """DenseNet: what is not read is not normalised either."""
    model = fork_behind_concat("BatchNormalization", "Relu")
    emitted = routed(model, {"c": [0, 2, 5], "d": [1, 2, 5]}, {"c": "gather", "d": "gather"})
    (both,) = nodes(emitted, "Concat")
    assert [node.input[0] for node in nodes(emitted, "Gather", "Slice")] == [both.output[0]] * 2
    assert {
        tuple(t.dims) for t in emitted.graph.initializer if t.name in nodes(emitted, "BatchNormalization")[0].input
    } == {(3,)}


def test_a_selection_does_not_come_between_a_convolution_and_its_activation() -> None:
    """Though the depthwise layers and the activations behind them work for one reader each."""
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    ends = {name: net.op("Relu", net.batch_norm(net.depthwise(y, name=f"dw_{name}"))) for name in ("b", "c")}
    net.output(*[net.conv(end, 4, name=name) for name, end in ends.items()])
    emitted = routed(net.model(), {"b": [0, 2, 5], "c": [1, 2, 5]}, {"b": "gather", "c": "gather"})
    assert {node.input[0] for node in nodes(emitted, "Gather", "Slice")} == set(ends.values())


def test_a_selection_does_not_go_up_to_where_others_read() -> None:
    """The Relu is read by both, and whoever reads everything needs all of it."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    y = net.op("Relu", net.op("Concat", net.conv(x, 4, name="a"), net.conv(x, 4, name="b"), axis=1))
    emitted = routed(
        net.output(net.conv(y, 4, name="c"), net.conv(y, 4, name="d")).model(), {"c": [0, 2, 5]}, {"c": "gather"}
    )
    assert [node.input[0] for node in nodes(emitted, "Gather")] == [y]


def test_a_selection_on_a_tensor_with_two_axes_of_the_segment() -> None:
    """Sums of all pairs of channels: the axis that is read is selected from, the other is not."""
    net = Net()
    y = net.reshape(net.op("GlobalAveragePool", net.conv(net.input("x", (2, 3, 4, 4)), 8, name="a")), 2, 8)
    pairs = net.op("Add", net.reshape(y, 2, 8, 1), net.reshape(y, 2, 1, 8))
    by_column = net.op("MatMul", pairs, net.weight(net.normal(8, 3)), name="b")
    net.output(net.op("MatMul", net.weight(net.normal(5, 8)), by_column, name="c"))
    model = net.model()
    traced = trace(model)
    assert traced.consumers["b"].segment == traced.consumers["c"].segment and traced.consumers["b"].prunable.all()
    kept = {"b": [0, 2, 5], "c": [1, 2, 5, 7]}
    emitted = routed(model, kept, {"b": "gather"})
    (select,) = nodes(emitted, "Gather")
    assert select.input[0] == pairs and [a.i for a in select.attribute if a.name == "axis"] == [2]
    for lowering in ("partial", "concat"):
        with pytest.raises(MaskError, match="'b': can't read blocks"):
            split_plan(traced, kept, {"b": lowering}, [[0, 2, 5], [1, 7]])
    with pytest.raises(MaskError, match="'b': can't have producers of its own"):
        split_plan(traced, kept, {"b": "duplicate"})


def quantised() -> onnx.ModelProto:
    """Three convolutions with codecs in front, and int8 weights; two read what the first one makes."""
    net = Net(opset=17)
    parameters = [net.weight(np.float32(0.02)), net.weight(np.uint8(128))]

    def codec(x: str) -> str:
        return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parameters), *parameters)

    def conv(x: str, out: int, name: str) -> str:
        ints = net.random.integers(-127, 127, (out, net.shapes[x][1], 1, 1)).astype(np.int8)
        scale, zero = net.weight(np.full(out, 0.01)), net.weight(np.zeros(out, np.int8))
        return net.op("Conv", x, net.op("DequantizeLinear", net.weight(ints), scale, zero, axis=0), name=name)

    y = codec(conv(codec(net.input("x", (1, 4, 4, 4))), 8, "a"))
    return net.output(codec(conv(y, 4, "b")), codec(conv(y, 4, "c"))).model()


@pytest.mark.parametrize("kept", [[0, 2, 5], [1, 2, 3]])
def test_a_selection_stands_in_front_of_the_decoder(kept: list[int]) -> None:
    """onnxruntime makes one kernel of a convolution and the decoders in front of it: nothing may come between."""
    emitted = routed(quantised(), {"b": kept, "c": [1, 2, 3, 7]}, {"b": "gather"}, optimise=False)
    (select,) = nodes(emitted, "Gather", "Slice")
    makers = {node.output[0]: node.op_type for node in emitted.graph.node}
    readers = [node.op_type for node in emitted.graph.node if select.output[0] in node.input]
    assert makers[select.input[0]] == "QuantizeLinear" and readers == ["DequantizeLinear"]
    assert makers[named(emitted, "b").input[0]] == makers[named(emitted, "c").input[0]] == "DequantizeLinear"
    assert len([line for line in written(emitted) if line.startswith("b_select")]) == 1
