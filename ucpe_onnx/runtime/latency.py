"""Latency of several models against one another, measured in turns in one process.

Clock speed, temperature and other load drift; timings taken minutes apart compare the machine with itself. Here every
round runs every candidate, in random order, and what slows a round slows all candidates of it. All timings last equally
long, whatever a model takes, so that none is interrupted more often than the others; what was interrupted is timed
again, and where too little is left the verdict is that the machine is busy. Where the models' memory lies is luck that
lasts as long as their sessions, so rounds may be spread over several loads of the sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil, inf
from typing import Any, TypeAlias

import numpy as np

from ucpe_onnx.errors import UsageError
from ucpe_onnx.runtime.interference import INTERRUPTED, Waited, waiting
from ucpe_onnx.runtime.latency_stats import LEAST_ROUNDS, LUCK, CandidateLatency, Load, summarise
from ucpe_onnx.runtime.session import ModelLike, RunOptions, Session, make_session, run

__all__ = ["Candidate", "CandidateLatency", "LatencyReport", "Load", "measure", "summarise"]

Candidate: TypeAlias = "ModelLike | Session | Callable[[], Session]"
"""A model, a session, or a function that makes a session."""

_Timings: TypeAlias = "dict[str, list[float]]"

SHORTEST_TIMING = 1e-3
"""Seconds that one timing should last: the clock and Python's own overhead don't matter, and the system's scheduler
seldom lets another program in."""

MOST_REPEATS = 1000
"""Runs in one timing at most, should the clock not resolve a run at all."""

PATIENCE = 1.8
"""If an interval holds 1 after the seconds that were asked for, go on to so many times as long, loading included."""

CLEAR = 0.99
"""Level of the intervals that decide about going on: at 95 %, two looks would find a difference too often by chance."""

LEAST_RELOADS = 6
"""Loads below which their differences say too little about the luck of a load."""

EARLY = 30
"""Rounds from which a single load may end before its time, should all ratios be known by then."""

ATTEMPTS = 4
"""Times that a timing is taken at most, if it is interrupted, before its round is given up."""

MOST_INTERRUPTED = 0.9
"""Share of interrupted timings above which those that are left are not believed."""

COLD = 0.1
"""Share by which an interval reaches further if all timings were interrupted, and so much of it if some were: behind an
interruption caches are cold, for one candidate more than for another."""

_LOADING, _WARMING = 0.5, 0.25
"""Shares of the seconds that creating sessions may take, and the first runs of a load, but for one of each."""


@dataclass(frozen=True)
class LatencyReport:
    """Latencies of all candidates of one measurement.

    Attributes:
        baseline: name of the candidate that the ratios refer to.
        candidates: latency by name, in the order given.
        rounds: how often each candidate was timed, without interruption.
        runs_per_timing: runs in each timing of the baseline; those of the others last equally long.
        seconds: time that the measurement took, loading included.
        loads: how often the sessions were created; the intervals cover the luck of a load only from several.
        timings: all timings that were taken.
        interrupted: those that were interrupted by other programs, and don't count.
        busy: why nothing can be said of the candidates; "" if something can.
    """

    baseline: str
    candidates: dict[str, CandidateLatency]
    rounds: int
    runs_per_timing: int
    seconds: float
    loads: int = 1
    timings: int = 0
    interrupted: int = 0
    busy: str = ""

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

    def disbelieved(self, reason: str) -> LatencyReport:
        """The same numbers, of which nothing shall be concluded."""
        candidates = {name: replace(entry, trusted=False) for name, entry in self.candidates.items()}
        return replace(self, candidates=candidates, busy=reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; ratios that nothing shall be concluded from are None."""
        candidates = {}
        for name, entry in self.candidates.items():
            values = {**asdict(entry), "faster": entry.faster}
            del values["trusted"]
            hidden = {} if entry.trusted or name == self.baseline else dict.fromkeys(("ratio", "low", "high"))
            candidates[name] = {**values, **hidden}
        return {**asdict(self), "candidates": candidates}


