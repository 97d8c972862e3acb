"""The project's promise: any graph, any mask, any lowering: the emitted model computes what the masked model does."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tests.builders import feeds_for, run
from tests.properties.graphs import models
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import Target
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan

_LONG_RUN = os.environ.get("UCPE_FUZZ", "")
"""Number of examples for a long search with fresh random numbers; else few, and the same ones every time."""

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
    case=models(),
    styles=st.lists(st.sampled_from(_STYLES), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    target=st.sampled_from(_TARGETS),
)
def test_emitted_equals_masked(
    case: tuple[onnx.ModelProto, dict[str, tuple[int, ...]]], styles: list[str], seed: int, target: Target
) -> None:
    model, shapes = case
    feeds = feeds_for(model, seed, shapes=shapes)
    before = model.SerializeToString(deterministic=True)
    assume(_runs(model, feeds))
    traced = trace(model)
    masks = _masks(traced, styles, np.random.default_rng(seed))
    note(onnx.printer.to_text(_without_weights(model)))
    note(f"masks: { {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} }")
    references = {}
    for lowering in LOWERING_RULES:
        for fill in (False, True):
            note(f"lowering {lowering}, fill {fill}")
            plan = make_plan(traced, masks, Settings(target, lowering, fill, seconds=2.0))
            kept = plan.masks()
            if not fill:
                assert {name: mask.tolist() for name, mask in kept.items()} == {
                    name: mask.tolist() for name, mask in masks.items() if not mask.all()
                }
            emitted = emit(model, traced, plan)
            onnx.checker.check_model(emitted, full_check=True)
            assert _inputs(emitted) == _inputs(model)
            assert list(emitted.graph.output) == list(model.graph.output)
            key = tuple((name, mask.tobytes()) for name, mask in kept.items())
            if key not in references:
                references[key] = run(masked_model(model, kept), feeds)
            for got, wanted in zip(run(emitted, feeds), references[key], strict=True):
                _assert_close(got, wanted)
    assert model.SerializeToString(deterministic=True) == before


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs; before IR version 4 without its initializers, which are declared there as well."""
    stored = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    return [value for value in model.graph.input if value.name not in stored]


def _runs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> bool:
    """Whether onnxruntime runs the model itself, and comes to reasonable numbers."""
    try:
        return all(np.isfinite(value).all() and np.abs(value).max() < 1e4 for value in run(model, feeds))
    except (Fail, InvalidArgument, RuntimeException):
        return False


def _assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape
    assert np.isfinite(wanted).all()
    assert np.abs(got.astype(np.float64) - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())


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


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if np.prod(tensor.dims) > 8:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return light
