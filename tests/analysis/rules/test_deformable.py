"""DeformConv reads and makes channels like a convolution; where it reads is told by inputs that stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.rules.cases import made_by
from tests.builders import Net
from tests.traps.trapping import PLAIN, check, check_halves
from ucpe_onnx.analysis.trace import trace

WINDOW = 9


def deformable(net: Net, x: str, offsets: str, *more: str, out: int = 6, **attributes: object) -> str:
    weight = net.weight(net.normal(out, net.shapes[x][1] // int(str(attributes.get("group", 1))), 3, 3))
    return net.op("DeformConv", x, weight, offsets, *more, name="d", pads=[1] * 4, kernel_shape=[3, 3], **attributes)


@pytest.mark.parametrize("batch", [1, "n"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_channels_go_and_places_stay(batch: int | str, bias: bool, masked: bool) -> None:
    net = Net(opset=19, ir_version=9)
    x = net.conv(net.input("x", (batch, 3, 4, 4)), 8, name="a")
    offsets = net.conv(x, 2 * WINDOW, name="offsets")
    more = [net.weight(net.normal(6)) if bias else ""]
    more += [net.op("Sigmoid", net.conv(x, WINDOW, name="mask"))] if masked else []
    net.output(net.conv(net.op("Relu", deformable(net, x, offsets, *more)), 2, name="b"))
    traced = trace(net.model())
    assert traced.consumers["d"].prunable.all() and traced.consumers["b"].prunable.all()
    keeps = {"d": [0, 3, 5], "b": [1, 2], "offsets": [0, 5], **({"mask": [3]} if masked else {})}
    for emitted in check(net, keeps, PLAIN).values():
        assert (made_by(emitted, "d", 1), made_by(emitted, "d"), made_by(emitted, "offsets")) == (3, 2, 2 * WINDOW)
        assert made_by(emitted, "a") == 3
    check_halves(net.model())


@pytest.mark.parametrize("groups", [{"group": 2}, {"offset_group": 2}], ids=str)
def test_groups_are_not_followed(groups: dict[str, int]) -> None:
    net = Net(opset=19, ir_version=9)
    x = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    offsets = net.conv(x, 2 * WINDOW * groups.get("offset_group", 1))
    traced = trace(net.output(deformable(net, x, offsets, **groups)).model())
    assert "d" not in traced.consumers
    assert any("DeformConv at d" in reason for segment in traced.segments for reason in segment.reasons)


def test_offsets_of_the_same_batch_keep_it() -> None:
    """Heads that are merged into the batch: a batch that loses some must not read the offsets of all."""
    net = Net(opset=19, ir_version=9)
    x = net.conv(net.input("x", (1, 6, 4, 4)), 8, name="a")
    data = net.reshape(x, 4, 2, 4, 4)
    offsets = net.weight(np.zeros((4, 2 * WINDOW, 4, 4), np.float32))
    net.output(net.conv(net.reshape(deformable(net, data, offsets), 1, 24, 4, 4), 2, name="b"))
    check_halves(net.model())
