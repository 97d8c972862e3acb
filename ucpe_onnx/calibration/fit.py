"""Find the rates that explain timings: least squares without negative rates, drawn towards what is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ucpe_onnx.planning.kernels import AMOUNTS, Amounts
from ucpe_onnx.planning.rates import Coefficients

Floats = npt.NDArray[np.float64]
Work = Sequence[tuple[str, Amounts]]

_LEAST_PULL, _MOST_PULL = 0.03, 1.0
"""Weight of a rate's prior: with 0.05 a rate twice the prior costs as much as one case that is missed by 5 %.

It follows what the timings scatter by, so that a busy machine yields the prior and not nonsense."""

_TRUSTED = 0.05
"""Cases missed by about this share, or twice what is typical, count half; the more one is missed the less it counts."""

_IMPLAUSIBLE = 4.0
"""Nothing is taken to be so many times faster than the prior says."""

_ROUNDS = 12

FLOORS = {"set1": "set4", "set2": "set4", "set3": "set4"}
"""Rates that are another one plus something: blocks of an incomplete set never take less time each than a full one's.

Left to themselves, timings of a busy machine may say otherwise, and then nothing looks better than many odd widths."""

_LEAST_EXTRA = 0.05
"""Share of the floor that such a rate is taken to have on top where the prior has none."""


def fit_rates(work: Sequence[Work], times: Floats, prior: Coefficients) -> dict[str, dict[str, float]]:
    """Rates with which the work takes about the times.

    Args:
        work: of each case, families and amounts.
        times: of each case, in microseconds; cases that are not finite and positive are left out.
        prior: rates known beforehand; only their ratios matter.

    Returns:
        Rates for the families and amounts of the prior.
    """
    names = [(family, name) for family, values in prior.items() for name in values if name in AMOUNTS[family]]
    sums = _with_floors(names)
    rates = np.array([prior[family][name] for family, name in names])
    floors = (sums - np.eye(len(names))) @ rates
    scale = np.maximum(np.linalg.solve(sums, rates), _LEAST_EXTRA * floors)
    amounts = np.array([_totals(entry, names) for entry in work]).reshape(len(work), len(names)) @ sums
    good = np.isfinite(times) & (times > 0)
    amounts, times = amounts[good], times[good]
    if not times.size:
        return {family: dict(values) for family, values in prior.items()}
    scale = scale * np.exp(np.median(np.log(times / (amounts @ scale))))
    # The difference of two disturbed timings may be next to nothing; it must not outweigh all others.
    unit = np.maximum(times, amounts @ scale / _IMPLAUSIBLE)
    relative, aim = amounts * scale / unit[:, None], times / unit
    solution, weights, pull = np.ones(len(names)), np.ones(times.size), _LEAST_PULL
    for turn in range(_ROUNDS):
        matrix = np.vstack([relative * weights[:, None], pull * np.eye(len(names))])
        solution = non_negative_least_squares(matrix, np.concatenate([aim * weights, np.full(len(names), pull)]))
        missed = np.abs(relative @ solution - aim)
        typical = float(np.median(missed))
        pull = float(np.clip(2 * typical, _LEAST_PULL, _MOST_PULL))
        # First by the miss itself, which finds the bulk from anywhere; then what is off the bulk hardly counts.
        power = 1 if turn < _ROUNDS / 2 else 2
        weights = 1 / np.sqrt(1 + (missed / max(_TRUSTED, 2 * typical)) ** power)
    found: dict[str, dict[str, float]] = {family: {} for family in prior}
    for (family, name), rate in zip(names, sums @ (solution * scale), strict=True):
        found[family][name] = round(float(rate), 6)
    return found


def _with_floors(names: Sequence[tuple[str, str]]) -> Floats:
    """What turns the parts that are fitted into rates: most are one, those with a floor are the floor and an extra."""
    sums = np.eye(len(names))
    for row, (family, name) in enumerate(names):
        if (family, FLOORS.get(name, "")) in names:
            sums[row, names.index((family, FLOORS[name]))] = 1.0
    return sums


def non_negative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """Minimise ``|matrix x - target|`` over x >= 0 (Lawson and Hanson's active set method).

    Args:
        matrix: shape (rows, columns), of full column rank.
        target: shape (rows,).
    """
    gram, aim = matrix.T @ matrix, matrix.T @ target  # small: a threaded solver would wait longer for its threads
    columns = aim.size
    solution, free = np.zeros(columns), np.zeros(columns, dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(aim).max()))
    for _ in range(3 * columns):
        gradient = np.where(free, -np.inf, aim - gram @ solution)
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.solve(gram[np.ix_(free, free)], aim[free])
            blocking = free & (trial <= 0)
            if not blocking.any():
                break
            steps = solution[blocking] / np.maximum(solution[blocking] - trial[blocking], 1e-300)
            solution = solution + steps.min() * (trial - solution)
            free &= solution > 1e-12
            solution[~free] = 0.0
        solution = trial
    return solution


def _totals(work: Work, names: Sequence[tuple[str, str]]) -> list[float]:
    totals: dict[tuple[str, str], float] = {}
    for family, amounts in work:
        for name, amount in amounts.items():
            totals[family, name] = totals.get((family, name), 0.0) + float(amount)
    return [totals.get(key, 0.0) for key in names]


def misses(work: Sequence[Work], times: Floats, rates: Coefficients) -> Floats:
    """By what share predictions miss the times (in microseconds); NaN where there is no time."""
    names = [(family, name) for family, values in rates.items() for name in values]
    scale = np.array([rates[family][name] for family, name in names])
    predicted: Floats = np.array([_totals(entry, names) for entry in work]) @ scale
    return predicted / times - 1
