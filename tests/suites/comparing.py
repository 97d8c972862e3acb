"""Running models and comparing what comes out, apart from the product's own verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

Feed = Mapping[str, Any]


def run_model(model: onnx.ModelProto, feed: Feed, *, optimise: bool = True) -> list[Any]:
    """Run a model once in onnxruntime on one thread."""
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


def differences(
    found: Sequence[Any], wanted: Sequence[Any], *, rtol: float | None = None, atol: float | None = None
) -> str:
    """What is different, or nothing.

    Without tolerances the design's holds: 1e-4 of the largest value, or of 1; for float16 a hundred times as much.
    """
    if len(found) != len(wanted):
        return f"{len(found)} outputs instead of {len(wanted)}"
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        if problem := _difference(got, want, rtol, atol):
            return f"output {index}: {problem}"
    return ""


def _difference(got: Any, want: Any, rtol: float | None, atol: float | None) -> str:
    if isinstance(want, list | tuple):
        return differences(got, want, rtol=rtol, atol=atol) if isinstance(got, list | tuple) else "no sequence"
    if want is None or got is None:
        return "" if want is got else "a value instead of none, or none instead of a value"
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if want.dtype.kind in "fc":
        return _distance(got, want, rtol, atol)
    return "" if np.array_equal(got, want) else "other values"


def _distance(got: np.ndarray, want: np.ndarray, rtol: float | None, atol: float | None) -> str:
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return "NaN or infinity at other places"
    kind = np.complex128 if want.dtype.kind == "c" else np.float64
    left, right = got[finite].astype(kind), want[finite].astype(kind)
    error = float(np.abs(left - right).max(initial=0.0))
    if rtol is not None:
        close = np.abs(left - right) <= (atol or 0.0) + rtol * np.abs(right)
        return "" if close.all() else f"differs by {error:.3g}"
    bound = (1e-2 if want.dtype == np.float16 else 1e-4) * max(1.0, float(np.abs(right).max(initial=0.0)))
    return "" if error <= bound else f"differs by {error:.3g}, more than {bound:.3g}"
