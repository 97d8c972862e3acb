"""Ridge regression of one layer, with the strength of the ridge chosen on rows that were held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.moments import Moments

Array = npt.NDArray[Any]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths tried, relative to the mean energy of a feature."""

FALLBACK = 1e-2
"""Strength where nothing could be held out."""

_JITTER = 1e-9

_ROUNDING = 1e-7
"""Errors below this share of the targets' energy are those of single precision: there is nothing to gain."""


@dataclass(frozen=True)
class Refit:
    """New weights of one map.

    Attributes:
        matrices: shape (groups, targets, features + 1), the bias last.
        ridge: the strength that was chosen; None if the weights stay as they were.
        before: error of the old weights, over the targets' variance; on the rows held out, if there are any.
        after: of the new ones, likewise.
    """

    matrices: Array
    ridge: float | None
    before: float
    after: float


def refit(fitted: Moments, held_out: Moments, start: Array, *, bias: bool) -> Refit:
    """Minimise ``sum |t - W f|^2 + ridge * |W - W0|^2`` over W; the bias is not drawn to anything.

    With G the sum of f f' and B the sum of t f', ``W = W0 + (B - W0 G) (G + ridge)^-1``. Channels that are dropped have
    no features; where the kept ones explain them, this folds them into the kept weights (Gram matrix and ridge as in
    Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, equation (2), for whole channels at once).

    Args:
        fitted: moments to fit to.
        held_out: moments to choose the strength by; with no rows, ``FALLBACK`` is taken. The weights that are returned
            are fitted to both.
        start: W0, shape (groups, targets, features + 1).
        bias: whether the last column may change.

    Returns:
        The new weights, or the old ones where no strength is better on the rows held out, or where sums are not finite.
    """
    judged = held_out if held_out.rows else fitted
    energy = float(judged.energy.sum()) / max(judged.rows, 1)
    variance = max(judged.variance, 1e-12 * energy, 1e-30)
    error = judged.error(start)
    before = error / variance
    if not error > _ROUNDING * energy or not np.isfinite(before):
        return Refit(start, None, before, before)
    tried = RIDGES if held_out.rows else (FALLBACK,)
    found = [(strength, _solved(fitted, start, strength, bias)) for strength in tried]
    errors = [judged.error(matrices) / variance for _, matrices in found]
    best = int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))
    if not errors[best] < before:
        return Refit(start, None, before, before)
    strength, matrices = found[best]
    if held_out.rows:
        both = _solved(fitted.plus(held_out), start, strength, bias)
        matrices = both if judged.error(both) / variance < before else matrices
    return Refit(matrices, strength, before, errors[best])


def _solved(moments: Moments, start: Array, strength: float, bias: bool) -> Array:
    """NaN where there is no solution."""
    size = moments.gram.shape[-1] - (0 if bias else 1)
    features = np.arange(moments.gram.shape[-1] - 1)
    scale = moments.gram[:, features, features].mean(axis=1)
    penalty = np.repeat((strength + _JITTER) * scale[:, None] + 1e-30, size, axis=1)
    if bias:
        penalty[:, -1] = _JITTER * moments.rows
    residual = (moments.cross - np.matmul(start, moments.gram))[:, :, :size]
    gram = moments.gram[:, :size, :size].copy()
    gram[:, np.arange(size), np.arange(size)] += penalty
    matrices = np.array(start)
    try:
        matrices[:, :, :size] += np.linalg.solve(gram, residual.swapaxes(1, 2)).swapaxes(1, 2)
    except np.linalg.LinAlgError:
        matrices[:] = np.nan
    return matrices
