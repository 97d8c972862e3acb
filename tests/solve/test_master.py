from __future__ import annotations

import math
import time

import numpy as np
import pytest

from tests.solve.instances import correlated_masks, dense_block, noisy_intervals, one_group, problem_of, random_masks
from ucpe_onnx.solve import solve_ordering
from ucpe_onnx.solve.conflicts import Conflict, Oracle, merge_conflicts, small_conflicts
from ucpe_onnx.solve.demands import compile_demands
from ucpe_onnx.solve.master import integer_weights, select


def never() -> bool:
    return False


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0], [0.1, 0.2, 1e-9], [0.0, 0.0], [1e300, 1.0], [1e-250, 2e-250]])
def test_integer_weights_round_up_a_little(weights: list[float]) -> None:
    integers, scale = integer_weights(weights)
    for weight, integer in zip(weights, integers, strict=True):
        assert weight <= integer / scale or math.isclose(weight, integer / scale)
        assert integer / scale - weight <= 1e-11 * sum(weights)


def test_integral_weights_are_exact_and_small() -> None:
    assert integer_weights([2.0, 4.0, 6.0])[0] == [1, 2, 3]


def test_all_triples_become_one_statement() -> None:
    problem = one_group(np.random.default_rng(0), 8, 512, random_masks(0.5))
    oracle = Oracle(compile_demands(problem).open, [512])
    assert small_conflicts(oracle, never) == [Conflict(tuple(range(8)), 2)]
    assert oracle.feasible([2, 5])
    assert not oracle.feasible([2, 5, 7])
    assert len(small_conflicts(oracle, lambda: True)) == 0


def test_merged_statements_cover_every_conflict_and_no_more() -> None:
    found = {2: {(0, 1): None, (0, 2): None, (1, 2): None, (2, 3): None}, 3: {(3, 4, 5): None}}
    assert merge_conflicts(found) == [Conflict((0, 1, 2), 1), Conflict((2, 3), 1), Conflict((3, 4, 5), 2)]


def test_minimal_conflict_of_a_circle_is_the_round() -> None:
    problem = problem_of(*([slot, (slot + 1) % 14] for slot in range(14)), slots=14)
    oracle = Oracle(compile_demands(problem).open, [14])
    assert small_conflicts(oracle, never) == []
    assert oracle.minimal_conflict(range(14)) == tuple(range(14))
    assert oracle.minimal_conflict([*range(7), *range(8, 14)]) is None
    result = solve_ordering(problem)
    assert len(result.served) == 13
    assert result.status == "OPTIMAL"


@pytest.mark.parametrize("seed", range(20))
def test_conflicts_found_on_the_way_suffice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    problem = noisy_intervals(rng, 16, 32, 2) if seed % 2 else dense_block(rng, 12, 4, correlated_masks(0.5, 0.1))
    expected = solve_ordering(problem)
    monkeypatch.setattr("ucpe_onnx.solve.master.small_conflicts", lambda *_: [])
    lazy = solve_ordering(problem)
    assert lazy.status == expected.status == "OPTIMAL"
    assert lazy.objective == pytest.approx(expected.objective)


def test_time_up_in_the_search_is_not_called_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ucpe_onnx.solve.master.small_conflicts", lambda *_: [])
    problem = one_group(np.random.default_rng(0), 60, 256, random_masks(0.5))
    start = time.perf_counter()
    result = solve_ordering(problem, seconds=0.3)
    assert time.perf_counter() - start < 5
    assert result.status == "FEASIBLE"
    assert result.objective < result.bound


def test_selection_has_a_true_bound_when_time_is_up() -> None:
    problem = one_group(np.random.default_rng(0), 8, 512, random_masks(0.5))
    demands = compile_demands(problem).open
    early = select(demands, [512], (), time.perf_counter() - 1.0, 0)
    full = select(demands, [512], (), time.perf_counter() + 10.0, 0)
    weight = sum(demands[index].weight for index in full.chosen)
    assert full.optimal
    assert full.bound == pytest.approx(weight)
    assert not early.optimal
    assert early.bound >= weight
