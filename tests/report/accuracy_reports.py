"""Accounts of what was done for accuracy, as reports hold them."""

from __future__ import annotations

from ucpe_onnx.compensation.sequential import LayerFit
from ucpe_onnx.compensation.stage import Repair
from ucpe_onnx.report.budget import BudgetReport
from ucpe_onnx.report.sensitivity import SensitivityPoint

REPAIR = Repair(
    samples=256,
    plain=0.47,
    repaired=0.012,
    taken=True,
    layers=(LayerFit("a<b", 0.01, 0.3, 0.02), LayerFit("same", None, 0.1, 0.1)),
    left={"shared": "its weight is read by others"},
)
BUDGET = BudgetReport(
    "latency", 0.7, 0.708, 0.699, 0.11, "OPTIMAL", 0.0, ((0.7, 0.75), (0.66, 0.708)), points_lost=1.25
)
POINTS = tuple(
    SensitivityPoint(segment, ("a<b", "c"), ratio, ratio**2 * segment, 0.05 if segment == 1 else None)
    for segment in (1, 3)
    for ratio in (0.25, 0.5)
)
