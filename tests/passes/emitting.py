"""A small model to emit, and what of it tests look at."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.builders import Net, prune
from ucpe_onnx.passes import Emission
from ucpe_onnx.runtime.target import Target

PLAIN = Target(blocked=False)


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def emission(model: onnx.ModelProto, kept: dict[str, list[int]], **settings: object) -> Emission:
    traced, plan, _ = prune(model, kept, target=PLAIN, **settings)
    return Emission(traced, plan)


def fork() -> onnx.ModelProto:
    """x -> a (8) -> b and c."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    return net.output(net.conv(a, 2, name="b"), net.conv(a, 2, name="c")).model()
