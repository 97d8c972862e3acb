"""What picks elements by their places, and what finds such places."""

from __future__ import annotations

import torch
from torch import Tensor

from ucpe_onnx.train.network.call import Call, Operator, Result, filled, integers, together


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices as torch takes them: what is negative counts from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """The positions of an axis that indices name; the axis becomes those of the indices."""
    axis = call.integer("axis", 0) % x.ndim
    places = _from_start(indices, x.shape[axis]).to(x.device)
    return x.index_select(axis, places.reshape(-1)).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One element for each index, which stands where the element stands but for one axis."""
    axis = call.integer("axis", 0) % x.ndim
    return x.gather(axis, _from_start(indices, x.shape[axis]).to(x.device))


def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """The elements or parts that tuples of indices name, behind ``batch_dims`` axes that go along."""
    shared = call.integer("batch_dims", 0)
    named = [i.to(x.device, torch.int64) for i in indices.unbind(-1)]
    rank = indices.ndim - 1
    along = [
        torch.arange(x.shape[axis], device=x.device).reshape([-1 if a == axis else 1 for a in range(rank)])
        for axis in range(shared)
    ]
    return x[tuple(along + named)]


def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Other elements or parts where tuples of indices say, or what is there with something added."""
    kind = call.text("reduction", "none")
    if kind not in ("none", "add"):
        raise call.refused(f"the reduction {kind}")
    x, updates = together(x, updates)
    return x.index_put([i.to(x.device, torch.int64) for i in indices.unbind(-1)], updates, accumulate=kind == "add")


def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Other elements, each in the place of its index along one axis, or what is there with something added."""
    kind, axis = call.text("reduction", "none"), call.integer("axis", 0) % x.ndim
    if kind not in ("none", "add"):
        raise call.refused(f"the reduction {kind}")
    x, updates = together(x, updates)
    places = _from_start(indices, x.shape[axis]).to(x.device)
    return x.scatter_add(axis, places, updates) if kind == "add" else x.scatter(axis, places, updates)


def slice_of(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """A part of some axes; starts, ends and axes are attributes before opset 10, and then inputs, as steps are."""
    starts, ends, axes, steps = filled(given, 4)
    low = (call.integers("starts") or []) if starts is None else integers(starts)
    high = (call.integers("ends") or []) if ends is None else integers(ends)
    places = call.axes(axes)
    strides = [1] * len(low) if steps is None else integers(steps)
    for axis, start, end, step in zip(places or range(len(low)), low, high, strides, strict=True):
        begin, stop, _ = slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(begin, stop, step),)]
        else:
            x = x.index_select(axis, torch.arange(begin, stop, step, device=x.device))
    return x


def trilu(call: Call, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """The upper or lower triangle of matrices, zero elsewhere."""
    offset = 0 if diagonal is None else int(diagonal)
    return torch.triu(x, offset) if call.integer("upper", 1) else torch.tril(x, offset)


def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """A new axis that holds one value where an index says, another elsewhere."""
    indices, values = together(indices, values)
    size, axis = int(depth), call.integer("axis", -1) % (indices.ndim + 1)
    places = _from_start(indices, size).unsqueeze(axis)
    every = torch.arange(size, device=indices.device).reshape([-1 if a == axis else 1 for a in range(places.ndim)])
    return torch.where(places == every, values[1], values[0])


def top_k(call: Call, x: Tensor, count: Tensor | None = None) -> Result:
    """The largest or smallest elements along an axis, and their places; of equal ones the first."""
    k, axis = call.integer("k", 1) if count is None else int(count), call.integer("axis", -1)
    values, places = torch.sort(x, dim=axis, descending=bool(call.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


def arg_max(call: Call, x: Tensor) -> Tensor:
    """The first or last place of the largest element along an axis."""
    axis, keep = call.integer("axis", 0), bool(call.integer("keepdims", 1))
    if not call.flag("select_last_index"):
        return x.argmax(axis, keep)
    return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keep)


def arg_min(call: Call, x: Tensor) -> Tensor:
    """The first or last place of the smallest element along an axis."""
    return arg_max(call, -x)


def non_zero(call: Call, x: Tensor) -> Tensor:
    """The places of what is not zero, one in each column."""
    return x.nonzero().T


def cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Running sums along an axis, without the element itself if ``exclusive``, from the end if ``reverse``."""
    along = int(axis)
    y = x.flip(along) if call.flag("reverse") else x
    sums = y.cumsum(along, dtype=x.dtype)
    sums = sums - y if call.flag("exclusive") else sums
    return sums.flip(along) if call.flag("reverse") else sums


OPERATORS: dict[str, Operator] = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumSum": cumulative_sum,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_of,
    "TopK": top_k,
    "Trilu": trilu,
}
