"""Operators of which two operands share an axis that channels have been merged into: both go, or none."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders import Net
from tests.traps.trapping import check, check_halves
from ucpe_onnx.analysis.trace import trace

HEADS, SIZE, PLACES = 6, 4, 5


def heads_in_batch(net: Net) -> str:
    """Features of (6 heads, 4, 2, 3), made by a layer whose channels are heads times size."""
    x = net.input(shape=(1, 6, 8))
    x = net.op("MatMul", x, net.weight(net.normal(8, HEADS * SIZE)), name="value")
    return net.reshape(net.op("Transpose", x, perm=[0, 2, 1]), HEADS, SIZE, 2, 3)


def read(net: Net, x: str) -> Net:
    x = net.op("Transpose", net.reshape(x, 1, HEADS * SIZE, PLACES), perm=[0, 2, 1])
    return net.output(net.op("MatMul", x, net.weight(net.normal(HEADS * SIZE, 3)), name="reader"))


@pytest.mark.parametrize("grid", ["input", "constant", "made"])
def test_the_batch_of_gridsample(grid: str) -> None:
    net = Net()
    x = heads_in_batch(net)
    if grid == "input":
        places = net.input("grid", shape=(HEADS, PLACES, 1, 2))
    elif grid == "constant":
        places = net.weight(np.random.default_rng(0).random((HEADS, PLACES, 1, 2)).astype(np.float32))
    else:
        seen = net.input("seen", shape=(PLACES * 2, 8))
        made = net.op("MatMul", seen, net.weight(net.normal(8, HEADS)), name="places")
        places = net.reshape(net.op("Tanh", net.op("Transpose", made, perm=[1, 0])), HEADS, PLACES, 1, 2)
    net = read(net, net.op("GridSample", x, places))
    kept = [channel for channel in range(HEADS * SIZE) if channel // SIZE not in (1, 4)]
    if grid != "input":
        check(net, {"reader": kept})
    traced = trace(net.model()) if grid == "input" else check_halves(net.model())
    (segment,) = (segment for segment in traced.segments if "value" in segment.producers)
    assert segment.frozen.all() == (grid == "input"), segment.reasons


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_scale_that_varies_along_channels_too(op: str, wide: bool) -> None:
    """The scale of a normalisation over the last axis may have the axes before it as well."""
    net = Net(opset=23, ir_version=11)
    x = net.conv(net.input(shape=(1, 3, 4)), 8, name="first")
    scale = net.weight(net.normal(8, 4) if wide else net.normal(4))
    y = net.op(op, x, scale, axis=-1)
    model = net.output(net.conv(y, 2, name="second")).model()
    traced = trace(model)
    (segment,) = (segment for segment in traced.segments if "first" in segment.producers)
    assert segment.frozen.all() == wide
    if not wide:
        check(net, {"second": [0, 2, 5]})
