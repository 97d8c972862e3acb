"""Files by other people, where they lie beside the checkout; skipped where they don't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.builders import Masked
from tests.explaining import assert_explained
from ucpe_onnx import load_model
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.runtime.random_feeds import find_feeds

SHARED = Path(__file__).parents[3] / "shared"
FILES = sorted([*SHARED.glob("corpus/*.onnx"), *SHARED.glob("data/models/*.onnx")])


@pytest.mark.skipif(not FILES, reason="no files beside the checkout")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_thirty_percent_random_mask(file: Path) -> None:
    model = load_model(file)
    traced = trace(model)
    random = np.random.default_rng(0)
    masks = {}
    for name, consumer in traced.consumers.items():
        mask = (random.random(consumer.channels) >= 0.3) | ~consumer.prunable
        mask[0] |= not mask.any()
        masks[name] = mask
    plan = make_plan(traced, masks, Settings())
    emitted = emit(model, traced, plan)
    # Values between 0 and 1, as images have: some networks are chaotic on anything else.
    feeds = {name: np.abs(a) % 1 if a.dtype.kind == "f" else a for name, a in find_feeds(model).items()}
    Masked(model, plan.masks(), feeds).check(emitted)
    assert_explained(traced)
