"""Accounts of what was done for accuracy, as reports hold them."""

from __future__ import annotations

from dataclasses import replace

from ucpe_onnx.budget.search import BudgetOutcome
from ucpe_onnx.budget.sensitivity import SensitivityPoint
from ucpe_onnx.compensation.sequential import LayerFit
from ucpe_onnx.compensation.stage import CompensationOutcome
from ucpe_onnx.report.report import Report
from ucpe_onnx.report.sections import Budget, Compensation, Section, Sensitivity

COMPENSATION = CompensationOutcome(
    samples=256,
    plain=0.47,
    compensated=0.012,
    taken=True,
    layers=(LayerFit("a<b", 0.01, 0.3, 0.02), LayerFit("same", None, 0.1, 0.1)),
    left={"shared": "its weight is read by others"},
)
BUDGET = BudgetOutcome(
    "latency", 0.7, 0.708, 0.699, 0.11, "OPTIMAL", 0.0, ((0.7, 0.75), (0.66, 0.708)), points_lost=1.25
)
POINTS = tuple(
    SensitivityPoint(segment, ("a<b", "c"), ratio, ratio**2 * segment, 0.05 if segment == 1 else None)
    for segment in (1, 3)
    for ratio in (0.25, 0.5)
)
ACCOUNTS = (Budget(BUDGET), Compensation(COMPENSATION), Sensitivity(POINTS))


def with_sections(report: Report, *sections: Section) -> Report:
    """A report with some sections instead of those of the same kinds."""
    kinds = tuple(type(section) for section in sections)
    return replace(report, sections=(*(s for s in report.sections if not isinstance(s, kinds)), *sections))


def without(report: Report, kind: type[Section]) -> Report:
    """A report without the section of a kind."""
    return replace(report, sections=tuple(s for s in report.sections if not isinstance(s, kind)))
