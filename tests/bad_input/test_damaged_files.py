"""Damaged model files end in one line of error, or in an output that equals the masked model: never in anything else.

``UCPE_FUZZ=20000 pytest tests/bad_input/test_damaged_files.py`` tries so many, with fresh random numbers.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
from onnx import numpy_helper

from tests.suites.command import run_limited, run_on
from tests.suites.damaging import damaged, small_models
from tests.suites.isolated import DiedError, Isolated

_LONG_RUN = os.environ.get("UCPE_FUZZ", "")
COUNT = int(_LONG_RUN or 1500)
FIRST = int(np.random.default_rng().integers(2**40)) if _LONG_RUN else 0


def outcome(run: Isolated, content: bytes) -> str:
    try:
        return run(content)
    except DiedError as error:
        return f"defect: {error}"


def test_damaged_files() -> None:
    files = [model.SerializeToString() for model in small_models()]
    found: Counter[str] = Counter()
    defects = {}
    with Isolated(run_limited, 60) as run:
        assert [outcome(run, content) for content in files] == ["written"] * len(files)
        for seed in range(FIRST, FIRST + COUNT):
            random = np.random.default_rng(seed)
            one, other = random.integers(len(files), size=2)
            result = outcome(run, damaged(files[one], files[other], random))
            found[result.split(":")[0]] += 1
            if result.startswith("defect"):
                defects[seed] = result
    print(dict(found))
    assert defects == {}
    assert found["written"] > COUNT / 20 and found["refused"] > COUNT / 5, "the damage is too harmless, or too gross"


@pytest.mark.parametrize("field", ["graph", "node"])
def test_a_name_that_is_no_text(field: str) -> None:
    content = small_models()[0].SerializeToString()
    name = {"graph": b"\x12\x03net", "node": b"\x1a\x01a"}[field]
    assert content.count(name) == 1
    assert run_on(content.replace(name, name[:-1] + b"\xf6")).startswith("refused: ")


def test_weights_with_both_infinities() -> None:
    """In a process of its own, where warnings go where a user sees them."""
    model = small_models()[0]
    tensor = model.graph.initializer[-2]
    value = numpy_helper.to_array(tensor).copy()
    value.flat[:2] = np.inf, -np.inf
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    with Isolated(run_limited, 60) as run:
        assert "NaN or infinite" in (result := outcome(run, model.SerializeToString())), result
        assert result.startswith("refused: "), result
