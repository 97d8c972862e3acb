"""What moves elements around, and what makes and reads shapes."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from ucpe_onnx.train.network.call import Call, Operator, Result, as_tensor, integers, padded, together


def reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Another shape: -1 stands for what is left, 0 for the old size unless ``allowzero`` says otherwise."""
    sizes = integers(shape)
    if not call.flag("allowzero"):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call, x: Tensor) -> Tensor:
    """A matrix: the axes before ``axis``, and those from it on."""
    axis = call.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without some axes of size one, or all of them."""
    given = call.axes(axes)
    return x.squeeze() if given is None else x.squeeze(tuple(given))


def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With axes of size one at places of the result."""
    given = call.axes(axes) or []
    rank = x.ndim + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


def transpose(call: Call, x: Tensor) -> Tensor:
    """The axes in another order, by default reversed."""
    return x.permute(call.integers("perm") or list(range(x.ndim))[::-1])


def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to what fits both the tensor and the given shape."""
    return x.expand(np.broadcast_shapes(x.shape, tuple(integers(shape))))


def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(integers(repeats))


def concat(call: Call, *tensors: Tensor) -> Tensor:
    """Join along an axis."""
    return torch.cat(together(*tensors), call.integer("axis", 1))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Result:
    """Cut along an axis: into given sizes, or equal parts, one per output, the last of which may be smaller."""
    axis = call.integer("axis", 0)
    given = call.integers("split") if sizes is None else integers(sizes)
    if given is None:
        count = call.integer("num_outputs", len(call.node.outputs))
        each = -(-x.shape[axis] // count)
        given = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    return torch.split_with_sizes(x, given, axis)


def cast(call: Call, x: Tensor) -> Tensor:
    """Another element type; all narrow floats are the type that the network computes in."""
    return x.to(call.dtype(call.integer("to", TensorProto.FLOAT)))


def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """The element type of another tensor."""
    return x.to(like.dtype)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels become squares of space; ``mode`` says which come together."""
    size = call.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    rest = channels // size**2
    if call.text("mode", "DCR") == "CRD":
        x = x.reshape(batch, rest, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(batch, size, size, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, rest, height * size, width * size)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Squares of space become channels; ``mode`` says which lie together."""
    size = call.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // size, size, width // size, size)
    x = x.permute((0, 1, 3, 5, 2, 4) if call.text("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4))
    return x.reshape(batch, channels * size**2, height // size, width // size)


def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad with a value, a mirror image, the edge, or from the other side; negative widths cut off.

    Widths and value are attributes before opset 11 and then inputs.
    """
    widths = (call.integers("pads") or []) if pads is None else integers(pads)
    places = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in integers(axes)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for place, low, high in zip(places, widths[: len(places)], widths[len(places) :], strict=True):
        before[place], after[place] = low, high
    mode = call.text("mode", "constant")
    if mode == "constant":
        return padded(x, before, after, call.number("value", 0.0) if value is None else value.item())
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if low or high:
            x = x.index_select(axis, _sources(x.shape[axis], low, high, mode).to(x.device))
    return x


def _sources(size: int, before: int, after: int, mode: str) -> Tensor:
    """The position that each position of a padded axis takes its value from."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    period = max(1, 2 * (size - 1))
    places = places.remainder(period)
    return torch.minimum(places, period - places) if size > 1 else places


def shape_of(call: Call, x: Tensor) -> Tensor:
    """The shape or, between ``start`` and ``end``, a part of it."""
    sizes = list(x.shape)
    return torch.tensor(sizes[call.integer("start", 0) : call.integer("end", len(sizes))], dtype=torch.int64)


def size_of(call: Call, x: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel())


def range_of(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from start to below limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    """A tensor of one value, zero by default."""
    sizes = integers(shape)
    stored = call.node.attributes.get("value")
    if stored is None:
        return torch.zeros(sizes, dtype=call.run.floating, device=call.run.device)
    value, dtype = as_tensor(numpy_helper.to_array(stored)), call.dtype(stored.data_type)
    return torch.full(sizes, value.item(), dtype=dtype, device=call.run.device if dtype.is_floating_point else None)


OPERATORS: dict[str, Operator] = {
    "Cast": cast,
    "CastLike": cast_like,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Identity": lambda call, x: x,
    "Pad": pad,
    "Range": range_of,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
