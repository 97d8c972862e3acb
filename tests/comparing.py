"""Running models and comparing what comes out, apart from the product's own verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

Feed = Mapping[str, Any]


def run_model(model: onnx.ModelProto, feed: Feed, *, optimise: bool = True) -> list[Any]:
    """Run a model once in onnxruntime, on one thread of the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


@cache
def newest_versions() -> tuple[int, int]:
    """The newest opset and the newest IR version that this onnxruntime loads."""
    opset = max(version for version in range(7, onnx.defs.onnx_opset_version() + 1) if _loads(version, 8))
    return opset, max(version for version in range(3, onnx.IR_VERSION + 1) if _loads(13, version))


def _loads(opset: int, ir_version: int) -> bool:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        run_model(model, {"x": np.zeros(1, np.float32)})
    except Exception:  # onnxruntime's own, which share no base
        return False
    return True


@dataclass(frozen=True)
class _Tolerance:
    """See ``differences``."""

    rtol: float | None
    atol: float | None
    strict: bool


def differences(
    found: Sequence[Any],
    wanted: Sequence[Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
) -> str:
    """What is different, or nothing.

    Args:
        found: outputs.
        wanted: what they should be.
        rtol: relative tolerance of single values; if None, the design's tolerance holds: 1e-4 of the largest value,
            or of 1; for float16 a hundred times as much.
        atol: absolute tolerance of single values.
        strict: whether NaN and infinity equal nothing, and float16 gets no more than other types do.
    """
    if len(found) != len(wanted):
        return f"{len(found)} outputs instead of {len(wanted)}"
    tolerance = _Tolerance(rtol, atol, strict)
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        if problem := _difference(got, want, tolerance):
            return f"output {index}: {problem}"
    return ""


def _difference(got: Any, want: Any, tolerance: _Tolerance) -> str:
    if isinstance(want, list | tuple):
        return differences(got, want, **vars(tolerance)) if isinstance(got, list | tuple) else "no sequence"
    if want is None or got is None:
        return "" if want is got else "a value instead of none, or none instead of a value"
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if want.dtype.kind in "fc":
        return _distance(got, want, tolerance)
    return "" if np.array_equal(got, want) else "other values"


def _distance(got: np.ndarray, want: np.ndarray, tolerance: _Tolerance) -> str:
    finite = np.isfinite(want)
    if tolerance.strict and not finite.all():
        return "NaN or infinity, which nothing can be held against"
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return "NaN or infinity at other places"
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    left, right = got[finite].astype(kind), want[finite].astype(kind)
    error = float(np.abs(left - right).max(initial=0.0))
    if tolerance.rtol is not None:
        close = np.abs(left - right) <= (tolerance.atol or 0.0) + tolerance.rtol * np.abs(right)
        return "" if close.all() else f"differs by {error:.3g}"
    share = 1e-2 if want.dtype == np.float16 and not tolerance.strict else 1e-4
    bound = share * max(1.0, float(np.abs(right).max(initial=0.0)))
    return "" if error <= bound else f"differs by {error:.3g}, more than {bound:.3g}"
