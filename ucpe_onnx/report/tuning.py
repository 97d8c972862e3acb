"""What the choice of lowerings by timing has tried."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TuningStep:
    """One alternative for one segment.

    Attributes:
        segment: number of the segment.
        lowering: what the alternative was made by.
        predicted_us: how much longer the model was predicted to take with it, in microseconds.
        measured_us: how much longer it took.
        low: lower end of that difference's 95 % interval.
        high: upper end.
        taken: whether it was chosen.
    """

    segment: int
    lowering: str
    predicted_us: float
    measured_us: float
    low: float
    high: float
    taken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
