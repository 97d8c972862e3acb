"""Rates from timings."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest

from ucpe_onnx.calibration.fit import Work, fit_rates, misses, non_negative_least_squares

PRIOR = {"gather": {"call": 5.0, "write": 80.0, "pieces": 10.0}, "normal": {"call": 5.0, "write": 80.0, "pieces": 10.0}}
TRUE = {"gather": {"call": 2.0, "write": 30.0, "pieces": 45.0}, "normal": {"call": 1.0, "write": 60.0, "pieces": 5.0}}


def work() -> list[Work]:
    return [
        [(family, {"call": 1.0, "write": size, "pieces": max(0.0, size - 1)})] * count
        for family in PRIOR
        for size in (0.001, 0.1, 0.5, 1.0, 4.0, 16.0)
        for count in (1, 3)
    ]


def exact() -> np.ndarray:
    return np.array([sum(TRUE[f][name] * amount for f, a in entry for name, amount in a.items()) for entry in work()])


def errors(found: dict[str, dict[str, float]]) -> list[float]:
    return [abs(found[family][name] / rate - 1) for family, rates in TRUE.items() for name, rate in rates.items()]


def test_exact_timings_give_the_rates_back() -> None:
    assert max(errors(fit_rates(work(), exact(), PRIOR))) < 0.05


@pytest.mark.parametrize("odd", [20.0, 0.05, np.nan, -1.0])
def test_one_odd_timing_is_borne(odd: float) -> None:
    times = exact()
    times[5] *= odd
    found = fit_rates(work(), times, PRIOR)
    assert max(errors(found)) < 0.3
    assert np.median(np.abs(misses(work(), exact(), found))) < 0.02


def test_nothing_measured_leaves_the_prior() -> None:
    assert fit_rates(work(), np.full(len(work()), np.nan), PRIOR) == PRIOR


def test_a_family_that_was_not_timed_follows_the_speed_of_the_machine() -> None:
    slower = {family: {name: 2 * rate for name, rate in rates.items()} for family, rates in PRIOR.items()}
    only = [entry for entry in work() if entry[0][0] == "gather"]
    times = np.array([sum(slower[f][name] * x for f, a in entry for name, x in a.items()) for entry in only])
    assert fit_rates(only, times, PRIOR)["normal"] == pytest.approx(slower["normal"])


@pytest.mark.parametrize("lucky", [False, True])
def test_a_set_of_fewer_blocks_is_never_faster_than_a_full_one(lucky: bool) -> None:
    """Not even if the timings of sets of three were; rates above those of the full set come back as they are."""
    prior = {"pointwise": {"set4": 8.0, "set1": 10.0, "set2": 8.4, "set3": 8.0}}
    true = {"set4": 11.0, "set1": 20.0, "set2": 13.0, "set3": 6.0 if lucky else 11.0}
    amounts = [{name: size} for name in true for size in (1.0, 3.0, 10.0)]
    times = np.array([sum(true[name] * amount for name, amount in each.items()) for each in amounts])
    found = fit_rates([[("pointwise", each)] for each in amounts], times, prior)["pointwise"]
    assert all(found[name] >= found["set4"] for name in true)
    if not lucky:
        assert found == pytest.approx(true, rel=0.05)


def test_least_squares_without_negatives_is_optimal() -> None:
    """Against trying every set of columns."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        matrix, target = generator.normal(size=(6, 4)), generator.normal(size=6)
        best = min(
            _residual(matrix, target, columns) for columns in chain(*(combinations(range(4), k) for k in range(5)))
        )
        found = non_negative_least_squares(matrix, target)
        assert (found >= 0).all()
        assert np.linalg.norm(matrix @ found - target) == pytest.approx(best)


def _residual(matrix: np.ndarray, target: np.ndarray, columns: tuple[int, ...]) -> float:
    solution = np.zeros(matrix.shape[1])
    if columns:
        solution[list(columns)] = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
    return np.inf if (solution < 0).any() else float(np.linalg.norm(matrix @ solution - target))
