"""The architectures that onnx ships, with random weights: the whole line, in every lowering.

``UCPE_SEEDS=1 pytest tests/suites/test_light_models.py`` takes all nine in all lowerings; else the small ones, and of
the middling ones a lowering each.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.builders import Masked
from tests.suites.light_models import LARGE, NAMES, light_model
from tests.suites.onnx_check import changed_interface, weights
from ucpe_onnx import prune

LOWERINGS = ("union", "gather", "slice")
SMALL = ("inception_v1", "shufflenet", "squeezenet")
CASES = [
    (name, lowering)
    for index, name in enumerate(NAMES)
    for at, lowering in enumerate(LOWERINGS)
    if os.environ.get("UCPE_SEEDS") or name in SMALL or (name == "resnet50" and at == index % 3)
]


@pytest.mark.parametrize(("name", "lowering"), CASES)
def test_pruned_equals_masked(name: str, lowering: str) -> None:
    model = light_model(name)
    stored = {tensor.name for tensor in model.graph.initializer}
    (value,) = (v for v in model.graph.input if v.name not in stored)
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    result = prune(model, ratio=0.3, mode="unconstrained", lowering=lowering, bench_seconds=0)
    masks = result.plan.masks()
    assert not changed_interface(result.model, model)
    Masked(model, masks, feed).check(result.model)
    assert len(masks) > 0.6 * len(result.plan.consumers)
    assert weights(result.model) < 0.9 * weights(model)


def test_large_ones_are_known() -> None:
    assert set(NAMES) >= LARGE | set(SMALL) and len(NAMES) == 9
