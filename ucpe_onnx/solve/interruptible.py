"""CP-SAT as a guest in somebody else's process: Ctrl-C stays with whoever has called.

By default CP-SAT takes SIGINT over while it searches, and leaves the system's own handler behind: the next Ctrl-C kills
the process, a Jupyter kernel with all that it holds. And a search in the main thread keeps Python's own handlers from
being called until it is over. So the signal is left alone, and the search runs in a thread of its own, which a signal
stops.

Source: https://github.com/google/or-tools/blob/stable/ortools/sat/sat_parameters.proto, ``catch_sigint_signal``.
"""

from __future__ import annotations

import threading

from ortools.sat.python import cp_model

_LOOK = 0.2
"""Seconds after which a waiting thread looks again: on some systems a lock without a limit can't be interrupted."""


def new_solver(seconds: float, *, seed: int = 0) -> cp_model.CpSolver:
    """A solver on one thread, with a time limit, that leaves signals alone.

    Args:
        seconds: when to stop.
        seed: seed of the search.
    """
    solver = cp_model.CpSolver()
    solver.parameters.catch_sigint_signal = False
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = seconds
    return solver


def solve(solver: cp_model.CpSolver, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
    """Search; what a signal handler raises meanwhile, such as KeyboardInterrupt, ends the search and goes on up.

    Returns:
        The status that the solver reports.
    """
    found: list[cp_model.CpSolverStatus] = []
    failed: list[BaseException] = []

    def search() -> None:
        try:
            found.append(solver.solve(model))
        except BaseException as error:  # of the other thread, to be raised in this one
            failed.append(error)

    thread = threading.Thread(target=search, name="CP-SAT", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_LOOK)
    except BaseException:
        while thread.is_alive():  # a search that has only just begun may not hear it the first time
            solver.stop_search()
            thread.join(_LOOK)
        raise
    if failed:
        raise failed[0]
    return found[0]
