"""Medians and ratios of timings, with intervals for what chance and memory layout do to them.

Two sessions of one and the same model differ by a percent or two, for as long as they live: where their weights and
buffers lie decides how well caches serve them, and the session that is created first tends to get the worse place. No
number of rounds averages that out. What does is to create the sessions again, several times, each order of creation
followed by its reverse: then a ratio is the mean over these loads, and its interval comes from how much the loads
differ, which holds the noise of the rounds and the luck of the layout.

Within a load, what slows a whole round (another program, a lower clock) is taken out first: every timing is divided by
its round's geometric mean over the candidates. On a machine that is shared with others the medians of a few rounds may
otherwise come from a slow half for one candidate and from a fast half for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NARROW = 0.01
"""A ratio is known well enough once its interval reaches at most 1 % to each side."""

LEVEL = 0.95
"""Share of the intervals that hold the truth."""

TRIMMED = 0.1
"""Share of the loads that is left out at either end: another program may have disturbed one from its beginning on."""

LEAST_ROUNDS = 6
"""Rounds below which nothing can be said: of six, the lowest and the highest hold the median between them in 97 %."""

LUCK = 0.02
"""How far, besides, the interval of a single load reaches to each side, where several were to be had: its luck."""

RESAMPLES = 1000
_FEW = 12
"""Rounds below which a bootstrap of medians would make intervals too narrow."""
_BLOCK = 2**21
"""Numbers drawn at once by the bootstrap: long measurements must not take gigabytes."""


@dataclass(frozen=True)
class CandidateLatency:
    """Latency of one model.

    Attributes:
        median_ms: milliseconds per run: the baseline's median, times the ratio. A timing of a fast model is the mean of
            several runs.
        p90_ms: 90th percentile, likewise.
        p99_ms: 99th percentile, likewise.
        ratio: median over the baseline's median, of timings that are less what slowed their whole round, in the mean of
            the loads; below 1 is faster.
        low: lower end of the ratio's 95 % interval.
        high: upper end.
        trusted: whether anything may be concluded.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float
    low: float
    high: float
    trusted: bool = True

    @property
    def faster(self) -> bool:
        """Whether it beats the baseline beyond doubt: the whole interval lies below 1."""
        return self.trusted and self.high < 1.0

    @property
    def slower(self) -> bool:
        """Whether the baseline beats it beyond doubt."""
        return self.trusted and self.low > 1.0

    @property
    def undecided(self) -> bool:
        """Whether the interval holds 1 inside of it."""
        return not self.trusted or self.low < 1.0 < self.high

    def widened(self, share: float) -> CandidateLatency:
        """The same with an interval that reaches further to each side."""
        return replace(self, low=self.low * (1 - share), high=self.high * (1 + share))

    @property
    def narrow(self) -> bool:
        """Whether the interval is as narrow as anybody needs it."""
        return max(self.high - self.ratio, self.ratio - self.low) <= NARROW * self.ratio


@dataclass(frozen=True, eq=False)
class Load:
    """Timings of sessions that lived at the same time.

    Attributes:
        order: names of the candidates in the order in which their sessions were created.
        timings: seconds per run by name, one number per round; the same rounds for all.
    """

    order: tuple[str, ...]
    timings: Mapping[str, Floats]

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(next(iter(self.timings.values())))

    def later(self, name: str, other: str) -> float:
        """1 if a candidate's session was created after the other's, -1 if before."""
        return float(np.sign(self.order.index(name) - self.order.index(other)))


def summarise(loads: Sequence[Load], baseline: str, seed: int = 0, level: float = LEVEL) -> dict[str, CandidateLatency]:
    """Turn timings into medians and ratios with intervals.

    The interval of a single load is a bootstrap over its rounds. That of several is Student's for the mean of the
    loads' logarithmic ratios, after what the order of creation explains of their differences is taken out.

    Args:
        loads: the timings; of one load, or of at least four, of which every other has the order before it reversed.
        baseline: name of the candidate that ratios refer to.
        seed: seed of the bootstrap, which draws the same rounds for every candidate.
        level: share of the intervals that shall hold the truth.
    """
    counted = [_steadied(load) for load in loads if load.rounds]
    if not counted:
        return {name: CandidateLatency(0.0, 0.0, 0.0, 1.0, 1.0, 1.0, trusted=False) for name in loads[0].timings}
    if len(counted) == 1 or not _both_ways(counted):
        found = _over_rounds(_joined(counted), baseline, seed, level)
    else:
        found = _over_loads(counted, baseline, level)
    base = float(np.median(_all(loads, baseline)) * 1e3)
    entries = {}
    for name, ratio in found.items():
        p50, p90, p99 = (float(value) for value in np.percentile(_all(loads, name), [50, 90, 99]))
        median = base * ratio[0]
        entries[name] = CandidateLatency(median, median * p90 / p50, median * p99 / p50, *ratio)
    return entries


