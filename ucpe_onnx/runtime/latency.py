"""Latency of several models against one another, measured in turns in one process.

Clock speed, temperature and other load drift; timings taken minutes apart compare the machine with itself. Here every
round runs every candidate once, in random order, and what slows a round slows all candidates of it. Where the models'
memory lies is luck that lasts as long as their sessions, so rounds may be spread over several loads of the sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import Any, TypeAlias

import numpy as np

from ucpe_onnx.errors import UsageError
from ucpe_onnx.runtime.latency_stats import CandidateLatency, Load, summarise
from ucpe_onnx.runtime.session import ModelLike, RunOptions, Session, make_session, run

__all__ = ["Candidate", "CandidateLatency", "LatencyReport", "Load", "measure", "summarise"]

Candidate: TypeAlias = "ModelLike | Session | Callable[[], Session]"
"""A model, a session, or a function that makes a session."""

_Timings: TypeAlias = "dict[str, list[float]]"

SHORTEST_TIMING = 1e-3
"""Seconds that one timing should last, so that the clock and Python's own overhead don't matter."""

MOST_REPEATS = 1000
"""Runs in one timing at most, should the clock not resolve a run at all."""

PATIENCE = 3.0
"""If an interval holds 1 after the seconds that were asked for, go on to so many times as long."""

CLEAR = 0.99
"""Level of the intervals that decide about going on: at 95 %, two looks would find a difference too often by chance."""

LEAST_RELOADS = 6
"""Loads below which their differences say too little about the luck of a load."""


@dataclass(frozen=True)
class LatencyReport:
    """Latencies of all candidates of one measurement.

    Attributes:
        baseline: name of the candidate that the ratios refer to.
        candidates: latency by name, in the order given.
        rounds: how often each candidate was timed.
        runs_per_timing: runs in each timing.
        seconds: time that the rounds took.
        loads: how often the sessions were created; the intervals cover the luck of a load only from several.
    """

    baseline: str
    candidates: dict[str, CandidateLatency]
    rounds: int
    runs_per_timing: int
    seconds: float
    loads: int = 1

    def __getitem__(self, name: str) -> CandidateLatency:
        return self.candidates[name]

    @property
    def fastest(self) -> str:
        """Name of the candidate with the lowest ratio."""
        return min(self.candidates, key=lambda name: self.candidates[name].ratio)

    def renamed(self, names: Mapping[str, str]) -> LatencyReport:
        """The same with other names for some candidates."""
        candidates = {names.get(name, name): entry for name, entry in self.candidates.items()}
        return replace(self, baseline=names.get(self.baseline, self.baseline), candidates=candidates)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        candidates = {name: {**asdict(entry), "faster": entry.faster} for name, entry in self.candidates.items()}
        return {**asdict(self), "candidates": candidates}


def measure(
    candidates: Mapping[str, Candidate],
    feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    options: RunOptions | None = None,
    *,
    baseline: str,
    seconds: float = 3.0,
    warmup: int = 5,
    min_rounds: int = 30,
    reloads: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float, float], None] | None = None,
) -> LatencyReport:
    """Measure models against a baseline.

    Stops once every ratio is known to 1 % (with ``reloads`` not before ``seconds``), and goes on to three times as long
    as ``seconds``, but not beyond, if by then some ratio is not clearly above or below 1.

    Args:
        candidates: models or sessions by name, the baseline among them.
        feeds: an array per input, the same for all; or several such feeds, which the rounds use in turn.
        options: how to run models that are not sessions yet.
        baseline: name of the candidate that ratios refer to.
        seconds: how long to measure, in all; creating sessions and warming up comes on top.
        warmup: untimed runs of each candidate before; of a reloaded one two are enough.
        min_rounds: least number of rounds, however long they take.
        reloads: spread the rounds over so many loads of all sessions: 1, or at least 6 (one more if it is odd), less
            if creating sessions would take longer than the rounds. No candidate may be a session then.
        seed: seed of the order within rounds and of the bootstrap.
        clock: returns seconds.
        progress: called between rounds with the seconds that they took so far, and may take.

    Raises:
        ModelError: a model can't be loaded or run.
        UsageError: the baseline is not a candidate, or a number makes no sense.
    """
    if baseline not in candidates:
        raise UsageError(f"the baseline {baseline!r} is not a candidate; choose from {', '.join(candidates)}")
    if seconds <= 0 or warmup < 1 or min_rounds < 2:
        raise UsageError("a latency measurement needs seconds above 0, warmup of at least 1, min_rounds of at least 2")
    if reloads != 1:
        _check_reloads(candidates, reloads)
    some = [feeds] if isinstance(feeds, Mapping) else list(feeds)
    job = _Job(candidates, some, options, baseline, seconds, warmup, min_rounds, seed, clock, progress)
    if reloads == 1:
        job.one_load()
    else:
        job.many_loads(reloads + reloads % 2)
    entries = summarise(job.loads, baseline, seed)
    return LatencyReport(baseline, entries, job.rounds, job.repeats, job.elapsed, len(job.loads))


def _check_reloads(candidates: Mapping[str, Candidate], reloads: int) -> None:
    if reloads < LEAST_RELOADS:
        raise UsageError(f"{reloads} loads say too little about the luck of one; give 1, or at least {LEAST_RELOADS}")
    for name, candidate in candidates.items():
        if isinstance(candidate, Session):
            raise UsageError(f"{name}: a session can't be loaded again; give the model, or 1 for the number of loads")


@dataclass
class _Job:
    """One measurement: what :func:`measure` was given, and what it has found so far."""

    candidates: Mapping[str, Candidate]
    feeds: Sequence[Mapping[str, Any]]
    options: RunOptions | None
    baseline: str
    seconds: float
    warmup: int
    min_rounds: int
    seed: int
    clock: Callable[[], float]
    progress: Callable[[float, float], None] | None
    loads: list[Load] = field(default_factory=list)
    rounds: int = 0
    elapsed: float = 0.0
    repeats: int = 0
    patience: float = 1.0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def one_load(self) -> None:
        """Time the sessions of one load until their ratios are known."""
        order, check_at = tuple(self.candidates), self.min_rounds

        def enough(timings: _Timings, elapsed: float) -> bool:
            nonlocal check_at
            due = elapsed >= self.patience * self.seconds
            if self.rounds < self.min_rounds or (self.rounds < check_at and not due):
                return False
            check_at = ceil(self.rounds * 1.25)  # the bootstrap takes longer than a round: look rarely
            return self._enough([_load(order, timings)], due)

        self._time(order, enough)

    def many_loads(self, planned: int) -> None:
        """Time the sessions of several loads, for equal times, until their ratios are known."""
        names, orders = list(self.candidates), np.random.default_rng(self.seed + 1)
        while True:
            order = tuple(orders.permutation(names).tolist())
            self._time(order, self._share(planned))
            start, spent = self.clock(), self.elapsed
            self._time(order[::-1], self._share(planned))
            if len(self.loads) == 2:
                rounds = self.elapsed - spent
                planned = self._affordable(planned, rounds, self.clock() - start - rounds)
            # No look in between: loads are few, and stopping when they happen to agree would make intervals too narrow.
            if len(self.loads) >= self.patience * planned and self._enough(self.loads, due=True):
                return

    def _share(self, planned: int) -> Callable[[_Timings, float], bool]:
        """Whether a load has had its share of the seconds and rounds."""
        seconds, rounds = self.seconds / planned, ceil(self.min_rounds / planned)
        return lambda timings, elapsed: elapsed >= seconds and len(timings[self.baseline]) >= rounds

    def _affordable(self, planned: int, rounds: float, cost: float) -> int:
        """As many of the planned loads as take, besides the rounds, no more seconds than the rounds of all of them.

        Args:
            planned: number of loads.
            rounds: seconds that the rounds of a load take.
            cost: seconds that creating its sessions and warming them up takes.
        """
        budget = max(self.seconds, planned * rounds)
        affordable = planned if planned * cost <= budget else int(budget / cost)
        return max(LEAST_RELOADS, affordable - affordable % 2)

    def _enough(self, loads: Sequence[Load], due: bool) -> bool:
        """Whether to stop; if that is due and some ratio is not clear, go on, once."""
        if all(entry.narrow for entry in summarise(loads, self.baseline, self.seed).values()):
            return True
        if not due or self.patience > 1:
            return due
        if any(entry.undecided for entry in summarise(loads, self.baseline, self.seed, CLEAR).values()):
            self.patience = PATIENCE
        return self.patience == 1

    def _time(self, order: tuple[str, ...], enough: Callable[[_Timings, float], bool]) -> None:
        """Create sessions in the given order, and time rounds until it is enough."""
        sessions = {name: self._session(name) for name in order}
        for name, session in sessions.items():
            for feed in self.feeds[:1] if self.loads else self.feeds:
                run(session, feed, where=name)  # says what is wrong with a model or feed; the loops below don't
        repeats = _warm_up(sessions, self.feeds[0], 1 if self.loads else self.warmup, self.clock)
        self.repeats = self.repeats or repeats
        timings: _Timings = {name: [] for name in self.candidates}
        names, before, start = list(timings), self.elapsed, self.clock()
        while True:
            feed = self.feeds[self.rounds % len(self.feeds)]
            for index in self._generator.permutation(len(names)):
                name = names[index]
                timings[name].append(_seconds(sessions[name], feed, self.repeats, self.clock))
            self.rounds += 1
            elapsed = self.clock() - start
            if self.progress is not None:
                self.progress(before + elapsed, self.patience * self.seconds)
            if enough(timings, elapsed):
                break
        self.elapsed = before + elapsed
        self.loads.append(_load(order, timings))

    def _session(self, name: str) -> Session:
        candidate = self.candidates[name]
        if isinstance(candidate, Session):
            return candidate
        if callable(candidate):
            return candidate()
        # Threads of one candidate that still spin for work would slow the next one down.
        return make_session(candidate, self.options, where=name, config={"session.force_spinning_stop": "1"})


def _load(order: tuple[str, ...], timings: _Timings) -> Load:
    return Load(order, {name: np.array(values) for name, values in timings.items()})


def _warm_up(sessions: Mapping[str, Session], feeds: Mapping[str, Any], rounds: int, clock: Callable[[], float]) -> int:
    """Run every candidate untimed, and return how many runs of the fastest last long enough for one timing."""
    fastest = min(
        float(np.median([_seconds(session, feeds, 1, clock) for _ in range(rounds)])) for session in sessions.values()
    )
    return max(1, ceil(SHORTEST_TIMING / max(fastest, SHORTEST_TIMING / MOST_REPEATS)))


def _seconds(session: Session, feeds: Mapping[str, Any], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per run, over so many runs."""
    start = clock()
    for _ in range(repeats):
        session.run(None, feeds)
    return (clock() - start) / repeats
