"""Every opset from 7 on, with its own forms of the operators that have changed, and every IR version from 3 on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.builders import Net
from tests.comparing import newest_versions
from tests.structure.checking import check

OPSETS = range(7, onnx.defs.onnx_opset_version() + 1)
IR_VERSIONS = range(3, onnx.IR_VERSION + 1)


def clip(net: Net, x: str) -> str:
    if net.opset < 11:
        return net.op("Clip", x, min=-3.0, max=3.0)
    return net.op("Clip", x, net.weight(np.float32(-3)), net.weight(np.float32(3)))


def dropout(net: Net, x: str) -> str:
    if net.opset < 12:
        return net.op("Dropout", x, ratio=0.5)
    return net.op("Dropout", x, net.weight(np.float32(0.5)))


def twice_as_large(net: Net, x: str) -> str:
    """Upsample, which Resize has replaced; its scales became the third input, roi the second."""
    scales = np.array([1, 1, 2, 2], dtype=np.float32)
    if net.opset < 9:
        return net.op("Upsample", x, scales=scales.tolist(), mode="nearest")
    if net.opset < 10:
        batch, size = net.shapes[x][0], net.shapes[x][1]
        shape = (batch, size, *(2 * side for side in net.shapes[x][2:]))
        return net.ops("Upsample", x, net.weight(scales), shapes=[shape], mode="nearest")[0]
    if net.opset < 11:
        return net.op("Resize", x, net.weight(scales), mode="nearest")
    return net.op("Resize", x, "" if net.opset >= 13 else net.weight(np.zeros(0, np.float32)), net.weight(scales))


def halves(net: Net, x: str) -> list[str]:
    """Split in two without sizes, which opset 18 wants to be told."""
    return net.ops("Split", x, outputs=2, axis=1, **({} if net.opset < 18 else {"num_outputs": 2}))


def net_of(opset: int, ir_version: int = 8) -> onnx.ModelProto:
    net = Net(opset=opset, ir_version=ir_version)
    x = net.input("x", (2, 3, 4, 4))
    x = clip(net, net.batch_norm(net.conv(x, 8, name="first")))
    x = net.pad(net.conv(x, 12, name="second"), [0, 0, 1, 1, 0, 0, 1, 1])
    x = net.unsqueeze(net.squeeze(net.unsqueeze(x, [0]), [0]), [2])
    left, right = halves(net, dropout(net, net.squeeze(x, [2])))
    x = net.op("Concat", twice_as_large(net, left), twice_as_large(net, net.slice(right, [1], [1], [5])), axis=1)
    x = net.reduce("ReduceMean", net.conv(x, 8, name="third"), [2, 3], keepdims=0)
    x = net.op("Softmax", net.gemm(x, 6, name="fourth"), axis=1)
    return net.output(net.gemm(x, 3, name="last")).model()


@pytest.mark.parametrize("opset", OPSETS)
def test_opset(opset: int) -> None:
    if opset > newest_versions()[0]:
        pytest.skip("this onnxruntime is older")
    traced = check(net_of(opset), pruned=["first", "second", "third"], whole=["fourth"])
    assert list(traced.consumers) == ["first", "second", "third", "fourth", "last"]


@pytest.mark.parametrize("ir_version", IR_VERSIONS)
def test_ir_version(ir_version: int) -> None:
    if ir_version > newest_versions()[1]:
        pytest.skip("this onnxruntime is older")
    check(net_of(8 if ir_version == 3 else 13, ir_version), pruned=["first", "second", "third"])


def test_an_old_ir_version_with_a_new_opset() -> None:
    """New constants have to be nodes there, whose forms depend on the opset."""
    check(net_of(13, 3), pruned=["first", "second", "third"])