def _all(loads: Sequence[Load], name: str) -> Floats:
    return np.concatenate([load.timings[name] for load in loads])


def _both_ways(loads: Sequence[Load]) -> bool:
    """Whether there are two loads at least with each order of creation of every two candidates, and four in all."""
    names = list(loads[0].timings)
    sides = ([load.later(name, names[0]) for load in loads] for name in names[1:])
    return len(loads) >= 4 and all(min(side.count(1.0), side.count(-1.0)) >= 2 for side in sides)


def _joined(loads: Sequence[Load]) -> Load:
    return Load(loads[0].order, {name: _all(loads, name) for name in loads[0].timings})


def _steadied(load: Load) -> Load:
    """The timings over what their rounds have in common."""
    common = np.exp(np.mean([np.log(values) for values in load.timings.values()], axis=0))
    return Load(load.order, {name: values / common for name, values in load.timings.items()})


def _over_rounds(load: Load, baseline: str, seed: int, level: float) -> dict[str, tuple[float, float, float]]:
    """Ratios of medians, and percentiles of the bootstrap's; of few rounds the lowest and the highest."""
    if load.rounds < _FEW:
        return {name: _extremes(load, name, baseline) for name in load.timings}
    draws = _bootstrap_medians(np.stack(list(load.timings.values())), seed)
    ratios = draws / draws[list(load.timings).index(baseline)]
    lows, highs = np.percentile(ratios, [50 * (1 - level), 50 * (1 + level)], axis=1)
    return {
        name: (_ratio(load, name, baseline), float(low), float(high))
        for name, low, high in zip(load.timings, lows, highs, strict=True)
    }


def _extremes(load: Load, name: str, baseline: str) -> tuple[float, float, float]:
    """The median of the rounds' own ratios, the lowest and the highest: it is not between them in 2^(1 - rounds)."""
    ratios = load.timings[name] / load.timings[baseline]
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def _ratio(load: Load, name: str, baseline: str) -> float:
    return float(np.median(load.timings[name]) / np.median(load.timings[baseline]))


def _bootstrap_medians(timings: Floats, seed: int) -> Floats:
    """Medians of every candidate over resampled rounds: candidates x rounds to candidates x resamples."""
    generator = np.random.default_rng(seed)
    count = timings.shape[1]
    block = max(1, _BLOCK // timings.size)
    medians = []
    for start in range(0, RESAMPLES, block):
        drawn = generator.integers(0, count, (min(block, RESAMPLES - start), count))
        medians.append(np.median(timings[:, drawn], axis=2))
    return np.concatenate(medians, axis=1)


def _over_loads(loads: Sequence[Load], baseline: str, level: float) -> dict[str, tuple[float, float, float]]:
    """Every candidate's mean ratio with Student's interval, from the logarithms of the loads' ratios."""
    found, cut = {}, int(TRIMMED * len(loads))
    for name in loads[0].timings:
        logs = np.log([_ratio(load, name, baseline) for load in loads])
        later = np.array([load.later(name, baseline) for load in loads])
        if name != baseline:
            after, before = (_trimmed(logs[later == side], (cut + 1) // 2).mean() for side in (1, -1))
            logs -= later * (after - before) / 2
        middle, margin = _student_interval(logs, cut, level)
        found[name] = (exp(middle), exp(middle - margin), exp(middle + margin))
    return found


def _trimmed(values: Floats, cut: int) -> Floats:
    """The values in order, without so many of the lowest and highest."""
    return np.sort(values)[cut : len(values) - cut]


def _student_interval(values: Floats, cut: int, level: float) -> tuple[float, float]:
    """Trimmed mean, and how far its interval reaches to each side; one more degree of freedom is already used up.

    Source: Tukey and McLaughlin, Sankhya A 25 (1963): the deviations are those of the values with both ends pulled in
    to the outermost that are left.
    """
    left = _trimmed(values, cut)
    rest = np.clip(values, left[0], left[-1])
    freedom = len(left) - 2
    error = sqrt(float(np.square(rest - rest.mean()).sum()) / (len(left) * freedom))
    return float(left.mean()), student(freedom, level) * error


def student(freedom: int, level: float) -> float:
    """How many standard errors Student's interval reaches to each side, by the Cornish-Fisher expansion.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5; within 1.3 % from 4 degrees of freedom.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
