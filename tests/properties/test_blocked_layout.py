"""Rounded widths keep onnxruntime's convolutions in its blocked layout: read off its own optimised graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from models import build
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.selection.criteria import score_consumers
from ucpe_onnx.selection.select import Selection, select_masks

BLOCKED = "com.microsoft.nchwc"


def optimised_operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime runs, blocked ones with their domain."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    graph = onnx.load(settings.optimized_model_filepath).graph
    return Counter(f"{n.domain}:{n.op_type}" if n.domain else n.op_type for n in graph.node)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "googlenet", "squeezenet1_0"])
@pytest.mark.parametrize("ratio", [0.3, 0.55])
def test_no_convolution_leaves_the_blocked_layout(name: str, ratio: float, tmp_path: Path) -> None:
    model = build(name, image=64)
    before = optimised_operators(model, tmp_path)
    if not before[f"{BLOCKED}:Conv"]:
        pytest.skip("this onnxruntime has no blocked layout on this machine")
    traced = trace(model)
    scores = score_consumers(traced, "random", seed=1)
    masks = select_masks(traced, scores, Selection(ratio))
    for lowering in ("union", "gather"):
        plan = make_plan(traced, masks, Settings(lowering=lowering), scores)
        after = optimised_operators(emit(model, traced, plan), tmp_path)
        assert after["Conv"] + after["FusedConv"] == before["Conv"] + before["FusedConv"] == 0
        reorders = [c[f"{BLOCKED}:ReorderInput"] + c[f"{BLOCKED}:ReorderOutput"] for c in (before, after)]
        slots = [len(segment.classes) for segment in traced.segments]
        narrow = sum(len(s.order) < min(Target().minimum, slots[s.id]) for s in plan.segments)
        assert lowering == "gather" or reorders[1] <= reorders[0] + narrow, "narrow ones are read in the plain layout"
