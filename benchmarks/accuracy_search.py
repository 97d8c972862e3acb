"""The ratio that brings a falling quantity (share of MACs, of latency) to a target, in few tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HIGHEST = 0.95
"""Ratios are searched from 0 up to this."""

_FINEST = 2e-3
"""Ratios that differ by less prune the same channels, but for very wide layers."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        ratio: the ratio whose value is nearest to the target.
        value: the value there.
        met: whether it is within the tolerance.
        tries: how often something new was measured.
    """

    ratio: float
    value: float
    met: bool
    tries: int


def search(
    measured: Callable[[float], float], target: float, known: dict[float, float], *, tolerance: float, tries: int
) -> Found:
    """Search between the nearest ratios whose values lie on either side of the target.

    Args:
        measured: the value at a ratio, about falling.
        target: the value wanted.
        known: values by ratio, one at 0 at least; what is measured is added, for the next search.
        tolerance: how far from the target the value may be.
        tries: how many ratios to measure at most.
    """
    for done in range(tries + 1):
        best = min(known, key=lambda ratio: abs(known[ratio] - target))
        met = abs(known[best] - target) <= tolerance
        ratio = None if met or done == tries else _next(target, known)
        if ratio is None:
            return Found(best, known[best], met, done)
        known[ratio] = measured(ratio)
    raise AssertionError("unreachable: the last round returns")


def _next(target: float, known: dict[float, float]) -> float | None:
    """A ratio that the target may be at; None if steps are too coarse or the highest ratio is not enough."""
    above = max((ratio for ratio, value in known.items() if value > target), default=0.0)
    below = min((ratio for ratio, value in known.items() if value <= target and ratio > above), default=None)
    if below is None:
        # Before anything is known, a share of the channels is worth about that share of the work.
        slope = max((known[0.0] - known[above]) / above, 0.2) if above else 1.0
        ratio = min(HIGHEST, above + max(0.03, (known[above] - target) / slope))
        return None if ratio in known else round(ratio, 4)
    if below - above < _FINEST:
        return None
    share = (known[above] - target) / (known[above] - known[below])
    ratio = round(above + min(max(share, 0.15), 0.85) * (below - above), 4)
    return None if ratio in known else ratio
