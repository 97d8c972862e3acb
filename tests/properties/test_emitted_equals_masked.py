"""The project's promise: any graph, any mask, any lowering: the emitted model computes what the masked model does."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from tests.builders import feeds_for, run
from tests.explaining import assert_explained
from tests.properties.graphs import Case, models
from tests.properties.running import close, is_steady, runs, runs_optimised, to_text
from tests.properties.splitting import split_at_random
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target

pytestmark = pytest.mark.no_cover  # counting lines takes half as long again, and smaller tests run all of them

_LONG_RUN = os.environ.get("UCPE_FUZZ", "")
"""Number of examples for a long search with fresh random numbers; else few, and the same ones every time."""
_STEPS = int(os.environ.get("UCPE_FUZZ_STEPS", "12"))
"""The most operators, or small groups of them, in a graph."""

_TARGETS = (
    Target(blocked=False),
    Target(blocked=False),
    Target(),
    Target(read_multiple=2, joined_multiple=4, minimum=2),
)
"""Mostly the one that does not round widths up: in small graphs rounding keeps nearly everything."""
_STYLES = ("all", "half", "most", "few", "one", "run", "ends", "same")


@settings(
    max_examples=int(_LONG_RUN or 400),
    derandomize=not _LONG_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(
    case=models(_STEPS),
    styles=st.lists(st.sampled_from(_STYLES), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    target=st.sampled_from(_TARGETS),
)
def test_emitted_equals_masked(case: Case, styles: list[str], seed: int, target: Target) -> None:
    model, shapes = case
    feeds = feeds_for(model, seed, shapes=shapes)
    before = model.SerializeToString(deterministic=True)
    optimise = runs_optimised(model)
    assume(runs(model, feeds, optimise=optimise))
    note(to_text(model))
    traced = trace(model)
    assert_explained(traced)
    masks = _masks(traced, styles, np.random.default_rng(seed))
    note(f"masks: { {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} }")
    references, plans, emitted_before = {}, {}, []
    for fill in (False, True):
        for lowering in (*LOWERING_RULES, "random blocks"):
            note(f"lowering {lowering}, fill {fill}")
            if lowering == "random blocks":
                plan = split_at_random(traced, plans["union", fill], np.random.default_rng(seed))
                plan = check_plan(plan, traced, "")
                note(f"{plan.segments} {[(name, c.read) for name, c in plan.consumers.items()]}")
            else:
                plan = make_plan(traced, masks, Settings(target, lowering, fill, seconds=2.0))
            plans[lowering, fill] = plan
            kept = plan.masks()
            if not fill:
                assert {name: mask.tolist() for name, mask in kept.items()} == {
                    name: mask.tolist() for name, mask in masks.items() if not mask.all()
                }
            if _decisions(plan) in emitted_before:
                continue  # what is emitted follows from these alone
            emitted_before.append(_decisions(plan))
            emitted = emit(model, traced, plan)
            onnx.checker.check_model(emitted, full_check=True)
            assert _inputs(emitted) == _inputs(model)
            assert list(emitted.graph.output) == list(model.graph.output)
            key = tuple((name, mask.tobytes()) for name, mask in kept.items())
            if key not in references:
                reference = masked_model(model, kept)
                references[key] = reference, run(reference, feeds, optimise=optimise)
            reference, wanted = references[key]
            got = run(emitted, feeds, optimise=optimise)
            if not close(got, wanted):
                assume(is_steady(reference, feeds, wanted, optimise=optimise))
                note(f"got {got}, wanted {wanted}")
                raise AssertionError("the emitted model computes something else")
    assert model.SerializeToString(deterministic=True) == before


def _decisions(plan: Plan) -> tuple[Any, ...]:
    """What a plan says, without its account of how it was found."""
    segments = tuple(replace(s, objective=0.0, bound=0.0, status="", seconds=0.0) for s in plan.segments)
    return plan.consumers, segments


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs without initializers that are declared there as well: their shapes follow their values."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _masks(traced: Trace, styles: list[str], random: np.random.Generator) -> dict[str, Mask]:
    """Masks of every kind, on prunable and frozen channels alike; some consumers get none."""
    masks: dict[str, Mask] = {}
    last = np.zeros(0, dtype=bool)
    for index, (name, consumer) in enumerate(traced.consumers.items()):
        style = styles[index % len(styles)]
        mask = _mask(style, consumer.channels, random)
        if style == "same" and last.size == consumer.channels:
            mask = last
        if random.random() < 0.5:
            mask = mask | ~consumer.prunable
        last = mask
        if random.random() < 0.85:
            masks[name] = mask
    return masks


def _mask(style: str, size: int, random: np.random.Generator) -> Mask:
    mask = np.zeros(size, dtype=bool)
    if style == "all":
        mask[:] = True
    elif style == "run":
        start = random.integers(size)
        mask[start : random.integers(start, size) + 1] = True
    elif style == "ends":
        mask[[0, -1]] = True
    elif style != "one":
        mask = random.random(size) < {"half": 0.5, "most": 0.85, "few": 0.2, "same": 0.6}[style]
    if not mask.any():
        mask[random.integers(size)] = True
    return mask
