"""Readers of channels that must stay: who is offered a selection of them, and what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.builders import Net
from ucpe_onnx import Result, prune
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.planning.rates import default_rates
from ucpe_onnx.planning.selecting import selecting_readers
from ucpe_onnx.runtime.target import TARGETS


def block(width: int, *, readers: int = 1, length: int = 64) -> onnx.ModelProto:
    """A feed-forward block behind a LayerNormalization, which keeps all of its channels."""
    net = Net()
    x = net.input("x", (1, length, width))
    scale, shift = net.weight(np.ones(width)), net.weight(np.zeros(width))
    normal = net.op("LayerNormalization", x, scale, shift, axis=-1)
    for number in range(readers):
        up = net.op("MatMul", normal, net.weight(net.normal(width, 4 * width)), name=f"up{number}")
        down = net.op("MatMul", net.op("Relu", up), net.weight(net.normal(4 * width, width)), name=f"down{number}")
        x = net.op("Add", x, down)
    return net.output(x).model()


def run(model: onnx.ModelProto, **options: Any) -> Result:
    return prune(model, **{"bench_seconds": 0.0, "threads": 1, "opt_level": "extended", **options})


def kept(result: Result, name: str) -> int:
    return len(result.plan.consumers[name].keep)


def test_a_selection_is_offered_where_it_is_predicted_to_pay() -> None:
    target = TARGETS["avx512"]
    rates = default_rates(target, 1)
    for width, offered in ((16, frozenset()), (768, frozenset({"up0"}))):
        assert selecting_readers(trace(block(width)), target, rates, lambda _: 0.5) == offered
    assert not selecting_readers(trace(block(768)), target, rates, lambda _: 0.0)
    assert not selecting_readers(trace(block(768)), target, rates, lambda _: 1.0)


def test_a_convolution_on_an_image_is_offered_none() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 224, 224)), 32, 3, name="stem")
    model = net.output(net.conv(a, 8, name="head")).model()
    target = TARGETS["avx512"]
    assert not selecting_readers(trace(model), target, default_rates(target, 1), lambda _: 0.5)


@pytest.mark.parametrize("mode", ["auto", "unconstrained"])
def test_the_reader_drops_its_share_and_the_others_stay(mode: str) -> None:
    result = run(block(512), mode=mode, ratio=0.5)
    assert kept(result, "up0") == 256 and kept(result, "down0") == 1024
    assert result.plan.segments[result.plan.consumers["up0"].segment].order == tuple(range(512))
    gathers = [node for node in result.model.graph.node if node.op_type == "Gather"]
    assert len(gathers) == 1
    assert result.report.after.macs is not None and result.report.before.macs is not None
    assert result.report.after.macs < 0.4 * result.report.before.macs


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5, "mode": "constrained"}, {"ratio": 0.0}, {"ratio": 0.5, "ignore": ("up*",)}]
)
def test_nobody_selects_unasked(options: dict[str, Any]) -> None:
    assert kept(run(block(512), **options), "up0") == 512


def test_a_reader_that_is_named_selects_in_any_case() -> None:
    result = run(block(16), ratio=0.0, ratio_for=(("up0", 0.5),), mode="unconstrained")
    assert kept(result, "up0") == 8


def test_work_is_saved_by_selections_too() -> None:
    """Of the hidden channels alone at most three quarters of the work go."""
    result = run(block(512), target_macs=0.2, max_ratio=0.75)
    assert result.report.budget is not None and result.report.budget.reached <= 0.204
    assert kept(result, "up0") < 512


def test_a_selection_is_compensated_for() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(96, 512)) @ rng.normal(size=(512, 512)) / 40
    data = {"x": np.tile(mixed.astype(np.float32)[:, None], (1, 64, 1))}
    data["x"] += rng.normal(size=data["x"].shape).astype(np.float32) / 10
    result = run(block(512), ratio=0.5, data=data)
    assert kept(result, "up0") == 256
    assert result.report.compensation is not None
    assert "up0" in {layer.name for layer in result.report.compensation.layers}
