"""Latency of several models against one another, measured in turns in one process.

Clock speed, temperature and other load drift; timings taken minutes apart compare the machine with itself. Here every
round runs every candidate once, in random order, and the interval of a ratio is a bootstrap over whole rounds: what
slows a round slows all candidates of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.errors import UsageError
from ucpe_onnx.runtime.session import ModelLike, RunOptions, Session, make_session, run

Floats = npt.NDArray[np.float64]

SHORTEST_TIMING = 1e-3
"""Seconds that one timing should last, so that the clock and Python's own overhead don't matter."""

NARROW = 0.01
"""A ratio is known well enough once its interval reaches at most 1 % to each side."""

MOST_REPEATS = 1000
"""Runs in one timing at most, should the clock not resolve a run at all."""

PATIENCE = 3.0
"""While an interval holds 1, go on up to so many times the seconds that were asked for."""

RESAMPLES = 1000
_BLOCK = 2**21
"""Numbers drawn at once by the bootstrap: long measurements must not take gigabytes."""


@dataclass(frozen=True)
class CandidateLatency:
    """Latency of one model.

    Attributes:
        median_ms: median milliseconds per run; of very fast models a timing is the mean of several runs.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        ratio: median over the baseline's median; below 1 is faster.
        low: lower end of the ratio's 95 % interval.
        high: upper end.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether it beats the baseline beyond doubt: the whole interval lies below 1."""
        return self.high < 1.0

    @property
    def undecided(self) -> bool:
        """Whether the interval holds 1 inside of it."""
        return self.low < 1.0 < self.high

    @property
    def narrow(self) -> bool:
        """Whether the interval is as narrow as anybody needs it."""
        return max(self.high - self.ratio, self.ratio - self.low) <= NARROW * self.ratio


@dataclass(frozen=True)
class LatencyReport:
    """Latencies of all candidates of one measurement.

    Attributes:
        baseline: name of the candidate that the ratios refer to.
        candidates: latency by name, in the order given.
        rounds: how often each candidate was timed.
        runs_per_timing: runs in each timing.
        seconds: time that the rounds took.
    """

    baseline: str
    candidates: dict[str, CandidateLatency]
    rounds: int
    runs_per_timing: int
    seconds: float

    def __getitem__(self, name: str) -> CandidateLatency:
        return self.candidates[name]

    @property
    def fastest(self) -> str:
        """Name of the candidate with the lowest median."""
        return min(self.candidates, key=lambda name: self.candidates[name].median_ms)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        candidates = {name: {**asdict(entry), "faster": entry.faster} for name, entry in self.candidates.items()}
        return {**asdict(self), "candidates": candidates}


def measure(
    candidates: Mapping[str, ModelLike | Session],
    feeds: Mapping[str, Any],
    options: RunOptions | None = None,
    *,
    baseline: str,
    seconds: float = 3.0,
    warmup: int = 5,
    min_rounds: int = 30,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyReport:
    """Measure models against a baseline.

    Stops before ``seconds`` once every ratio is known to 1 %, and goes on to three times as long while a ratio's
    interval still holds 1.

    Args:
        candidates: models or sessions by name, the baseline among them.
        feeds: an array per input; the same for all.
        options: how to run models that are not sessions yet.
        baseline: name of the candidate that ratios refer to.
        seconds: how long to measure, in all.
        warmup: untimed rounds before.
        min_rounds: least number of rounds, however long they take.
        seed: seed of the order within rounds and of the bootstrap.
        clock: returns seconds.

    Raises:
        ModelError: a model can't be loaded or run.
        UsageError: the baseline is not a candidate, or a number makes no sense.
    """
    if baseline not in candidates:
        raise UsageError(f"the baseline {baseline!r} is not a candidate; choose from {', '.join(candidates)}")
    if seconds <= 0 or warmup < 1 or min_rounds < 2:
        raise UsageError("a latency measurement needs seconds above 0, warmup of at least 1, min_rounds of at least 2")
    sessions = {name: _session(model, options, name) for name, model in candidates.items()}
    for name, session in sessions.items():
        run(session, feeds, where=name)  # says clearly what is wrong with a model or feed; the loops below don't
    repeats = _warm_up(sessions, feeds, warmup, clock)
    timings: dict[str, list[float]] = {name: [] for name in sessions}
    generator = np.random.default_rng(seed)
    start, check_at, deadline, rounds = clock(), min_rounds, seconds, 0
    while True:
        for index in generator.permutation(len(sessions)):
            name = list(sessions)[index]
            timings[name].append(_time(sessions[name], feeds, repeats, clock))
        rounds, elapsed = rounds + 1, clock() - start
        if rounds < min_rounds or (rounds < check_at and elapsed < deadline):
            continue
        entries = summarise({name: np.array(values) for name, values in timings.items()}, baseline, seed)
        if _enough(list(entries.values()), elapsed, seconds):
            return LatencyReport(baseline, entries, rounds, repeats, elapsed)
        check_at = ceil(rounds * 1.25)  # the bootstrap takes longer than a round: look rarely
        if elapsed >= deadline:
            deadline = PATIENCE * seconds


def summarise(timings: Mapping[str, Floats], baseline: str, seed: int = 0) -> dict[str, CandidateLatency]:
    """Turn seconds per run into medians and ratios with 95 % intervals.

    Args:
        timings: by name, one number per round; the same rounds for all.
        baseline: name of the candidate that ratios refer to.
        seed: seed of the bootstrap, which draws the same rounds for every candidate.
    """
    draws = _bootstrap_medians(np.stack(list(timings.values())), seed)
    ratios = draws / draws[list(timings).index(baseline)]
    lows, highs = np.percentile(ratios, [2.5, 97.5], axis=1)
    middle = float(np.median(timings[baseline]))
    entries = {}
    for (name, values), low, high in zip(timings.items(), lows, highs, strict=True):
        p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
        entries[name] = CandidateLatency(p50 * 1e3, p90 * 1e3, p99 * 1e3, p50 / middle, float(low), float(high))
    return entries


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


def _session(model: ModelLike | Session, options: RunOptions | None, name: str) -> Session:
    if isinstance(model, Session):
        return model
    # Threads of one candidate that still spin for work would slow the next one down.
    return make_session(model, options, where=name, config={"session.force_spinning_stop": "1"})


def _warm_up(sessions: Mapping[str, Session], feeds: Mapping[str, Any], rounds: int, clock: Callable[[], float]) -> int:
    """Run every candidate untimed, and return how many runs of the fastest last long enough for one timing."""
    fastest = min(
        float(np.median([_time(session, feeds, 1, clock) for _ in range(rounds)])) for session in sessions.values()
    )
    return max(1, ceil(SHORTEST_TIMING / max(fastest, SHORTEST_TIMING / MOST_REPEATS)))


def _time(session: Session, feeds: Mapping[str, Any], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per run, over so many runs."""
    start = clock()
    for _ in range(repeats):
        session.run(None, feeds)
    return (clock() - start) / repeats


def _enough(entries: list[CandidateLatency], elapsed: float, seconds: float) -> bool:
    if all(entry.narrow for entry in entries):
        return True
    undecided = any(entry.undecided for entry in entries)
    return elapsed >= (PATIENCE * seconds if undecided else seconds)
