from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.solve.instances import (
    brute_force,
    circular_arcs,
    correlated_masks,
    dense_block,
    groups_of,
    interval_family,
    noisy_intervals,
    one_group,
    problem_of,
    random_masks,
)
from ucpe_onnx.solve import Ordering, OrderingProblem, Reader, path_ordering, served_readers, solve_ordering


@st.composite
def problems(draw: st.DrawFn) -> OrderingProblem:
    sizes = draw(
        st.sampled_from([[7], [5], [4, 4], [7, 3], [5, 5], [6, 1], [3, 3, 4], [2, 6, 2], [1, 0, 5], [4, 2, 4]])
    )
    groups = groups_of(sizes)
    fixed = draw(st.frozensets(st.sampled_from(range(len(sizes)))) if draw(st.booleans()) else st.just(frozenset()))
    readers = []
    for index in range(draw(st.integers(0, 6))):
        order = draw(st.permutations(range(len(sizes))))
        sequence = tuple(order[: draw(st.integers(1, len(sizes)))])
        tensor = [slot for group in sequence for slot in groups[group]]
        # Runs as well as arbitrary sets: among the latter those that span groups can seldom be served.
        low, high = draw(st.integers(0, len(tensor))), draw(st.integers(0, len(tensor)))
        run = frozenset(tensor[low:high])
        extra = draw(st.frozensets(st.sampled_from(tensor), max_size=4)) if tensor else frozenset()
        weight = draw(st.sampled_from([1.0, 1.0, 2.0, 0.3, 7.25, 0.0]))
        readers.append(Reader(f"r{index}", run ^ extra, sequence, weight))
    return OrderingProblem(groups, tuple(readers), fixed)


def check(problem: OrderingProblem, result: Ordering) -> None:
    """What holds for every result; the checker also raises on an invalid layout."""
    assert result.served == served_readers(problem, result.groups)
    weights = {reader.name: reader.weight for reader in problem.readers}
    assert result.objective == pytest.approx(sum(weights[name] for name in result.served))
    assert result.objective <= result.bound <= sum(weights.values()) + 1e-9
    assert result.status in ("OPTIMAL", "FEASIBLE")
    assert (result.status == "OPTIMAL") == (result.bound == result.objective)
    assert result.objective >= path_ordering(problem).objective


@settings(max_examples=300, deadline=None)
@given(problems())
def test_equals_brute_force(problem: OrderingProblem) -> None:
    result = solve_ordering(problem)
    check(problem, result)
    assert result.status == "OPTIMAL"
    assert result.objective == pytest.approx(brute_force(problem))


@pytest.mark.parametrize("seed", range(60))
def test_equals_brute_force_on_one_dense_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = noisy_intervals(rng, 6, 8, 2) if seed % 2 else one_group(rng, 6, 8, random_masks(0.5))
    result = solve_ordering(problem)
    check(problem, result)
    assert result.objective == pytest.approx(brute_force(problem))


@pytest.mark.parametrize("keeps", [([0, 1, 2], [0, 2, 4], [2, 3, 4]), ([0, 1, 2, 3], [0, 1], [1, 2, 4, 5])])
def test_serves_all_where_the_published_heuristic_copies(keeps: tuple[list[int], ...]) -> None:
    problem = problem_of(*keeps, slots=6)
    assert len(path_ordering(problem).served) == 2
    assert solve_ordering(problem).served == {"a", "b", "c"}


@pytest.mark.parametrize("readers", [3, 6, 12])
@pytest.mark.parametrize("sizes", [[16], [512], [256, 256], [8] * 6, [32] * 16, [100, 1, 300, 0, 111]])
def test_interval_families_are_served_whole(readers: int, sizes: list[int]) -> None:
    for seed in range(5):
        problem = interval_family(np.random.default_rng(seed), readers, sizes)
        start = time.perf_counter()
        result = solve_ordering(problem)
        assert len(result.served) == readers
        assert result.status == "OPTIMAL"
        assert time.perf_counter() - start < 20


def test_opposite_sequences_share_one_order() -> None:
    groups = groups_of([3, 3])
    both = frozenset({0, 3})
    forth, back = Reader("forth", both, (0, 1), 2.0), Reader("back", both, (1, 0), 1.0)
    result = solve_ordering(OrderingProblem(groups, (forth, back)))
    assert result.served == {"forth"}
    assert result.groups == ((1, 2, 0), (3, 4, 5))


def test_fixed_groups_stay() -> None:
    groups = groups_of([4, 2])
    readers = (Reader("met", frozenset({1, 2}), (0,)), Reader("unmet", frozenset({0, 4}), (0, 1)))
    result = solve_ordering(OrderingProblem(groups, readers, frozenset({0})))
    assert result.groups[0] == groups[0]
    assert result.served == {"met"}
    assert result.status == "OPTIMAL"


def test_original_order_is_kept_where_it_serves() -> None:
    problem = problem_of(range(4), range(2, 8), [8], range(9, 10), slots=12)
    assert solve_ordering(problem).groups == problem.groups
    moved = solve_ordering(problem_of([1, 9], slots=12))
    assert moved.groups == ((0, 1, 9, 2, 3, 4, 5, 6, 7, 8, 10, 11),)


def test_equal_demands_weigh_together() -> None:
    keeps = [[0, 1, 3], [0, 2, 3], [1, 2, 3]] * 2
    readers = tuple(Reader(f"r{i}", frozenset(keep), (0,), 1.0 + (i % 3 == 0)) for i, keep in enumerate(keeps))
    problem = OrderingProblem((tuple(range(5)),), readers)
    result = solve_ordering(problem)
    check(problem, result)
    assert result.objective == brute_force(problem)


def hard_problems() -> list[OrderingProblem]:
    rng = np.random.default_rng(1)
    return [
        one_group(rng, 7, 512, random_masks(0.5)),
        one_group(rng, 16, 256, random_masks(0.25)),
        one_group(rng, 16, 256, correlated_masks(0.5, 0.1)),
        dense_block(rng, 24, 32, random_masks(0.5)),
        dense_block(rng, 12, 4, correlated_masks(0.5, 0.1)),
        noisy_intervals(rng, 16, 128, 1),
        circular_arcs(rng, 12, 200),
    ]


@pytest.mark.parametrize("index", range(len(hard_problems())))
def test_hard_instances_are_solved_and_deterministic(index: int) -> None:
    problem = hard_problems()[index]
    first, second = solve_ordering(problem, seed=3), solve_ordering(problem, seed=3)
    check(problem, first)
    assert (first.groups, first.objective, first.bound) == (second.groups, second.objective, second.bound)
    assert first.status == "OPTIMAL"


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_tiny_time_limit_still_gives_a_layout(seconds: float) -> None:
    for problem in hard_problems():
        check(problem, solve_ordering(problem, seconds=seconds))


def test_says_nothing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    for problem in hard_problems()[:3]:
        solve_ordering(problem)
    assert capfd.readouterr().out == ""


def test_nothing_to_order() -> None:
    for problem in (OrderingProblem((), ()), OrderingProblem(((), (1, 0)), (Reader("r", frozenset(), (0,)),))):
        result = solve_ordering(problem)
        assert result.groups == problem.groups
        assert result.status == "OPTIMAL"
