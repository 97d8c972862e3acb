"""A covariance from few samples, made safe: what looks like dependence may be chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def shrunk(covariance: Array, rows: float) -> Array:
    """Draw the correlations of a sample covariance towards zero, the more the fewer rows there were.

    With C the correlations of p features and n rows, they are multiplied by 1 - rho,

        rho = ((1 - 2/p) tr(C^2) + p^2) / ((n + 1 - 2/p) (tr(C^2) - p)), at most 1.

    Where features outnumber rows, any of them is a linear combination of others *on these rows*: least squares with the
    plain covariance would take it to be free to drop.

    Source: Chen, Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE Transactions on
    Signal Processing 58 (10), 2010, equation (23), for correlations instead of covariances, so that variances stay.

    Args:
        covariance: shape (..., p, p).
        rows: n, how many independent rows it is the covariance of.

    Returns:
        The covariance with smaller entries off the diagonal, shape (..., p, p).
    """
    features = covariance.shape[-1]
    places = np.arange(features)
    variances = np.maximum(covariance[..., places, places], 0.0)
    scale = np.sqrt(variances)
    scale = scale[..., :, None] * scale[..., None, :]
    correlations = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    squares = np.square(correlations).sum(axis=(-2, -1))
    size = np.count_nonzero(variances, axis=-1)  # constant features have no correlations
    size = np.maximum(size, 1)
    apart = (rows + 1 - 2 / size) * (squares - size)
    strength = np.divide((1 - 2 / size) * squares + size**2, apart, out=np.ones_like(squares), where=apart > 0)
    strength = np.clip(strength, 0.0, 1.0)[..., None, None]
    found = (1 - strength) * covariance
    found[..., places, places] = covariance[..., places, places]
    return np.asarray(found)
