"""Order the channels of a segment so that as much as possible is read without a copy."""

from __future__ import annotations

import time

from ucpe_onnx.solve.demands import Demands, compile_demands, connected, layout
from ucpe_onnx.solve.master import select
from ucpe_onnx.solve.paths import path_ordering
from ucpe_onnx.solve.problem import (
    FEASIBLE,
    OPTIMAL,
    Ordering,
    OrderingProblem,
    served_readers,
    served_weight,
    total_weight,
)


def solve_ordering(problem: OrderingProblem, *, seconds: float = 10.0, seed: int = 0) -> Ordering:
    """Choose the groups' orders to maximise the weight of the readers that find their slots side by side.

    If all readers can be served, no search takes place. Otherwise parts that can't get in each other's way are solved
    apart, each by CP-SAT over "is served" Booleans with an exact ordering oracle (see `master`). The result is never
    worse than `path_ordering`, and where there is a choice slots stay in their original order.

    Args:
        problem: The problem.
        seconds: Time limit. A valid ordering comes back in any case.
        seed: For CP-SAT. Equal seeds give equal results unless the time limit cuts in.
    """
    start = time.perf_counter()
    demands = compile_demands(problem)
    groups = layout(problem, list(demands.open))
    if groups is not None:
        return _result(problem, groups, total_weight(problem), True, start)
    published = path_ordering(problem)
    groups, bound, optimal = _solve_parts(demands, published.served, start + seconds, seed)
    result = _result(problem, groups, bound, optimal, start)
    if published.objective > result.objective:  # weights that differ by less than the master's precision
        result = _result(problem, published.groups, bound, False, start)
    return result


def _solve_parts(
    demands: Demands, known: frozenset[str], deadline: float, seed: int
) -> tuple[tuple[tuple[int, ...], ...], float, bool]:
    """Solve each independent part: the layout, the total bound, and whether all parts are optimal."""
    sizes = [len(slots) for slots in demands.problem.groups]
    # Small parts first: what they leave over of the time goes to the large ones.
    parts = sorted(connected(demands.open, sizes), key=len)
    served = []
    bound = served_weight(demands.problem, demands.trivial)
    optimal = True
    for place, part in enumerate(parts):
        members = [demands.open[index] for index in part]
        incumbent = [index for index, demand in enumerate(members) if known.issuperset(demand.names)]
        now = time.perf_counter()
        share = now + (deadline - now) / (len(parts) - place)
        selection = select(members, sizes, incumbent, share, seed)
        served += [members[index] for index in sorted(selection.chosen)]
        bound += selection.bound
        optimal = optimal and selection.optimal
    groups = layout(demands.problem, served)
    assert groups is not None, "each part was accepted by the oracle and parts don't interact"
    return groups, bound, optimal


def _result(
    problem: OrderingProblem, groups: tuple[tuple[int, ...], ...], bound: float, optimal: bool, start: float
) -> Ordering:
    served = served_readers(problem, groups)
    objective = served_weight(problem, served)
    bound = objective if optimal else min(max(bound, objective), total_weight(problem))
    status = OPTIMAL if optimal or objective >= bound else FEASIBLE
    return Ordering(groups, served, objective, bound, status, time.perf_counter() - start)
