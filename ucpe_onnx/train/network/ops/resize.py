"""Resizing: along each axis an output is a weighted sum of some of the input's positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from ucpe_onnx.train.network.call import Call, Operator, integers


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        before: its size.
        after: its new size.
        scale: how much larger it becomes, which need not be the quotient of the sizes.
    """

    before: int
    after: int
    scale: float


def _half_pixel(axis: Axis, x: Tensor) -> Tensor:
    return (x + 0.5) / axis.scale - 0.5


def _symmetric(axis: Axis, x: Tensor) -> Tensor:
    adjustment = axis.after / (axis.scale * axis.before)
    return _half_pixel(axis, x) + axis.before / 2 * (1 - adjustment)


def _pytorch(axis: Axis, x: Tensor) -> Tensor:
    return _half_pixel(axis, x) if axis.after > 1 else torch.zeros_like(x)


def _corners(axis: Axis, x: Tensor) -> Tensor:
    return x * (axis.before - 1) / (axis.after - 1) if axis.after > 1 else torch.zeros_like(x)


_COORDINATES: dict[str, Callable[[Axis, Tensor], Tensor]] = {
    "align_corners": _corners,
    "asymmetric": lambda axis, x: x / axis.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": _pytorch,
    "tf_half_pixel_for_nn": lambda axis, x: (x + 0.5) / axis.scale,
}
"""Where the positions of the output lie in the input, in the single precision that runtimes compute it in."""

_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
}


def resize(
    call: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Resize to sizes or by scales; before opset 11 there are scales alone, and no choice of coordinates."""
    if call.opset < 11:
        return _resampled(call, x, _axes(call, x, roi, None), "asymmetric", "simple")
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if call.flag("antialias") or policy != "stretch":
        raise call.refused("antialias or keep_aspect_ratio_policy")
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES:
        raise call.refused(f"coordinates as in {coordinates}")
    nearest = call.text("nearest_mode", "round_prefer_floor")
    return _resampled(call, x, _axes(call, x, scales, sizes), coordinates, nearest)


def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize in its oldest form, whose scales are an attribute before opset 9."""
    if scales is None:
        scales = torch.tensor([float(scale) for scale in call.node.attributes["scales"]])
    return _resampled(call, x, _axes(call, x, scales, None), "asymmetric", "simple")


def _axes(call: Call, x: Tensor, scales: Tensor | None, sizes: Tensor | None) -> dict[int, Axis]:
    """The axes that change."""
    places = [axis % x.ndim for axis in call.integers("axes") or range(x.ndim)]
    changed = {}
    if sizes is not None and sizes.numel():
        for place, after in zip(places, integers(sizes), strict=True):
            before = x.shape[place]
            changed[place] = Axis(before, after, float(np.float32(after) / np.float32(before)))
    elif scales is not None:
        for place, scale in zip(places, scales.tolist(), strict=True):
            before = x.shape[place]
            changed[place] = Axis(before, math.floor(np.float32(before) * np.float32(scale)), float(scale))
    return {place: axis for place, axis in changed.items() if axis.scale != 1 or axis.after != axis.before}


def _resampled(call: Call, x: Tensor, axes: dict[int, Axis], coordinates: str, nearest: str) -> Tensor:
    for place, axis in axes.items():
        positions = _COORDINATES[coordinates](axis, torch.arange(axis.after, dtype=torch.float32))
        x = _weighted_sum(x, place, _taps(call, axis, positions, nearest))
    return x


def _weighted_sum(x: Tensor, place: int, taps: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    parts = []
    for positions, weights in taps:
        index = positions.to(torch.int64).clamp(0, x.shape[place] - 1)
        part = x.index_select(place, index.to(x.device))
        if weights is not None:
            part = part * weights.to(x).reshape([-1 if axis == place else 1 for axis in range(x.ndim)])
        parts.append(part)
    return reduce(torch.add, parts)


def _taps(call: Call, axis: Axis, positions: Tensor, nearest: str) -> list[tuple[Tensor, Tensor | None]]:
    """What to sum for every output: positions of the input, and their weights (None for one)."""
    mode = call.text("mode", "nearest")
    if mode == "nearest":
        if nearest == "simple":
            return [(torch.ceil(positions) if axis.scale < 1 else torch.floor(positions), None)]
        return [(_NEAREST[nearest](positions), None)]
    if mode == "linear":
        positions = positions.clamp(0, axis.before - 1)
        low = torch.floor(positions)
        return [(low, 1 - (positions - low)), (low + 1, positions - low)]
    if mode != "cubic":
        raise call.refused(f"mode {mode}")
    low = torch.floor(positions)
    places = [low + k for k in range(-1, 3)]
    weights = [_cubic((positions - place).abs(), call.number("cubic_coeff_a", -0.75)) for place in places]
    if call.flag("exclude_outside"):
        inside = [(place >= 0) & (place < axis.before) for place in places]
        weights = [weight * within for weight, within in zip(weights, inside, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [weight / total for weight in weights]
    return list(zip(places, weights, strict=True))


def _cubic(d: Tensor, a: float) -> Tensor:
    """Keys' kernel at a distance (IEEE Trans. ASSP 29, 1981)."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


OPERATORS: dict[str, Operator] = {"Resize": resize, "Upsample": upsample}
