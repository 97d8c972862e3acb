"""Signals stay with whoever has called the solver."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ortools.sat.python import cp_model

import ucpe_onnx
from ucpe_onnx.solve.interruptible import new_solver, solve

ENDLESS = """
import os, signal, threading, time
from ortools.sat.python import cp_model
from ucpe_onnx.solve.interruptible import new_solver, solve

model = cp_model.CpModel()
marks = [model.new_int_var(0, 400, "") for _ in range(15)]  # a Golomb ruler: nothing proves the best one soon
model.add_all_different(b - a for i, a in enumerate(marks) for b in marks[i + 1 :])
for a, b in zip(marks, marks[1:]):
    model.add(a < b)
model.minimize(marks[-1])
for attempt in range(2):  # the second one would kill the process, had the first search left the system's handler behind
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        solve(new_solver(60.0), model)
    except KeyboardInterrupt:
        assert time.monotonic() - start < 20
        print("interrupted", flush=True)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_an_interrupt_reaches_the_caller_and_the_process_lives_on():
    done = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\ninterrupted\n"), done.stderr


def test_finds_what_the_solver_finds():
    model = cp_model.CpModel()
    x = model.new_int_var(0, 9, "x")
    model.maximize(x)
    handler, solver = signal.getsignal(signal.SIGINT), new_solver(5.0, seed=3)
    assert solve(solver, model) == cp_model.OPTIMAL and solver.value(x) == 9
    assert solver.parameters.random_seed == 3 and signal.getsignal(signal.SIGINT) is handler


def test_errors_come_through():
    with pytest.raises((AttributeError, TypeError)):
        solve(new_solver(1.0), None)


def test_no_solver_is_made_in_another_way():
    folder = Path(ucpe_onnx.__file__).parent
    made = [file.name for file in folder.rglob("*.py") if re.search(r"\bCpSolver\(", file.read_text("utf-8"))]
    assert made == ["interruptible.py"]
