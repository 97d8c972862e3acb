"""The whole line on random graphs: whatever the options, a verified model with its plan, or one clear line."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from tests.builders import feeds_for, run
from tests.properties.graphs import Case, models
from tests.properties.running import is_steady, runs, runs_optimised, to_text
from ucpe_onnx import prune
from ucpe_onnx.errors import UcpeError, VerificationError
from ucpe_onnx.options import MODES, SCOPES
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.selection.criteria import CRITERIA

pytestmark = pytest.mark.no_cover  # counting lines takes half as long again, and smaller tests run all of them

_LONG_RUN = os.environ.get("UCPE_FUZZ", "")
"""See test_emitted_equals_masked."""


@settings(
    max_examples=int(_LONG_RUN or 150),
    derandomize=not _LONG_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(
    case=models(),
    options=st.fixed_dictionaries(
        {
            "ratio": st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.99]),
            "criterion": st.sampled_from(sorted(CRITERIA)),
            "mode": st.sampled_from(MODES),
            "scope": st.sampled_from(SCOPES),
            "lowering": st.sampled_from(sorted(LOWERING_RULES)),
        }
    ),
)
def test_prune_gives_a_verified_model_or_one_line(case: Case, options: dict[str, Any]) -> None:
    model, shapes = case
    feeds = feeds_for(model, shapes=shapes)
    optimise = runs_optimised(model)
    assume(runs(model, feeds, optimise=optimise))
    note(to_text(model))
    more = {"data": [feeds], "bench_seconds": 0, "solver_seconds": 2.0, "opt_level": "all" if optimise else "disable"}
    try:
        result = prune(model, **options, **more)
    except VerificationError:
        assume(is_steady(model, feeds, run(model, feeds, optimise=optimise), optimise=optimise))
        raise
    except UcpeError as error:
        assert str(error) and "\n" not in str(error)
        assert "BatchNormalization" in str(error) or "finite" in str(error), str(error)
        return
    again = prune(model, plan=result.plan, **more)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
