"""No channel is made that nobody reads, nothing is selected twice, nor left out by a sole reader.

``UCPE_SEEDS=1 pytest tests/properties/test_nothing_wasted.py`` tries all lowerings, modes and targets on every
architecture, and takes minutes; without it every third architecture gets one of them.
"""

from __future__ import annotations

import os
from itertools import product

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from models import ARCHITECTURES, build
from tests.builders import Masked, Net
from tests.properties.graphs import Case, models
from tests.properties.running import to_text
from tests.properties.test_architectures import random_masks
from tests.properties.test_emitted_equals_masked import _STYLES, _masks
from tests.properties.wasted import repeated_selections, selections, unread_channels
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.structure import Trace
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.budget.losses import Losses, find_layers
from ucpe_onnx.budget.problem import Problem
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.planning.rates import default_rates
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.selection.criteria import score_consumers
from ucpe_onnx.selection.select import Selection, select_masks

pytestmark = pytest.mark.no_cover  # counting lines takes half as long again, and smaller tests run all of them

_ALL = bool(os.environ.get("UCPE_SEEDS"))
_MODES = ("unconstrained", "constrained", "auto", "random")
_TARGETS = ("ratio", "macs")
_COMBINATIONS = [
    (lowering, mode, target)
    for lowering, target, mode in product(LOWERING_RULES, _TARGETS, _MODES)
    if target == "ratio" or mode != "random"
]
_LARGE = ("vgg16_bn", "wide_resnet50_2", "hrnet_w18", "densenet121", "efficientnet_v2_s", "res2net50_26w_4s", "dpn68b")
_NAMES = [name for name in ARCHITECTURES if _ALL or name not in _LARGE][:: 1 if _ALL else 3]
_SLOW_TO_CHOOSE = 40
"""Consumers of a model for which a budget is met in a moment."""


def _chosen(traced: Trace, mode: str, target: str) -> dict[str, Mask]:
    """Masks as the command line would choose them for ``--ratio .5`` or ``--target-macs .7``."""
    if mode == "random":
        return random_masks(traced, 3)
    if target == "ratio":
        scores = score_consumers(traced, "l1", 0)
        return select_masks(traced, scores, Selection(0.5, constrained=mode == "constrained"))
    names = [name for name, consumer in traced.consumers.items() if consumer.prunable.any()]
    losses = Losses(traced, Statistics({}, 0), find_layers(traced.graph), dict.fromkeys(names, 1.0))
    runtime = Target()
    chosen = Problem("model", traced, losses, runtime, default_rates(runtime), mode).knapsack("macs").solve(0.7, 0.3)
    assert chosen is not None
    return dict(chosen.masks)


def check_nothing_wasted(model: onnx.ModelProto, emitted: onnx.ModelProto) -> None:
    """The three facts, but for what the model wasted before."""
    assert sum(unread_channels(emitted).values()) <= sum(unread_channels(model).values())
    assert not repeated_selections(emitted, model)


@pytest.mark.parametrize("name", _NAMES)
def test_architectures(name: str) -> None:
    model = build(name, image=ARCHITECTURES[name].small)
    traced = trace(model)
    place = list(ARCHITECTURES).index(name)
    combinations = [c for c in _COMBINATIONS if _ALL or c[2] == "ratio" or len(traced.consumers) <= _SLOW_TO_CHOOSE]
    for lowering, mode, target in combinations if _ALL else [combinations[7 * place % len(combinations)]]:
        masks = _chosen(traced, mode, target)
        fill = mode in ("constrained", "auto")
        emitted = emit(model, traced, make_plan(traced, masks, Settings(lowering=lowering, fill=fill, seconds=1.0)))
        note = (lowering, mode, target)
        assert not unread_channels(emitted), note
        assert not repeated_selections(emitted, model), note
        if mode == "constrained":
            assert not selections(emitted, model), note


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=models(12),
    styles=st.lists(st.sampled_from(_STYLES), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    lowering=st.sampled_from(tuple(LOWERING_RULES)),
    target=st.sampled_from([Target(blocked=False), Target(), Target(read_multiple=2, joined_multiple=4, minimum=2)]),
)
def test_random_graphs(case: Case, styles: list[str], seed: int, lowering: str, target: Target) -> None:
    """Longer searches find what is no waste of ours: shuffles that the model does twice, and consumers that go since
    nothing but the length of what they make was read.
    """
    model, _ = case
    note(to_text(model))
    traced = trace(model)
    masks = _masks(traced, styles, np.random.default_rng(seed))
    emitted = emit(model, traced, make_plan(traced, masks, Settings(target, lowering=lowering)))
    check_nothing_wasted(model, emitted)


def _fork(kept: int) -> tuple[onnx.ModelProto, dict[str, Mask]]:
    """A convolution of 64 channels that a convolution and a Gemm read, which keep the same."""
    net = Net()
    stem = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 64, 3, name="stem"))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", stem))
    model = net.output(net.conv(stem, 8, name="conv"), net.gemm(pooled, 5, name="gemm")).model()
    mask = np.arange(64) < kept
    return model, {"conv": mask, "gemm": mask}


@pytest.mark.parametrize("lowering", LOWERING_RULES)
@pytest.mark.parametrize("fill", [False, True])
def test_readers_that_keep_the_same_select_nothing(lowering: str, *, fill: bool) -> None:
    model, masks = _fork(33)
    traced = trace(model)
    plan = make_plan(traced, masks, Settings(Target(), lowering=lowering, fill=fill))
    emitted = emit(model, traced, plan)
    Masked(model, plan.masks()).check(emitted)
    assert not selections(emitted, model)
    assert not unread_channels(emitted)
    if not fill:
        assert all((plan.consumers[name].mask() == mask).all() for name, mask in masks.items())


def test_what_fills_a_width_up_is_selected_with_the_rest() -> None:
    """Two Gemms that share nothing, of a width that is rounded from 33 to 48 for the pool."""
    model, masks = _fork(33)
    masks = {"conv": masks["conv"] & (np.arange(64) % 2 == 0), "gemm": masks["gemm"] & (np.arange(64) % 2 == 1)}
    traced = trace(model)
    plan = make_plan(traced, masks, Settings(Target(), lowering="gather"))
    emitted = emit(model, traced, plan)
    Masked(model, masks).check(emitted)
    assert not unread_channels(emitted)
    assert len(selections(emitted, model)) == 2
    assert len(plan.consumers["conv"].read) % 4 == 0