def measure(
    candidates: Mapping[str, Candidate],
    feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    options: RunOptions | None = None,
    *,
    baseline: str,
    seconds: float = 3.0,
    limit: float | None = None,
    warmup: int = 2,
    min_rounds: int = LEAST_ROUNDS,
    reloads: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], Waited] = waiting,
    progress: Callable[[float, float], None] | None = None,
) -> LatencyReport:
    """Measure models against a baseline.

    Stops once every ratio is known to 1 % (with ``reloads`` not before ``seconds``), and goes on to 1.8 times as long
    as ``seconds``, but not beyond, if by then some ratio is not clearly above or below 1.

    Args:
        candidates: models or sessions by name, the baseline among them.
        feeds: an array per input, the same for all; or several such feeds, which the rounds use in turn.
        options: how to run models that are not sessions yet.
        baseline: name of the candidate that ratios refer to.
        seconds: how long to measure, in all, with creating sessions and warming up.
        limit: seconds after which it stops with what there is; None: ``min_rounds`` are made, however long they take.
        warmup: untimed runs of each candidate before; of a reloaded one a single one is enough.
        min_rounds: least number of rounds.
        reloads: spread the rounds over so many loads of all sessions: 1, or at least 6 (one more if it is odd), less
            if creating sessions would take longer than the rounds, 1 if not even 6 can be afforded. No candidate may
            be a session then.
        seed: seed of the order within rounds and of the bootstrap.
        clock: returns seconds.
        waited: makes what tells how long the threads that there are then have waited for a core.
        progress: called between rounds with the seconds that have passed so far, and may pass.

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
    limits = _Limits(seconds, limit, warmup, min_rounds, reloads + (reloads % 2 if reloads > 1 else 0))
    return _Measurement(candidates, some, options, baseline, limits, seed, clock, waited, progress).made()


def _check_reloads(candidates: Mapping[str, Candidate], reloads: int) -> None:
    if reloads < LEAST_RELOADS:
        raise UsageError(f"{reloads} loads say too little about the luck of one; give 1, or at least {LEAST_RELOADS}")
    for name, candidate in candidates.items():
        if isinstance(candidate, Session):
            raise UsageError(f"{name}: a session can't be loaded again; give the model, or 1 for the number of loads")


@dataclass(frozen=True)
class _Limits:
    """How long to measure; see :func:`measure`."""

    seconds: float
    limit: float | None
    warmup: int
    min_rounds: int
    reloads: int


@dataclass
class _Measurement:
    """One measurement: what :func:`measure` was given, and what it has found so far."""

    candidates: Mapping[str, Candidate]
    feeds: Sequence[Mapping[str, Any]]
    options: RunOptions | None
    baseline: str
    limits: _Limits
    seed: int
    clock: Callable[[], float]
    waited: Callable[[], Waited]
    progress: Callable[[float, float], None] | None
    loads: list[Load] = field(default_factory=list)
    shortest: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    timings: int = 0
    interrupted: int = 0
    patience: float = 1.0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)
        self._started = self.clock()
        self._planned = self.limits.reloads

    def made(self) -> LatencyReport:
        """Time everything, and sum up."""
        names, orders = list(self.candidates), np.random.default_rng(self.seed + 1)
        order: tuple[str, ...] = ()
        while not order or (self._planned > 1 and not self._enough_loads()):
            order = order[::-1] if len(self.loads) % 2 else tuple(orders.permutation(names).tolist())
            self._time(order if self._planned > 1 else tuple(names))
        entries = summarise(self.loads, self.baseline, self.seed)
        entries = {n: entry if n == self.baseline else entry.widened(self._unseen()) for n, entry in entries.items()}
        rounds = sum(load.rounds for load in self.loads)
        report = LatencyReport(
            self.baseline,
            entries,
            rounds,
            _repeats(self.shortest)[self.baseline],
            self._spent(),
            len(self.loads),
            self.timings,
            self.interrupted,
        )
        reason = self._doubt(rounds)
        return report.disbelieved(reason) if reason and len(entries) > 1 else report

    def _doubt(self, rounds: int) -> str:
        """Why nothing can be concluded, if nothing can."""
        share = self.interrupted / max(self.timings, 1)
        if share > MOST_INTERRUPTED or (rounds < LEAST_ROUNDS and self.interrupted):
            return f"other programs interrupted {self.interrupted:,} of {self.timings:,} timings"
        return f"there was time for {rounds} of {LEAST_ROUNDS} rounds" if rounds < LEAST_ROUNDS else ""

    def _unseen(self) -> float:
        """How much further an interval has to reach than the timings that are left tell."""
        luck = LUCK if self._planned < self.limits.reloads else 0.0  # what several loads would have shown
        return luck + COLD * self.interrupted / max(self.timings, 1)

    def _spent(self) -> float:
        return self.clock() - self._started

    def _over(self) -> bool:
        """Whether the limit is reached: nothing else counts then."""
        return self.limits.limit is not None and self._spent() >= self.limits.limit

    def _enough_loads(self) -> bool:
        """Whether all planned loads were made; if some ratio is not clear by then, there are more, once."""
        # No look in between: loads are few, and stopping when they happen to agree would make intervals too narrow.
        even = len(self.loads) % 2 == 0
        if self._over() and even:
            return True
        return even and len(self.loads) >= int(self.patience * self._planned) and self._clear(due=True)

    def _clear(self, due: bool, loads: Sequence[Load] | None = None) -> bool:
        """Whether to stop; if that is due and some ratio is not clear, go on, once."""
        loads = self.loads if loads is None else loads
        if all(entry.narrow for entry in summarise(loads, self.baseline, self.seed).values()):
            return True
        if not due or self.patience > 1:
            return due
        if any(entry.undecided for entry in summarise(loads, self.baseline, self.seed, CLEAR).values()):
            self.patience = PATIENCE
        return self.patience == 1

    def _affordable(self, cost: float) -> int:
        """As many of the planned loads as take no more than their share of the seconds; 1 if 6 would take more.

        Args:
            cost: seconds that creating the sessions and warming them up takes.
        """
        planned = self._planned
        if planned * cost > _LOADING * self.limits.seconds:
            planned = int(_LOADING * self.limits.seconds / cost) // 2 * 2
        return planned if planned >= LEAST_RELOADS else 1

    def _time(self, order: tuple[str, ...]) -> None:
        """Create sessions in the given order, and time rounds until it is enough."""
        before, sessions = self._spent(), {name: self._session(name) for name in order}
        self._warm_up(sessions)
        cost = self._spent() - before
        if not self.loads and self._planned > 1:
            self._planned = self._affordable(cost)
        timings: _Timings = {name: [] for name in self.candidates}
        least = check_at = ceil(self.limits.min_rounds / self._planned)
        waited, tried = self.waited(), 0
        begun = self._spent()
        while True:
            found = self._round(sessions, waited)
            tried += 1
            for name, seconds in found.items():
                timings[name].append(seconds)
            if self.progress is not None:
                self.progress(self._spent(), self.patience * self.limits.seconds)
            if self._over() or (not found and self._spent() >= PATIENCE * self.limits.seconds):
                break
            if tried >= check_at or (tried >= least and self._spent() >= self.patience * self.limits.seconds):
                if self._had_enough(order, timings, self._spent() - begun, cost):
                    break
                check_at = ceil(tried * 1.25) if self._planned == 1 else tried + 1  # a bootstrap takes its time
        self.loads.append(_load(order, timings))

    def _warm_up(self, sessions: Mapping[str, Session]) -> None:
        """Run every candidate untimed, and learn about how long a run takes."""
        start = self.clock()
        for name, session in sessions.items():
            for feed in self.feeds[:1] if self.loads else self.feeds:
                begun = self.clock()
                run(session, feed, where=name)  # says what is wrong with a model or feed; the loops below don't
                self._learn(name, self.clock() - begun)
        for _ in range(1 if self.loads else self.limits.warmup):
            if self.clock() - start > _WARMING * self.limits.seconds:
                break
            for name, session in sessions.items():
                self._learn(name, _seconds(session, self.feeds[0], 1, self.clock))

    def _learn(self, name: str, seconds: float) -> None:
        """The shortest run tells most: whatever else happens only adds to it."""
        self.shortest[name] = min(seconds, self.shortest.get(name, inf))

    def _round(self, sessions: Mapping[str, Session], waited: Waited) -> dict[str, float]:
        """Seconds per run of every candidate; nothing if one of them was interrupted every time."""
        feed, names = self.feeds[self.rounds % len(self.feeds)], list(self.candidates)
        self.rounds += 1
        repeats, found = _repeats(self.shortest), {}
        for index in self._generator.permutation(len(names)):
            name = names[int(index)]
            seconds = self._timing(sessions[name], feed, repeats[name], waited)
            if seconds is None:
                return {}
            self._learn(name, seconds)
            found[name] = seconds
        return found

    def _had_enough(self, order: tuple[str, ...], timings: _Timings, elapsed: float, cost: float) -> bool:
        """Whether a load has had its share of the seconds; a single one, whether its ratios are known."""
        if self._planned > 1:
            return elapsed >= self.limits.seconds / self._planned - cost
        due = self._spent() >= self.patience * self.limits.seconds
        if len(timings[self.baseline]) < self.limits.min_rounds:  # interrupted: it may get better, but not for ever
            return self._spent() >= PATIENCE * self.limits.seconds
        return (due or len(timings[self.baseline]) >= EARLY) and self._clear(due, [_load(order, timings)])

    def _timing(self, session: Session, feed: Mapping[str, Any], repeats: int, waited: Waited) -> float | None:
        """Seconds per run; None if it was interrupted every time."""
        for _ in range(ATTEMPTS):
            already = waited()
            seconds = _seconds(session, feed, repeats, self.clock)
            self.timings += 1
            if waited() - already <= INTERRUPTED * seconds * repeats:
                return seconds
            self.interrupted += 1
            if self._over():
                break
        return None

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


def _repeats(single: Mapping[str, float]) -> dict[str, int]:
    """Runs in one timing of each candidate, so that all timings last equally long: as long as the slowest run."""
    length = max(SHORTEST_TIMING, *single.values())
    return {name: int(np.clip(round(length / max(each, 1e-9)), 1, MOST_REPEATS)) for name, each in single.items()}


def _seconds(session: Session, feeds: Mapping[str, Any], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per run, over so many runs."""
    start = clock()
    for _ in range(repeats):
        session.run(None, feeds)
    return (clock() - start) / repeats
