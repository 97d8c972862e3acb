"""Feature maps that a Concat joins, left out of the blocked layout where every reader selects from them anyway."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.builders import Masked, Net
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.random_feeds import random_feeds
from ucpe_onnx.runtime.target import TARGETS
from ucpe_onnx.samples.inputs import input_specs

SETTINGS = Settings(target=TARGETS["avx512"])


def dense_block(layers: int = 10, growth: int = 32, size: int = 28, *, pooled: bool = False) -> onnx.ModelProto:
    """Every layer reads all feature maps before it, joined."""
    net = Net()
    maps = [net.conv(net.input("x", (1, 3, size, size)), growth, name="stem")]
    if pooled:
        maps[0] = net.op("MaxPool", maps[0], kernel_shape=[1, 1])
    for index in range(layers):
        joined = net.op("Concat", *maps, axis=1) if len(maps) > 1 else maps[0]
        reduced = net.op("Relu", net.conv(joined, 64, name=f"reduce{index}"))
        maps.append(net.conv(reduced, growth, 3, name=f"grow{index}"))
    return net.output(net.conv(net.op("Concat", *maps, axis=1), 16, name="head")).model()


def half(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every reader of the maps keeps its own half of the channels, but nobody ever the first of each map."""
    random, masks = np.random.default_rng(0), {}
    for name, consumer in trace(model).consumers.items():
        if name.startswith(("reduce", "head")):
            mask = random.random(consumer.channels) < 0.5
            mask[::32] = False
            mask[1] = True
            masks[name] = mask
    return masks


@pytest.mark.parametrize("pooled", [False, True])
def test_maps_get_uneven_widths_where_that_is_predicted_to_pay(pooled: bool) -> None:
    model = dense_block(pooled=pooled)
    traced, masks = trace(model), half(model)
    auto, gather = (make_plan(traced, masks, replace(SETTINGS, lowering=name)) for name in ("auto", "gather"))
    shared = next(s for s in auto.segments if "head" in s.lowerings)
    groups = traced.segments[shared.id].groups
    widths = [len(set(group) & set(shared.order)) for group in groups]
    assert any(width % 16 for width in widths)
    assert pooled <= (widths[0] % 16 == 0), "pools stay in the blocked layout"
    assert auto.predicted_us < gather.predicted_us
    assert {"gather"} <= set(shared.lowerings.values()) <= {"gather", "slice", "union", "direct"}
    Masked(model, masks, *(random_feeds(input_specs(model), seed) for seed in range(2))).check(
        emit(model, traced, auto)
    )


def test_other_targets_keep_widths_that_run_well() -> None:
    model = dense_block()
    traced, masks = trace(model), half(model)
    plan = make_plan(traced, masks, Settings(target=TARGETS["openvino"]))
    shared = next(s for s in plan.segments if "head" in s.lowerings)
    assert all(len(block) % 8 == 0 for block in shared.blocks)
