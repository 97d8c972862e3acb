"""Operators that keep a part of a layer's channels: the graph they are tried in, and how much of a weight is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.analysis.operator_cases import PLAIN
from tests.builders import Net, check_emission

Step = Callable[[Net, str], str]


def made_by(model: onnx.ModelProto, name: str, axis: int = 0) -> int:
    """Length of an axis of a node's weight."""
    (node,) = [node for node in model.graph.node if node.name == name]
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return dims[node.input[1]][axis]


def checked(step: Step, kept: dict[str, list[int]], opset: int = 18) -> onnx.ModelProto:
    """x -> conv ``a`` of eight channels -> step -> conv ``b``, emitted with every lowering."""
    net = Net(opset=opset, ir_version=10 if opset > 18 else 8)
    y = step(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    model = net.output(net.conv(y, 4, name="b")).model()
    for lowering in ("gather", "slice", "union"):
        emitted = check_emission(model, kept, target=PLAIN, lowering=lowering)
    return emitted


def along(op_type: str, **attributes: object) -> Step:
    return lambda net, x: net.op(op_type, x, **attributes)


OTHER_AXES: dict[str, Step] = {
    "CumSum": lambda net, x: net.op("CumSum", x, net.weight(np.int64(-1))),
    "Hardmax": along("Hardmax", axis=3),
    "LpNormalization": along("LpNormalization", axis=2),
    "TopK": lambda net, x: net.ops("TopK", x, net.ints(2), outputs=2, axis=2)[0],
    "Trilu": along("Trilu"),
    "Expand": lambda net, x: net.op("Expand", net.op("GlobalMaxPool", x), net.ints(1, 1, 3, 3)),
    "GridSample": lambda net, x: net.op("GridSample", x, net.weight(net.random.uniform(-1, 1, (1, 2, 3, 2)))),
    "RoiAlign": lambda net, x: net.op(
        "RoiAlign", x, net.weight(np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32)), net.ints(0, 0)
    ),
    "MaxRoiPool": lambda net, x: net.op(
        "MaxRoiPool", x, net.weight(np.array([[0, 0, 0, 2, 2]], np.float32)), pooled_shape=[2, 2]
    ),
}
