"""Time small graphs in turns, so that drift and other load of the machine hit them all alike.

Timings that other programs interrupt don't count; where hardly any are left, nothing is measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.calibration.networks import Profile
from ucpe_onnx.errors import BusyError, ModelError
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.runtime.interference import INTERRUPTED, Waited, waiting
from ucpe_onnx.runtime.session import RunOptions, Session, make_session

Progress: TypeAlias = Callable[[float], None]
"""Told the share that is done, from 0 to 1."""

QUIET_QUANTILE = 0.1
"""Of the timings of a graph; other load only ever adds to them, so the low ones say what the kernels take."""

_Loaded: TypeAlias = "tuple[int, Session, dict[str, npt.NDArray[np.float32]]]"
"""A graph that has been loaded: its index, the session, and what it takes."""

FEWEST_ROUNDS = 5
FEWEST_TIMINGS = 3
"""Of each graph, without interruption."""

PATIENCE = 2.0
"""Times the seconds after which it is enough, however little the interruptions have left."""

_BUSY = "calibration: other programs interrupt all timings; wait until the machine is idle, or leave --calibrate out"

_SETUP_SHARE = 0.4

_MOST_PROFILED = 60
"""Rounds; onnxruntime keeps every kernel's event until the end."""

_LEAST_US = 0.5


class Timer(Protocol):
    """Times graphs that each take one float32 input of zeros called ``x``."""

    def __call__(
        self, graphs: Sequence[onnx.ModelProto], options: RunOptions, seconds: float, progress: Progress
    ) -> npt.NDArray[np.float64]:
        """Seconds per run of each graph; NaN for one that the runtime does not take."""


class Profiler(Protocol):
    """Times the kernels of graphs that each take one float32 input of zeros called ``x``."""

    def __call__(
        self, graphs: Sequence[onnx.ModelProto], options: RunOptions, seconds: float
    ) -> Sequence[Profile | None]:
        """Kernels of each graph; None for one whose kernels can't be told."""


def time_graphs(
    graphs: Sequence[onnx.ModelProto],
    options: RunOptions,
    seconds: float,
    progress: Progress,
    *,
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], Waited] = waiting,
) -> npt.NDArray[np.float64]:
    """Time graphs in turns, in random order, for about so many seconds in all.

    Raises:
        BusyError: other programs have interrupted nearly everything.
    """
    start = clock()
    loaded: list[_Loaded] = []
    for index, graph in enumerate(graphs):
        session = _session(graph, options)
        if session is not None:
            loaded.append((index, session, _feed(graph)))
        progress(_SETUP_SHARE * (index + 1) / len(graphs))
    timings: list[list[float]] = [[] for _ in graphs]
    generator = np.random.default_rng(0)
    for _, session, feed in loaded:  # the first round warms caches and memory up
        session.run(None, feed)
    rounds, measuring, waits = 1, clock(), waited()
    while rounds < FEWEST_ROUNDS or clock() - start < _enough(timings, loaded, seconds):
        for position in generator.permutation(len(loaded)):
            index, session, feed = loaded[position]
            already, before = waits(), clock()
            session.run(None, feed)
            took = clock() - before
            if waits() - already <= INTERRUPTED * took:
                timings[index].append(took)
        rounds += 1
        spent, budget = clock() - measuring, max(seconds - (measuring - start), 1e-9)
        progress(_SETUP_SHARE + (1 - _SETUP_SHARE) * min(1.0, max(spent / budget, 0.0)))
    if any(not timings[index] for index, _, _ in loaded):
        raise BusyError(_BUSY)
    return np.array([np.quantile(values, QUIET_QUANTILE) if values else np.nan for values in timings])


def _enough(timings: Sequence[Sequence[float]], loaded: Sequence[_Loaded], seconds: float) -> float:
    """The seconds after which it is enough: more of them as long as interruptions have left too little of a graph."""
    fewest = min((len(timings[index]) for index, _, _ in loaded), default=FEWEST_ROUNDS)
    return seconds if fewest >= FEWEST_TIMINGS else PATIENCE * seconds


def profile_graphs(
    graphs: Sequence[onnx.ModelProto],
    options: RunOptions,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], Waited] = waiting,
) -> list[Profile | None]:
    """Time the kernels of graphs, run in turns for about so many seconds; None for a graph that can't be.

    The profiler adds something to every kernel: the times are lessened by so much that their sum is what the graph
    takes without it. Rounds in which a graph was interrupted don't count for it, unless all were.
    """
    end = clock() + seconds
    with TemporaryFolder() as folder:
        pairs = [_profiled_and_plain(graph, options, os.path.join(folder, str(i))) for i, graph in enumerate(graphs)]
        feeds = [_feed(graph) for graph in graphs]
        alone: list[list[float]] = [[] for _ in graphs]
        shares: list[list[float]] = [[] for _ in graphs]
        rounds, waits = 0, waited()
        while rounds < FEWEST_ROUNDS or (clock() < end and rounds < _MOST_PROFILED):
            for pair, feed, timings, waiting_shares in zip(pairs, feeds, alone, shares, strict=True):
                if pair is not None:
                    already, begun = waits(), clock()
                    pair[0].run(None, feed)
                    before = clock()
                    pair[1].run(None, feed)
                    timings.append(clock() - before)
                    waiting_shares.append((waits() - already) / max(clock() - begun, 1e-9))
            rounds += 1
        return [
            None if pair is None else _profile(pair[0], timings, waiting_shares)
            for pair, timings, waiting_shares in zip(pairs, alone, shares, strict=True)
        ]


def _profiled_and_plain(graph: onnx.ModelProto, options: RunOptions, prefix: str) -> tuple[Session, Session] | None:
    profiled, plain = (_session(graph, options, name) for name in (prefix, None))
    return None if profiled is None or plain is None else (profiled, plain)


def _profile(session: Any, alone: Sequence[float], waited: Sequence[float]) -> Profile | None:
    """The kernels of a profiled session, every run but the first, and those that were interrupted."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    count, rest = divmod(len(kernels), len(alone))
    if not count or rest:
        return None
    us = np.array([event["dur"] for event in kernels], dtype=np.float64).reshape(len(alone), count)
    quiet = np.array(waited) <= INTERRUPTED
    quiet[0] = False
    if not quiet.any():
        quiet[1:] = True
    us = np.quantile(us[quiet], QUIET_QUANTILE, axis=0)
    added = (us.sum() - 1e6 * np.quantile(np.array(alone)[quiet], QUIET_QUANTILE)) / count
    ops = tuple(str(event["args"]["op_name"]) for event in kernels[:count])
    return Profile(ops, np.maximum(us - max(added, 0.0), _LEAST_US))


def _session(graph: onnx.ModelProto, options: RunOptions, profile: str | None = None) -> Session | None:
    try:
        # Threads of one graph that still spin for work would slow the next one down.
        config = {"session.force_spinning_stop": "1"}
        return make_session(graph, options, where="calibration", config=config, profile=profile)
    except ModelError:
        return None


def _feed(graph: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    shape = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    return {graph.graph.input[0].name: np.zeros(shape, np.float32)}
