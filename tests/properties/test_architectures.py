"""Real architectures, any masks: the emitted model equals the masked model.

``UCPE_SEEDS=20 pytest tests/properties/test_architectures.py`` tries 20 random masks on each.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from models import ARCHITECTURES, build
from tests.builders import Masked
from tests.explaining import assert_explained
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.runtime.random_feeds import find_feeds

pytestmark = pytest.mark.no_cover  # counting lines takes half as long again, and smaller tests run all of them

SEEDS = int(os.environ.get("UCPE_SEEDS", "1"))
LOWERINGS = ("auto", "gather", "slice", "union")
LARGE = ("vgg16_bn", "wide_resnet50_2")
SMALL = [name for name in ARCHITECTURES if name not in LARGE or os.environ.get("UCPE_SEEDS")]


def random_masks(traced: Trace, seed: int) -> dict[str, Mask]:
    """Masks of all densities; some keep a single channel, some drop channels that are frozen."""
    random = np.random.default_rng(seed)
    masks = {}
    for name, consumer in traced.consumers.items():
        mask = random.random(consumer.channels) >= random.choice([0.1, 0.3, 0.5, 0.9, 1.0])
        mask |= ~consumer.prunable & (random.random() < 0.9)
        mask[random.integers(consumer.channels)] = True
        masks[name] = mask
    return masks


@pytest.mark.parametrize("name", SMALL)
def test_random_masks(name: str) -> None:
    model = build(name, image=ARCHITECTURES[name].small, fold_bn=name in ("resnet18", "googlenet"))
    traced = trace(model)
    assert_explained(traced)
    feeds = find_feeds(model)
    for seed in range(SEEDS):
        masks = random_masks(traced, seed)
        lowering = LOWERINGS[(seed + list(ARCHITECTURES).index(name)) % len(LOWERINGS)]
        plan = make_plan(traced, masks, Settings(lowering=lowering, fill=seed % 5 == 4))
        emitted = emit(model, traced, plan)
        Masked(model, plan.masks(), feeds).check(emitted, f"seed {seed}, {lowering}")
        if seed % 5 != 4:
            assert all((plan.consumers[n].mask() == mask).all() for n, mask in masks.items())
