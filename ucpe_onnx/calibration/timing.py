"""Time small graphs in turns, so that drift and other load of the machine hit them all alike."""

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
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.runtime.session import RunOptions, Session, make_session

Progress: TypeAlias = Callable[[float], None]
"""Told the share that is done, from 0 to 1."""

QUIET_QUANTILE = 0.1
"""Of the timings of a graph; other load only ever adds to them, so the low ones say what the kernels take."""

FEWEST_ROUNDS = 5
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
) -> npt.NDArray[np.float64]:
    """Time graphs in turns, in random order, for about so many seconds in all."""
    start = clock()
    loaded: list[tuple[int, Session, dict[str, npt.NDArray[np.float32]]]] = []
    for index, graph in enumerate(graphs):
        session = _session(graph, options)
        if session is not None:
            loaded.append((index, session, _feed(graph)))
        progress(_SETUP_SHARE * (index + 1) / len(graphs))
    timings: list[list[float]] = [[] for _ in graphs]
    generator = np.random.default_rng(0)
    rounds, measuring = 0, clock()
    while rounds < FEWEST_ROUNDS or clock() - start < seconds:
        for position in generator.permutation(len(loaded)):
            index, session, feed = loaded[position]
            before = clock()
            session.run(None, feed)
            timings[index].append(clock() - before)
        rounds += 1
        spent, budget = clock() - measuring, max(seconds - (measuring - start), 1e-9)
        progress(_SETUP_SHARE + (1 - _SETUP_SHARE) * min(1.0, max(spent / budget, 0.0)))
    # The first round warms caches and memory up.
    return np.array([np.quantile(values[1:], QUIET_QUANTILE) if values else np.nan for values in timings])


def profile_graphs(
    graphs: Sequence[onnx.ModelProto],
    options: RunOptions,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Profile | None]:
    """Time the kernels of graphs, run in turns for about so many seconds; None for a graph that can't be.

    The profiler adds something to every kernel: the times are lessened by so much that their sum is what the graph
    takes without it.
    """
    end = clock() + seconds
    with TemporaryFolder() as folder:
        pairs = [_profiled_and_plain(graph, options, os.path.join(folder, str(i))) for i, graph in enumerate(graphs)]
        feeds = [_feed(graph) for graph in graphs]
        alone: list[list[float]] = [[] for _ in graphs]
        rounds = 0
        while rounds < FEWEST_ROUNDS or (clock() < end and rounds < _MOST_PROFILED):
            for pair, feed, timings in zip(pairs, feeds, alone, strict=True):
                if pair is not None:
                    pair[0].run(None, feed)
                    before = clock()
                    pair[1].run(None, feed)
                    timings.append(clock() - before)
            rounds += 1
        return [
            None if pair is None else _profile(pair[0], timings) for pair, timings in zip(pairs, alone, strict=True)
        ]


def _profiled_and_plain(graph: onnx.ModelProto, options: RunOptions, prefix: str) -> tuple[Session, Session] | None:
    profiled, plain = (_session(graph, options, name) for name in (prefix, None))
    return None if profiled is None or plain is None else (profiled, plain)


def _profile(session: Any, alone: Sequence[float]) -> Profile | None:
    """The kernels of a profiled session, every run but the first."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    count, rest = divmod(len(kernels), len(alone))
    if not count or rest:
        return None
    us = np.array([event["dur"] for event in kernels], dtype=np.float64).reshape(len(alone), count)
    us = np.quantile(us[1:], QUIET_QUANTILE, axis=0)
    added = (us.sum() - 1e6 * np.quantile(alone[1:], QUIET_QUANTILE)) / count
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
