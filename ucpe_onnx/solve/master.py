"""Which readers to serve: a small CP-SAT model, with the ordering itself left to an exact oracle.

Logic-based Benders decomposition (Hooker and Ottosson, *Math. Programming* 96, 2003): the master problem has one
Boolean per demand and the conflicts known so far. If the oracle accepts the master's choice it is optimal; if not, the
choice holds minimal conflicts, which join the model. There are no position variables, so neither the number of slots
nor that of their classes (up to 2^readers) matters to the search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from ucpe_onnx.solve.conflicts import Conflict, Oracle, small_conflicts
from ucpe_onnx.solve.demands import Demand
from ucpe_onnx.solve.interruptible import new_solver, solve

_PRECISION = 40  # bits of the integers that stand for the weights


@dataclass(frozen=True)
class MetDemands:
    """Demands that can be met together, by index.

    Attributes:
        chosen: The demands.
        bound: No selection weighs more.
        optimal: Whether this one is proven to be the heaviest.
    """

    chosen: frozenset[int]
    bound: float
    optimal: bool


def select(
    demands: Sequence[Demand], sizes: Sequence[int], known: Collection[int], deadline: float, seed: int
) -> MetDemands:
    """Choose the heaviest set of demands that can be met together.

    Args:
        demands: To choose from.
        sizes: The size of each group.
        known: A selection known to be feasible: the result is never worse.
        deadline: When to stop, on the clock of `time.perf_counter`.
        seed: For CP-SAT.
    """
    everything = range(len(demands))
    total = math.fsum(demand.weight for demand in demands)
    oracle = Oracle(demands, sizes)
    if oracle.feasible(everything):
        return MetDemands(frozenset(everything), total, True)
    weights, scale = integer_weights([demand.weight for demand in demands])

    def weight(chosen: Collection[int]) -> int:
        return sum(weights[index] for index in chosen)

    def late() -> bool:
        return time.perf_counter() > deadline

    best = max((_extended(oracle, start, weights, late) for start in (known, ())), key=weight)
    bound = weight(everything)
    conflicts = small_conflicts(oracle, late)
    while bound > weight(best) and not late():
        chosen, master_bound = _solve_master(weights, conflicts, best, deadline, seed)
        bound = min(bound, master_bound)
        if chosen is None:
            break
        while not late() and (conflict := oracle.minimal_conflict(chosen)):
            conflicts.append(Conflict(conflict, len(conflict) - 1))
            chosen.remove(min(conflict, key=lambda index: (weights[index], index)))  # and find another one
        if not late():
            best = max(best, _extended(oracle, chosen, weights, late), key=weight)
    optimal = bound <= weight(best)
    return MetDemands(frozenset(best), min(total, bound / scale), optimal)


def integer_weights(weights: Sequence[float]) -> tuple[list[int], float]:
    """Weights as integers, rounded up so that bounds stay bounds, and the power of two that they were multiplied by."""
    total = math.fsum(weights)
    scale = math.ldexp(1.0, min(_PRECISION - math.frexp(total)[1], 1000)) if total else 1.0
    scaled = [math.ceil(weight * scale) for weight in weights]
    divisor = math.gcd(*scaled) or 1
    return [value // divisor for value in scaled], scale / divisor


def _extended(oracle: Oracle, start: Collection[int], weights: Sequence[int], late: Callable[[], bool]) -> list[int]:
    """A feasible selection made maximal: what still fits is added, heaviest first."""
    chosen = list(start)
    for index in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        if late():
            break
        if index not in chosen and oracle.feasible([*chosen, index]):
            chosen.append(index)
    return sorted(chosen)


def _solve_master(
    weights: Sequence[int], conflicts: Sequence[Conflict], hint: Collection[int], deadline: float, seed: int
) -> tuple[list[int] | None, int]:
    """The heaviest choice without a known conflict (None if time ran out) and an upper bound."""
    # Data
    demands = range(len(weights))
    model = cp_model.CpModel()

    # Variables
    served = [model.new_bool_var(f"served_{index}") for index in demands]

    # Constraints
    for conflict in conflicts:
        members = [served[index] for index in conflict.members]
        if conflict.limit == 1:
            model.add_at_most_one(members)
        elif conflict.limit == len(members) - 1:
            model.add_bool_or([member.negated() for member in members])
        else:
            model.add(cp_model.LinearExpr.sum(members) <= conflict.limit)

    # Objective
    model.maximize(cp_model.LinearExpr.weighted_sum(served, list(weights)))

    # Solve
    for index in demands:
        model.add_hint(served[index], index in hint)
    solver = new_solver(max(0.01, deadline - time.perf_counter()), seed=seed)
    status = solve(solver, model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, sum(weights)
    bound = math.floor(solver.best_objective_bound + 0.5)
    if status == cp_model.FEASIBLE:
        return None, bound
    return [index for index in demands if solver.boolean_value(served[index])], bound
