"""Pools over windows and over all of space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ucpe_onnx.train.network.call import Call, Operator, padded
from ucpe_onnx.train.network.windows import Window, window_of

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _window(call: Call, x: Tensor) -> Window:
    return window_of(call, x.shape[2:], call.integers("kernel_shape") or [])


def max_pool(call: Call, x: Tensor) -> Tensor:
    """Largest element of every window."""
    if call.node.has(1):
        raise call.refused("a second output")
    window, ceil = _window(call, x), call.flag("ceil_mode")
    padding: tuple[int, ...] | int = window.before
    if ceil or not window.symmetric() or any(2 * p > k for p, k in zip(window.before, window.kernel, strict=True)):
        x, padding = window.fitted(x, -math.inf, ceil=ceil), 0
    result: Tensor = _MAX[len(window.kernel)](x, window.kernel, window.strides, padding, window.dilations)
    return result


def average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean of every window, over what lies inside of the tensor or, with ``count_include_pad``, of its padding too."""
    window, ceil = _window(call, x), call.flag("ceil_mode")
    sums = _window_sums(window.fitted(x, 0.0, ceil=ceil), window)
    counted = x.new_ones((1, 1, *x.shape[2:]))
    before, after = window.before, window.room(x.shape[2:], ceil=ceil)
    if call.flag("count_include_pad"):
        counted = padded(counted, before, window.after, 1.0)
        before, after = (0,) * len(before), tuple(a - b for a, b in zip(after, window.after, strict=True))
    return sums / _window_sums(padded(counted, before, after), window)


def lp_pool(call: Call, x: Tensor) -> Tensor:
    """Root of the sum of powers of every window; ``p`` is 2 by default."""
    window, p = _window(call, x), call.number("p", 2)
    sums = _window_sums(window.fitted(x.abs() ** p, 0.0, ceil=call.flag("ceil_mode")), window)
    positive = sums > 0  # the root has no gradient at zero
    return torch.where(positive, torch.where(positive, sums, torch.ones_like(sums)) ** (1 / p), sums)


def _window_sums(x: Tensor, window: Window) -> Tensor:
    """Sum of every window; the windows end where the tensor does."""
    rank = len(window.kernel)
    if all(d == 1 for d in window.dilations):
        means: Tensor = _MEAN[rank](x, window.kernel, window.strides)
        return means * math.prod(window.kernel)
    maps = x.flatten(0, 1).unsqueeze(1)  # torch's means know no dilation: every channel is convolved with ones
    sums: Tensor = _CONV[rank](maps, x.new_ones((1, 1, *window.kernel)), None, window.strides, 0, window.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _space(x: Tensor) -> Sequence[int]:
    return range(2, x.ndim)


def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """Mean of every channel."""
    return x.mean(tuple(_space(x)), keepdim=True)


def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """Largest element of every channel."""
    return x.amax(tuple(_space(x)), keepdim=True)


def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """Norm of every channel; ``p`` is 2 by default."""
    norm: Tensor = torch.linalg.vector_norm(x, call.number("p", 2), tuple(_space(x)), keepdim=True)
    return norm


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
