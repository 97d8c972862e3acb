"""ONNX's own test suite, a sample of it: ``python -m benchmarks.onnx_suite`` takes all of it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.suites.isolated import DiedError, Isolated
from tests.suites.onnx_cases import VARIANTS, Case, load_cases
from tests.suites.onnx_check import DEFECT, NOT_RUN, PRUNED, REFUSED, WHOLE, Outcome, check_case

SAMPLE = 160


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(load_cases())


def outcome(check: Isolated, case: Case) -> Outcome:
    try:
        return check(case)
    except DiedError as error:
        return Outcome(DEFECT, str(error))


def test_a_sample_passes_whole_or_pruned(cases: list[Case]) -> None:
    chosen = np.random.default_rng(0).choice(len(cases), SAMPLE, replace=False)
    found: dict[str, Outcome] = {}
    with Isolated(check_case, 60) as check:
        for index in sorted(chosen):
            for make in VARIANTS.values():
                case = make(cases[index])
                if case is not None:
                    found[case.name] = outcome(check, case)
    kinds = Counter(o.kind for o in found.values())
    defects = {name: o.reason for name, o in found.items() if o.kind == DEFECT}
    assert defects == {}
    assert kinds[PRUNED] > SAMPLE / 2 and kinds[WHOLE] > SAMPLE, kinds
    assert kinds[REFUSED] < SAMPLE / 20 and kinds[NOT_RUN] < len(found) / 3, kinds


@pytest.mark.parametrize("name", ["test_acos", "test_atanh"])
def test_operators_that_are_not_defined_everywhere(cases: list[Case], name: str) -> None:
    """Data is given on which all is well; the tool tries random inputs besides."""
    (case,) = (case for case in cases if case.name == name)
    layered = VARIANTS["products"](case)
    assert layered is not None
    assert check_case(layered) == Outcome(PRUNED)


def test_the_check_notices_a_wrong_output(cases: list[Case], monkeypatch) -> None:
    """A model whose last weights are off by a little is no good."""
    from tests.suites import onnx_check

    def broken(model, traced, plan):
        emitted = emit(model, traced, plan)
        tensor = emitted.graph.initializer[-1]
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()
        return emitted

    emit = onnx_check.emit
    monkeypatch.setattr(onnx_check, "emit", broken)
    (case,) = (case for case in cases if case.name == "test_sigmoid")
    layered = VARIANTS["convolutions"](case)
    assert layered is not None
    result = check_case(layered)
    assert result.kind == DEFECT and "unlike the masked model" in result.reason
