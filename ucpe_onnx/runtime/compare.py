"""How much one output of a model differs from the output that it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from ucpe_onnx.samples.inputs import Array

RTOL = ATOL = 1e-4
HALF_RTOL = HALF_ATOL = 1e-2
"""Defaults for float16 outputs, whose own rounding is 1e-3."""


@dataclass(frozen=True)
class Difference:
    """How one output differs on one feed.

    Attributes:
        error: largest absolute difference; infinite if the outputs can't be compared.
        bound: largest difference that passes.
        problem: why the outputs can't be compared, or nothing.
    """

    error: float
    bound: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound."""
        return not self.problem and self.error <= self.bound

    @property
    def severity(self) -> float:
        """Error as a multiple of the bound; the order of "worse"."""
        if self.problem:
            return inf
        return self.error / self.bound if self.bound else (inf if self.error else 0.0)


def compare(found: Any, expected: Any, *, rtol: float | None = None, atol: float | None = None) -> Difference:
    """Compare one output of two models; sequences and maps element by element.

    A float array passes if max |found - expected| <= max(atol, rtol * max |expected|), and NaN and infinities sit at
    equal places. Anything else must be equal. Types and shapes must be equal.

    Args:
        found: the output in question.
        expected: the output that is right by definition.
        rtol: relative tolerance; 1e-4 if None, 1e-2 for float16.
        atol: absolute tolerance; likewise.

    Returns:
        The difference, of a sequence or map the worst of its elements'.
    """
    return max(_differences(found, expected, rtol, atol), key=lambda difference: difference.severity)


def _differences(found: Any, expected: Any, rtol: float | None, atol: float | None) -> Iterator[Difference]:
    if not isinstance(expected, list | dict):
        yield _difference(found, expected, rtol, atol)
        return
    yield Difference(0.0, 0.0)  # of an empty sequence
    if type(found) is not type(expected) or len(found) != len(expected):
        yield _incomparable(f"is a {_described(found)} instead of a {_described(expected)}")
    elif isinstance(expected, list):
        for a, b in zip(found, expected, strict=True):
            yield from _differences(a, b, rtol, atol)
    elif set(found) != set(expected):
        yield _incomparable("has other map keys")
    else:
        for key, value in expected.items():
            yield from _differences(found[key], value, rtol, atol)


def _described(output: Any) -> str:
    return f"{type(output).__name__} of {len(output)}" if hasattr(output, "__len__") else type(output).__name__


def _difference(found: Any, expected: Any, rtol: float | None, atol: float | None) -> Difference:
    a, b = np.asarray(found), np.asarray(expected)
    if a.dtype != b.dtype or a.shape != b.shape:
        return _incomparable(f"is {a.dtype} of shape {a.shape} instead of {b.dtype} of shape {b.shape}")
    if b.dtype.kind == "f":
        return _float_difference(a, b, rtol, atol)
    different = int(np.count_nonzero(a != b))
    return (
        _incomparable(f"has {different} of {b.size} values that are not equal") if different else Difference(0.0, 0.0)
    )


def _float_difference(a: Array, b: Array, rtol: float | None, atol: float | None) -> Difference:
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return _incomparable("has NaN or infinities at other places than the reference")
    half = b.dtype == np.float16
    rtol = (HALF_RTOL if half else RTOL) if rtol is None else rtol
    atol = (HALF_ATOL if half else ATOL) if atol is None else atol
    right = b[finite].astype(np.float64)
    error = np.max(np.abs(a[finite].astype(np.float64) - right), initial=0.0)
    return Difference(float(error), max(atol, rtol * float(np.max(np.abs(right), initial=0.0))))


def _incomparable(problem: str) -> Difference:
    return Difference(inf, 0.0, problem)
