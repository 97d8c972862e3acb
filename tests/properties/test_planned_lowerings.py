"""Plans: left to choose, the solver does no worse than any lowering for all, and a saved plan emits the same bits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.builders import Masked, Net
from tests.properties.graphs import Case, models
from tests.properties.running import to_text
from tests.properties.test_emitted_equals_masked import _STYLES, _TARGETS, _masks
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.lowerings import LOWERINGS, Reads
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.planning.rates import Rates, default_rates
from ucpe_onnx.runtime.target import Target

pytestmark = pytest.mark.no_cover  # counting lines takes half as long again, and smaller tests run all of them

_LONG_RUN = os.environ.get("UCPE_FUZZ", "")
"""Number of examples for a long search with fresh random numbers; else few, and the same ones every time."""

TARGETS = (*_TARGETS, Target(read_multiple=2, joined_multiple=4, minimum=2, block=2))
AT_ONCE = tuple(name for name, x in LOWERINGS.items() if x.askable and not x.split and not x.contiguous)
"""Lowerings that leave a segment one block: the solver tries them all."""
IN_BLOCKS = tuple(name for name, x in LOWERINGS.items() if x.split)
"""Those for which it searches, until it is proven to be near enough to the best."""
NEAR_ENOUGH = 1.01


def without_calls(target: Target, copies: float) -> Rates:
    """Rates at which one more node costs nothing, so that splits pay in small graphs; copies may be dear."""
    rates = default_rates(target)
    factors = dict.fromkeys(("reorder", "gather", "slice", "concat"), copies)
    coefficients = {
        family: {name: 0.0 if name == "call" else rate * factors.get(family, 1.0) for name, rate in amounts.items()}
        for family, amounts in rates.coefficients.items()
    }
    return replace(rates, coefficients=coefficients)


def check_choice(model: onnx.ModelProto, traced: Trace, masks: Mapping[str, Mask], chosen: Settings) -> Plan:
    """Hold ``auto`` against every lowering for all, save and load its plan; returns it."""
    plan = make_plan(traced, masks, replace(chosen, lowering="auto"))
    for lowering in (*AT_ONCE, *IN_BLOCKS):
        other = make_plan(traced, masks, replace(chosen, lowering=lowering))
        for ours, theirs in zip(plan.segments, other.segments, strict=True):
            limit = theirs.objective * (1.0 if lowering in AT_ONCE else NEAR_ENOUGH)
            assert ours.objective <= limit + 2e-3, (lowering, ours, theirs)  # objectives are rounded
            assert ours.bound <= theirs.objective + 2e-3, (lowering, ours, theirs)
    emitted = emit(model, traced, plan)
    onnx.checker.check_model(emitted, full_check=True)
    loaded = check_plan(Plan.from_dict(json.loads(json.dumps(plan.to_dict()))), traced, "")
    assert loaded == plan
    again = emit(model, traced, loaded)
    assert again.SerializeToString(deterministic=True) == emitted.SerializeToString(deterministic=True)
    by_hand = replace(plan, consumers={name: replace(c, read=()) for name, c in plan.consumers.items()})
    kinds = {name: kind for segment in plan.segments for name, kind in segment.lowerings.items()}
    for name, consumer in check_plan(by_hand, traced, "").consumers.items():
        if LOWERINGS[kinds[name]].reads != Reads.SELECTION:  # which may read more than they keep, to fill a width up
            assert consumer.read == plan.consumers[name].read
    return plan


@settings(
    max_examples=int(_LONG_RUN or 150),
    derandomize=not _LONG_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    case=models(16),
    styles=st.lists(st.sampled_from(_STYLES), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    target=st.sampled_from(TARGETS),
    copies=st.sampled_from([None, 1.0, 50.0]),
)
def test_auto_in_random_graphs(case: Case, styles: list[str], seed: int, target: Target, copies: float | None) -> None:
    model, _ = case
    note(to_text(model))
    traced = trace(model)
    masks = _masks(traced, styles, np.random.default_rng(seed))
    rates = None if copies is None else without_calls(target, copies)
    check_choice(model, traced, masks, Settings(target, fill=bool(seed % 2), seconds=60.0, rates=rates))


def trunk(channels: int = 128, image: int = 14) -> onnx.ModelProto:
    """Three blocks on a residual trunk, and a head."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, image, image)), channels, 3, name="stem"))
    for i in range(3):
        inner = net.op("Relu", net.conv(y, channels // 2, name=f"in{i}"))
        y = net.op("Relu", net.op("Add", net.conv(inner, channels, name=f"out{i}"), y))
    return net.output(net.gemm(net.op("Flatten", net.op("GlobalAveragePool", y)), 10, name="head")).model()


@pytest.mark.parametrize("halves", [False, True])
def test_auto_on_a_residual_trunk(halves: bool) -> None:
    """Of the size that onnxruntime's layout has been made for, with the rates that are assumed for it."""
    model = trunk()
    traced, random = trace(model), np.random.default_rng(0)
    open_ones = [name for name, consumer in traced.consumers.items() if consumer.prunable.all()]
    masks = {name: random.random(traced.consumers[name].channels) < 0.5 for name in open_ones}
    if halves:  # two readers that have nothing in common need nothing but a block each
        masks = {name: np.arange(128) // 64 == index % 2 for index, name in enumerate(["in0", "in1", "in2", "head"])}
    plan = check_choice(model, traced, masks, Settings(Target(), seconds=60.0))
    Masked(model, masks).check(emit(model, traced, plan))
    if halves:
        decided = plan.segments[traced.consumers["in0"].segment]
        assert decided.split and set(decided.lowerings.values()) <= {"partial", "concat"}
        assert all(len(plan.consumers[name].read) == 64 for name in masks)
