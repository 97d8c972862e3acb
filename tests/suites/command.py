"""One run of the command line on the bytes of a file, and what must hold of it whatever the bytes are."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path

import onnx

from tests.comparing import differences, run_model
from ucpe_onnx import Plan, load_model, masked_model
from ucpe_onnx.cli import main
from ucpe_onnx.model.naming import node_names
from ucpe_onnx.runtime.random_feeds import find_feeds

_BYTES = 12 * 2**30
"""Address space for one run: a size that is damaged must not take the machine down."""


def run_limited(content: bytes) -> str:
    """``run_on`` with a limit on memory, which stays: for a process of its own."""
    _limit_memory()
    return run_on(content)


def run_on(content: bytes) -> str:
    """Prune a file; "refused: MESSAGE", "written", or "defect: WHAT"."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        folder = Path(scratch)
        (folder / "in.onnx").write_bytes(content)
        flags = ["--bench-seconds", "0", "--ratio", "0.4", "--mode", "unconstrained", "--save-plan", "plan.json", "-q"]
        lowering = ("auto", "union", "gather", "slice")[len(content) % 4]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["in.onnx", "out.onnx", "--lowering", lowering, *flags])
        lines = err.getvalue().splitlines()
        left = sorted(set(os.listdir(folder)) - {"in.onnx"})
        if out.getvalue():
            return "defect: something on standard output"
        if code == 0:
            return f"defect: exit code 0 with {lines or left}" if lines or len(left) != 2 else _written(folder)
        if left or len(lines) != 1 or not lines[0].startswith("error: ") or code not in (1, 2):
            return f"defect: exit code {code}, files {left}, {lines}"
        unlike = ("internal error" in lines[0], "does not compute" in lines[0], "emitted model" in lines[0])
        return f"{'defect' if any(unlike) else 'refused'}: {lines[0]}"


def _written(folder: Path) -> str:
    try:
        return _compared(folder)
    except Exception as error:  # onnx, onnxruntime or we fail on what the command line has accepted
        return f"defect: written, but {type(error).__name__}: {error}"


def _compared(folder: Path) -> str:
    """Whether what was written equals the masked model, on other inputs than the run itself has seen."""
    model, emitted = load_model(folder / "in.onnx"), onnx.load(folder / "out.onnx")
    for node, name in zip(model.graph.node, node_names(model.graph.node), strict=True):
        node.name = name  # onnxruntime loads no model with a name twice
    plan = Plan.load(folder / "plan.json")
    reference = masked_model(plan.weighted(model), plan.masks())
    feed = find_feeds(model, seed=7)
    wanted = run_model(reference, feed)
    problem = differences(run_model(emitted, feed), wanted)
    if problem and not differences(run_model(reference, feed, optimise=False), wanted):
        return f"defect: written, but {problem}"
    return "written"


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError):  # no such module on Windows; a limit may be lower already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
