"""The sections of a report, one per file, and the two literals that say in which order they stand.

The first stand beside the segments in the page, and last in the summary; the others tell what was done to get there.
Warnings are on top of the page, and at the end of the summary.
"""

from ucpe_onnx.report.sections.budget import Budget
from ucpe_onnx.report.sections.compensation import Compensation
from ucpe_onnx.report.sections.layouts import Layouts
from ucpe_onnx.report.sections.runtime import Runtime
from ucpe_onnx.report.sections.section import Section
from ucpe_onnx.report.sections.sensitivity import Sensitivity
from ucpe_onnx.report.sections.unverified import Unverified
from ucpe_onnx.report.sections.warnings import Warnings

ABOUT_LAYOUT: tuple[type[Section], ...] = (Layouts, Runtime)
ABOUT_MASKS: tuple[type[Section], ...] = (Unverified, Budget, Compensation, Sensitivity)

SECTIONS: tuple[type[Section], ...] = (*ABOUT_LAYOUT, *ABOUT_MASKS, Warnings)

__all__ = [
    "ABOUT_LAYOUT",
    "ABOUT_MASKS",
    "SECTIONS",
    "Budget",
    "Compensation",
    "Layouts",
    "Runtime",
    "Section",
    "Sensitivity",
    "Unverified",
    "Warnings",
]
