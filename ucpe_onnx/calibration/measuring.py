"""Measure how fast this machine's kernels are."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ucpe_onnx.calibration.cache import store_rates
from ucpe_onnx.calibration.cases import Case, cases_for
from ucpe_onnx.calibration.chain import Chain
from ucpe_onnx.calibration.fit import Work, fit_rates, misses
from ucpe_onnx.calibration.networks import networks, timed_kernels
from ucpe_onnx.calibration.timing import Profiler, Progress, Timer, profile_graphs, time_graphs
from ucpe_onnx.errors import ModelError
from ucpe_onnx.planning.kernels import Amounts
from ucpe_onnx.planning.rates import Rates, default_rates, rates_of, working_threads
from ucpe_onnx.runtime.session import RunOptions, resolve_providers
from ucpe_onnx.runtime.target import Target, target_for

_LONGEST_US = 1500.0
"""About what the deeper chain of a case takes: long against a session's overhead, short against the time there is."""

_DEEPEST = 24
_MOST_WEIGHTS_MB = 24.0

_TIMED = 0.65
"""Share of the time until the timings of chains end."""

_PROFILED = 0.25
"""Share of the time for networks; the last rounds and the fits take the rest."""

_TOO_MUCH = 0.3
"""Share by which the rates miss the typical case, from which on they say more about other load than about kernels."""

logger = logging.getLogger(__name__)


def calibrate(
    run_options: RunOptions | None = None,
    *,
    precision: str = "float32",
    progress: Progress | None = None,
    seconds: float = 17.0,
    timer: Timer = time_graphs,
    profiler: Profiler = profile_graphs,
    store: bool = True,
) -> Rates:
    """Time small graphs as onnxruntime runs them here, and fit the rates of its kernels to the timings.

    Every case is timed at two depths; their difference is free of what a session costs beside its kernels. Where
    onnxruntime's profiler sees single kernels, those of some networks are fitted with them.

    Args:
        run_options: provider, threads and optimisation level to calibrate for.
        precision: of the convolutions, ``float32`` or ``int8``.
        progress: told the share that is done.
        seconds: how long it may take; imports and the last fits come on top.
        timer: times the graphs.
        profiler: times the kernels of graphs.
        store: keep the rates in the user's cache, for :func:`ucpe_onnx.calibration.load_rates`.

    Returns:
        The rates; the defaults, with a warning, if the machine is too busy to measure anything.

    Raises:
        ModelError: the provider ran none of the graphs.
    """
    start = time.monotonic()
    options = run_options or RunOptions()
    target = target_of(options, precision)
    prior = default_rates(target, options.threads)
    pairs = [_two_depths(case, target, prior) for case in cases_for(target)]
    graphs = [chain.model() for pair in pairs for chain in pair]
    tell = progress or (lambda _: None)
    left = _TIMED * seconds - (time.monotonic() - start)
    times = timer(graphs, options, left, lambda share: tell(_TIMED * share)).reshape(-1, 2)
    if not np.isfinite(times).any():
        raise ModelError("calibration: onnxruntime ran none of the graphs; try other --providers")
    work = [_difference(*pair) for pair in pairs]
    slopes = (times[:, 1] - times[:, 0]) * 1e6
    more, within = _within_networks(target, options, profiler, _PROFILED * seconds)
    tell(1.0)
    work, slopes = [*work, *more], np.concatenate([slopes, within])
    coefficients = fit_rates(work, slopes, prior.coefficients)
    missed = float(np.nanmedian(np.abs(misses(work, slopes, coefficients))))
    if missed > _TOO_MUCH:
        logger.warning(
            "calibration failed: timings scatter by %.0f %%; stop other programs and try again", missed * 100
        )
        return prior
    rates = rates_of(target, prior.threads, coefficients, f"calibrated on this machine, to about {missed:.1%}")
    if store:
        store_rates(rates, options)
    return rates


def _within_networks(
    target: Target, options: RunOptions, profiler: Profiler, seconds: float
) -> tuple[list[Work], npt.NDArray[np.float64]]:
    """Kernels within networks, and what each takes; none for providers that run a graph as one."""
    if resolve_providers(options.providers)[0] != "CPUExecutionProvider":
        return [], np.zeros(0)
    chains = list(networks(target, working_threads(options.threads)))
    return timed_kernels(chains, profiler([chain.model() for chain in chains], options, seconds))


def target_of(options: RunOptions, precision: str) -> Target:
    """The target that is calibrated for."""
    return target_for(resolve_providers(options.providers), options.opt_level, precision)


def _two_depths(case: Case, target: Target, prior: Rates) -> tuple[Chain, Chain]:
    """The case's chain, short and about three times as long."""
    one = case.chain(target, 1, prior.threads)
    unit_us = sum(prior.time_us(family, amounts) for family, amounts in one.work)
    weights = sum(float(amounts.get("weight", 0.0)) for _, amounts in one.work)
    deep = min(_DEEPEST, _LONGEST_US / unit_us, _MOST_WEIGHTS_MB / max(weights, 1e-9))
    depth = max(2, round(deep))
    return case.chain(target, max(1, depth // 3), prior.threads), case.chain(target, depth, prior.threads)


def _difference(short: Chain, deep: Chain) -> Sequence[tuple[str, Amounts]]:
    """The work that the deeper chain has more: units are equal, or change evenly."""
    return deep.work[len(short.work) :]
