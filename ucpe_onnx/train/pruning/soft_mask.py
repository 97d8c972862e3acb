"""The mask of PDP as a function of magnitudes, and the hard mask that it turns into.

Cho, Adya and Naik, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023, arXiv 2305.11203,
section 3. A magnitude is ``|w|`` of a weight or the root of the mean square of a group of weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LEAST_MASK = 1e-12
"""Smaller masks are 0: weights times them, and their gradients, would be denormal, which slows processors down."""

LEAST_TEMPERATURE = 1e-12
"""Temperatures relative to a threshold don't get smaller: that of a layer of zeros would be 0."""


def threshold(magnitudes: Tensor, dropped: int) -> Tensor:
    """Threshold t: midway between the smallest magnitude that stays and the largest that goes (PDP, section 3).

    Args:
        magnitudes: not negative, any shape.
        dropped: how many of them are to go.

    Returns:
        A scalar. It is a constant for the gradient. If nothing is to stay, the largest magnitude times the root of 2.

    Raises:
        ValueError: ``dropped`` is not between 1 and the number of magnitudes. (Without anything to go there is no
            threshold: see `squared_threshold`.)
    """
    if not 1 <= dropped <= magnitudes.numel():
        raise ValueError(f"of {magnitudes.numel()} magnitudes {dropped} can't go")
    values = magnitudes.detach().flatten()
    if dropped == values.numel():
        return values.max() * math.sqrt(2)
    below, above = _smallest(values, dropped - 1, dropped)
    return (below + above) / 2


def squared_threshold(magnitudes: Tensor, dropped: int) -> Tensor:
    """The square of the threshold, t²; minus infinity, which makes every mask 1, if nothing is to go."""
    return threshold(magnitudes, dropped).square() if dropped else magnitudes.new_full((), -math.inf)


def temperature(squared: Tensor, tau: float, mode: str) -> Tensor | float:
    """The temperature of the mask, in units of a squared weight.

    Args:
        squared: the squared threshold, any shape.
        tau: the temperature itself, or its ratio to the squared threshold.
        mode: "absolute" (the paper's) or "relative". A relative one does not depend on the scale of a layer's weights.

    Returns:
        What to divide by: a number, or a tensor of the threshold's shape.
    """
    return tau if mode == "absolute" else (tau * squared).clamp(min=LEAST_TEMPERATURE)


def soft_mask(squares: Tensor, squared: Tensor | float, tau: Tensor | float) -> Tensor:
    """The differentiable mask, m = sigmoid((w² - t²) / tau).

    It is the second component of softmax([t², w²] / tau) (PDP, section 3): 1/2 at the threshold, more above, less
    below. Written with squares there is no root whose slope at zero is infinite.

    Args:
        squares: w² of weights, or the mean of w² of groups, any shape.
        squared: t², in a shape that broadcasts; minus infinity for a mask of ones.
        tau: temperature, positive, in a shape that broadcasts.

    Returns:
        Numbers from 0 to 1, of the shape of ``squares``.
    """
    mask = torch.sigmoid((squares - squared) / tau)
    return mask.masked_fill(mask.detach() < LEAST_MASK, 0.0)


def keep_largest(magnitudes: Tensor, dropped: int) -> Tensor:
    """The hard mask: False for exactly ``dropped`` of the smallest magnitudes.

    It goes by rank, not by comparison with the threshold: of equal magnitudes the first ones go, so that the number is
    right whatever ties there are.

    Args:
        magnitudes: any shape.
        dropped: how many of them go.

    Returns:
        Booleans of that shape, True = keep.
    """
    values = magnitudes.detach().flatten()
    if not dropped:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    (last,) = _smallest(values, dropped - 1)
    gone = values < last
    ties = (values == last).nonzero().flatten()
    gone[ties[: dropped - int(gone.sum())]] = True
    return ~gone.view(magnitudes.shape)


def undecidedness(mask: Tensor) -> float:
    """How far a mask is from hard: the mean of 4 m (1 - m), from 0 (all 0 or 1) to 1 (all 1/2)."""
    return float((4 * mask * (1 - mask)).mean()) if mask.numel() else 0.0


def _smallest(values: Tensor, *places: int) -> tuple[Tensor, ...]:
    """The values at some places of the ascending order, without sorting it all where that is slow."""
    if values.device.type != "cpu":
        ordered = values.sort().values
        return tuple(ordered[place] for place in places)
    ordered = torch.from_numpy(np.partition(values.numpy(), places))
    return tuple(ordered[place] for place in places)
