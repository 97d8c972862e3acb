"""Which nodes can make a part of their channels, which only join or cut, and what a consumer reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.builders import Net
from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.restriction import Restrictions
from ucpe_onnx.analysis.structure import Trace
from ucpe_onnx.analysis.trace import trace

Middle = Callable[[Net, str], str]


def traced_middle(middle: Middle, opset: int = 17) -> tuple[Trace, Node]:
    """x -> a (8 channels) -> a node called middle -> head; the model's analysis and that node."""
    net = Net(opset=opset)
    y = middle(net, net.conv(net.input("x", (2, 3, 6, 6)), 8, name="a"))
    y = net.reshape(y, *net.shapes[y], 1, 1) if len(net.shapes[y]) == 2 else y
    traced = trace(net.output(net.conv(y, 4, name="head")).model())
    (node,) = [node for node in traced.graph.nodes if node.name == "middle"]
    return traced, node


def kind(traced: Trace, node: Node, tensor: str | None = None) -> str:
    """In which way a node can make a part of what the head reads, or of a given tensor."""
    known, segment = Restrictions(traced), traced.consumers["head"].segment
    if known.joins(node, segment):
        return "joins"
    if known.cuts(node, tensor or node.outputs[0], segment):
        return "cuts"
    return "runs" if known.restrictable(node, segment) else "whole"


def coded_weight(net: Net, x: str) -> str:
    codec = [net.weight(np.full(8, 0.01)), net.weight(np.zeros(8, np.int8))]
    ints = net.weight(net.random.integers(-9, 9, (8, 8, 1, 1)).astype(np.int8))
    return net.op("Conv", x, net.op("DequantizeLinear", ints, *codec, axis=0), name="middle")


MIDDLES: dict[str, tuple[str, Middle]] = {
    "activation": ("runs", lambda net, x: net.op("Relu", x, name="middle")),
    "sum": ("runs", lambda net, x: net.op("Add", x, net.conv(x, 8), name="middle")),
    "sum with itself": ("runs", lambda net, x: net.op("Add", x, x, name="middle")),
    "number for each channel": (
        "runs",
        lambda net, x: net.op("Mul", x, net.weight(net.normal(8, 1, 1)), name="middle"),
    ),
    "slope for each channel": (
        "runs",
        lambda net, x: net.op("PRelu", x, net.weight(net.normal(8, 1, 1)), name="middle"),
    ),
    "pool": ("runs", lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2], name="middle")),
    "producer": ("runs", lambda net, x: net.conv(x, 8, name="middle")),
    "producer on a residual branch": ("runs", lambda net, x: net.op("Add", net.conv(x, 8, name="middle"), x)),
    "transposed producer": (
        "runs",
        lambda net, x: net.op("ConvTranspose", x, net.weight(net.normal(8, 6, 2, 2)), name="middle"),
    ),
    "depthwise": ("runs", lambda net, x: net.depthwise(x, name="middle")),
    "groups": ("whole", lambda net, x: net.conv(x, 8, groups=2, name="middle")),
    "weight behind a codec": ("whole", coded_weight),
    "flat pooled map": ("runs", lambda net, x: net.op("Flatten", net.op("GlobalAveragePool", x), name="middle")),
    "flat map": ("whole", lambda net, x: net.op("Flatten", x, name="middle")),
    "normalised over channels": ("whole", lambda net, x: net.op("Softmax", x, axis=1, name="middle")),
    "concat": ("joins", lambda net, x: net.op("Concat", x, net.conv(x, 4), axis=1, name="middle")),
    "concat along the height": ("runs", lambda net, x: net.op("Concat", x, x, axis=2, name="middle")),
    "concat with a constant": (
        "whole",
        lambda net, x: net.op("Concat", x, net.weight(net.normal(2, 4, 6, 6)), axis=1, name="middle"),
    ),
    "cut": ("cuts", lambda net, x: net.op("Slice", x, *map(net.ints, (2, 6, 1)), name="middle")),
    "every other channel": ("whole", lambda net, x: net.op("Slice", x, *map(net.ints, (0, 8, 1, 2)), name="middle")),
    "cut height": ("runs", lambda net, x: net.op("Slice", x, *map(net.ints, (2, 6, 2)), name="middle")),
    "turned upside down": ("runs", lambda net, x: net.op("Slice", x, *map(net.ints, (-1, -9, 2, -1)), name="middle")),
    "cut channels and height": (
        "whole",
        lambda net, x: net.op("Slice", x, net.ints(2, 0), net.ints(6, 3), net.ints(1, 2), name="middle"),
    ),
    "part of the channels": ("cuts", lambda net, x: net.ops("Split", x, outputs=2, axis=1, name="middle")[1]),
    "part of the height": ("runs", lambda net, x: net.op("Slice", x, *map(net.ints, (0, 3, 2)), name="middle")),
}


@pytest.mark.parametrize("case", MIDDLES)
def test_what_a_node_can_do(case: str) -> None:
    wanted, middle = MIDDLES[case]
    traced, node = traced_middle(middle)
    output = next(name for name in reversed(node.outputs) if name)
    assert kind(traced, node, output) == wanted


@pytest.mark.parametrize("opset", [9, 10, 13])
def test_cuts_are_known_in_every_opset(opset: int) -> None:
    def halves(net: Net, x: str) -> str:
        return net.split(net.slice(x, [1], [2], [8]), [4, 2])[0]

    net = Net(opset=opset)
    y = halves(net, net.conv(net.input("x", (2, 3, 6, 6)), 8, name="a"))
    traced = trace(net.output(net.conv(y, 4, name="head")).model())
    cutting = [node for node in traced.graph.nodes if node.op_type in ("Slice", "Split")]
    assert [kind(traced, node) for node in cutting] == ["cuts", "cuts"]


def test_a_tensor_with_two_axes_of_a_segment_has_no_channel_axis() -> None:
    net = Net()
    y = net.reshape(net.op("GlobalAveragePool", net.conv(net.input("x", (2, 3, 4, 4)), 8, name="a")), 2, 8)
    pairs = net.op("Add", net.reshape(y, 2, 8, 1), net.reshape(y, 2, 1, 8))
    columns = net.op("MatMul", pairs, net.weight(net.normal(8, 3)), name="b")
    traced = trace(net.output(net.op("MatMul", net.weight(net.normal(5, 8)), columns, name="c")).model())
    known, segment = Restrictions(traced), traced.consumers["b"].segment
    assert known.segments(pairs) == [segment] and known.channel_axis(pairs, segment) is None
    assert known.channel_axis(columns, segment) == (columns, 1)
    assert not known.restrictable(traced.graph.makers[pairs], segment)


def test_what_a_consumer_reads() -> None:
    """Its data input, on whichever side."""
    net = Net()
    y = net.reshape(net.op("GlobalAveragePool", net.conv(net.input("x", (2, 3, 4, 4)), 8, name="a")), 2, 8)
    left = net.op("MatMul", net.weight(net.normal(5, 2)), net.gemm(y, 6, name="g"), name="left")
    traced = trace(net.output(left).model())
    places = {name: Restrictions(traced).consumed_input(c.use.node) for name, c in traced.consumers.items()}
    assert places == {"a": 0, "g": 0, "left": 1}
    assert Restrictions(traced).consumed_input(traced.graph.makers[y]) is None
