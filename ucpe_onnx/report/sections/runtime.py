"""What onnxruntime made of the input and of the emitted model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.report.html_runtime import render_runtime
from ucpe_onnx.report.runtime_words import in_words
from ucpe_onnx.report.sections.section import Section
from ucpe_onnx.runtime.optimised_pair import RuntimeComparison, compare_in_runtime

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome


@dataclass(frozen=True)
class Runtime(Section):
    """The optimised graphs of both models, side by side.

    Attributes:
        comparison: what was found in them.
    """

    comparison: RuntimeComparison

    absent: ClassVar = {"runtime": None}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Runtime | None:
        """The comparison; a run that does not measure does not ask."""
        if outcome.latency is None:
            return None
        options, shapes = run.options.run_options(), run.feeds.shapes()
        with run.stages("report"):
            return cls(compare_in_runtime(run.source.model, outcome.trial.emitted, options, shapes, run.traced))

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {"runtime": self.comparison.to_dict()}

    def lines(self, report: Report) -> Iterator[str]:
        """Where convolutions run, and what stands between them."""
        yield in_words(self.comparison)

    def html(self, report: Report) -> str:
        """Whether the emitted model runs as it was planned to."""
        return render_runtime(self.comparison)
