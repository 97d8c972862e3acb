from __future__ import annotations

import numpy as np
import pytest

from tests.solve.instances import groups_of, interval_family, one_group, problem_of, random_masks
from ucpe_onnx.solve import OrderingProblem, Reader, path_ordering


def test_a_chain_of_readers_is_laid_out_along_it() -> None:
    result = path_ordering(problem_of([0, 5, 2], [2, 4], [4, 1, 3], slots=6))
    assert result.served == {"a", "b", "c"}
    assert result.status == "OPTIMAL"


def test_contained_readers_are_solved_inside() -> None:
    assert path_ordering(problem_of(range(6), [1, 3, 5], [3, 5], [0, 2], slots=8)).served == {"a", "b", "c", "d"}


def test_independent_masks_leave_two() -> None:
    result = path_ordering(one_group(np.random.default_rng(0), 5, 512, random_masks(0.5)))
    assert len(result.served) == 2
    assert result.status == "FEASIBLE"


def test_edges_between_groups_lead_from_last_to_first() -> None:
    groups = groups_of([3, 3])
    readers = (Reader("a", frozenset({2, 0}), (0,)), Reader("b", frozenset({0, 4}), (0, 1)))
    result = path_ordering(OrderingProblem(groups, readers))
    assert result.groups == ((1, 2, 0), (4, 3, 5))
    assert result.served == {"a", "b"}


def test_fixed_groups_stay() -> None:
    problem = problem_of([0, 2], slots=3)
    assert path_ordering(OrderingProblem(problem.groups, problem.readers, frozenset({0}))).groups == problem.groups


@pytest.mark.parametrize(("readers", "published"), [(3, 0.08), (4, 0.32), (6, 0.80), (8, 0.94), (12, 1.0)])
def test_misses_interval_families_about_as_often_as_published(readers: int, published: float) -> None:
    rng = np.random.default_rng(0)
    missed = [len(path_ordering(interval_family(rng, readers, [64])).served) < readers for _ in range(100)]
    assert np.mean(missed) == pytest.approx(published, abs=0.2)
