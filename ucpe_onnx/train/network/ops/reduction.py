"""Reductions over axes, given as an attribute or, from opset 18 on (the sum from 13 on), as an input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ucpe_onnx.train.network.call import Call, Operator


def _over(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def operator(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = call.axes(axes)
        if not given:
            if call.flag("noop_with_empty_axes"):
                return x
            given = list(range(x.ndim))
        # A scalar has no axes, and torch takes an empty list for all of them, which is the same.
        return function(x, tuple(axis % x.ndim for axis in given), bool(call.integer("keepdims", 1)))

    return operator


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keep)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(x.sum(axes, keep, dtype=x.dtype), count, rounding_mode="trunc")


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keep, dtype=x.dtype)


def _norm(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)  # its gradient at zero is zero, not infinite
    return norm


OPERATORS: dict[str, Operator] = {
    "ReduceL1": _over(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _over(_norm),
    "ReduceLogSum": _over(lambda x, axes, keep: torch.log(_sum(x, axes, keep))),
    "ReduceLogSumExp": _over(torch.logsumexp),
    "ReduceMax": _over(torch.amax),
    "ReduceMean": _over(_mean),
    "ReduceMin": _over(torch.amin),
    "ReduceProd": _over(_prod),
    "ReduceSum": _over(_sum),
    "ReduceSumSquare": _over(lambda x, axes, keep: _sum(x.square(), axes, keep)),
}
