"""Layouts that were timed: what had been predicted, and what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ucpe_onnx.runtime.latency import LatencyReport


@dataclass(frozen=True)
class Rival:
    """Another layout for the same masks that was timed beside the output.

    Attributes:
        name: the lowering that it was made with.
        predicted_us: how much longer it was predicted to take than the output, in microseconds.
        measured_us: how much longer it took.
    """

    name: str
    predicted_us: float
    measured_us: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def rivals(latency: LatencyReport, predicted: dict[str, float], winner: str) -> tuple[Rival, ...]:
    """Compare all candidates with the winner.

    Args:
        latency: the measurement.
        predicted: predicted time of each candidate but the baseline; only differences mean anything.
        winner: name of the one that became the output.
    """
    base = latency[latency.baseline].median_ms * 1e3
    return tuple(
        Rival(
            name,
            round(us - predicted[winner], 1),
            round(base * (latency[name].ratio - latency[winner].ratio), 1),
        )
        for name, us in predicted.items()
        if name != winner
    )


def in_words(layout: str, found: tuple[Rival, ...]) -> str:
    """One line for the terminal."""
    told = [
        f"{_signed(rival.measured_us)} with {rival.name} (predicted {_signed(rival.predicted_us)})" for rival in found
    ]
    return f"layout: {layout}" + (f"; {', '.join(told)}" if told else "")


def _signed(us: float) -> str:
    return f"{us / 1e3:+.2f} ms" if abs(us) >= 1e3 else f"{us:+.0f} us"
