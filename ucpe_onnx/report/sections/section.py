"""What a section of a report is: one object that knows its place in the account for machines and for people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome


class Section(ABC):
    """One theme of a report. Implementations are frozen dataclasses; a new one is its file and a line in ``SECTIONS``.

    Attributes:
        absent: what stands in the JSON account where a run has no such section.
    """

    absent: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    @abstractmethod
    def of(cls, run: Run, outcome: Outcome) -> Section | None:
        """The section of a run's report; None if there is nothing to tell."""

    @abstractmethod
    def entries(self) -> dict[str, Any]:
        """What the section adds to the JSON account: plain values by key."""

    @abstractmethod
    def lines(self, report: Report) -> Iterator[str]:
        """What the section adds to the summary in the terminal."""

    @abstractmethod
    def html(self, report: Report) -> str:
        """What the section adds to the page."""
