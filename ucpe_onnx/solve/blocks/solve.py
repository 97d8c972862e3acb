"""Lay out a segment's channels in blocks so that it is predicted to take the least time."""

from __future__ import annotations

import time
from dataclasses import replace

from ucpe_onnx.solve.blocks.bound import lower_bound
from ucpe_onnx.solve.blocks.evaluate import evaluate
from ucpe_onnx.solve.blocks.layout import BlockPrices, Layout
from ucpe_onnx.solve.blocks.master import SolverLimits, all_types, model_size, near_types, solve_master
from ucpe_onnx.solve.blocks.problem import FEASIBLE, OPTIMAL, BlockProblem, BlockSolution
from ucpe_onnx.solve.blocks.search import fixed_layouts, warm_start

_SHARE = 0.3  # of the time, for the search before CP-SAT
_LARGE = 12_000  # a model with all types of blocks that is larger than this finds nothing in time
_PER_EFFORT = 20_000  # the same for each 1.0 of its own measure of time
_LEAST = 0.02  # of its own measure of time; with less CP-SAT does not find what some types of blocks improve
_PROVEN = 1e-9  # a smaller relative gap is none


def solve_blocks(
    problem: BlockProblem, *, seconds: float = 10.0, effort: float = 1.0, tolerance: float = 0.0, seed: int = 0
) -> BlockSolution:
    """Choose blocks, what lies in them, and how every reader gets its channels.

    The result is never worse than one block for each group with any kinds for the readers. If there is no time at all,
    it may be worse than with some of them duplicated.

    Args:
        problem: The problem.
        seconds: Time limit. A valid layout comes back in any case.
        effort: How long CP-SAT may take by its own deterministic measure, one or two seconds for each 1.0. The less,
            the smaller are the problems that it is given at all; 0 stands for none.
        tolerance: Stop once the relative gap is proven to be no larger; the status says whether it is closed.
        seed: For CP-SAT. Equal seeds give equal results unless the time limit cuts in.
    """
    start = time.perf_counter()
    prices = BlockPrices(problem)
    known = fixed_layouts(prices, lambda: time.perf_counter() >= start + seconds)
    best = min(known, key=lambda layout: layout.us)
    bound = lower_bound(prices) if time.perf_counter() < start + seconds else 0.0
    left = start + seconds - time.perf_counter()
    if left > 0 and not _proven(best, bound, tolerance):
        best = warm_start(prices, known, lambda: time.perf_counter() >= start + _SHARE * seconds)
    left = start + seconds - time.perf_counter()
    if left > 0 and not _proven(best, bound, tolerance):
        best, bound = _refined(prices, best, bound, SolverLimits(left, effort, tolerance, seed))
    return _result(problem, best, bound, start)


def _refined(prices: BlockPrices, best: Layout, bound: float, limits: SolverLimits) -> tuple[Layout, float]:
    """A better layout and a better bound, by CP-SAT with all types of blocks, or with some if they are too many."""
    exact = model_size(prices) <= min(_LARGE, _PER_EFFORT * limits.deterministic)
    if not exact:
        limits = replace(limits, deterministic=limits.deterministic / 4)
        if limits.deterministic < _LEAST:
            return best, bound
    types = all_types(prices) if exact else near_types(prices, best)
    if model_size(prices, types) > _LARGE:
        return best, bound
    found = solve_master(prices, types, best, limits)
    if found.layout is not None:
        best = min(best, found.layout, key=lambda layout: layout.us)
    if not exact:
        return best, bound
    return best, best.us if found.proven else max(bound, found.bound)


def _proven(layout: Layout, bound: float, tolerance: float = 0.0) -> bool:
    return layout.us * (1 - max(tolerance, _PROVEN)) <= bound


def _result(problem: BlockProblem, layout: Layout, bound: float, start: float) -> BlockSolution:
    blocks, choices = layout.blocks(), layout.choices()
    solution = BlockSolution(blocks, choices, layout.us, bound, FEASIBLE, 0.0)
    objective = evaluate(problem, solution)
    assert abs(objective - layout.us) <= 1e-6 * (1 + objective), "the search and the definition disagree on a price"
    optimal = _proven(layout, bound)
    status = OPTIMAL if optimal else FEASIBLE
    bound = objective if optimal else min(bound, objective)
    return BlockSolution(blocks, choices, objective, bound, status, time.perf_counter() - start)
