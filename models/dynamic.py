"""Shapes that are known only when the network runs, in the forms that exporters compute them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .builder import Net
from .emitter import Shape, Value

Size = int | Value
"""A length: a number, or a tensor of one element that holds it."""


def size(net: Net, x: Value, axis: int, module: str) -> Size:
    """The length of an axis: the number where it is known, `x.size(axis)` where it is not."""
    length = x.shape[axis]
    if isinstance(length, int):
        return length
    sizes = net.emit("Shape", [x], module, shape=(len(x.shape),))
    taken = net.emit("Gather", [sizes, net.constant(np.int64(axis), module)], module, shape=(), axis=0)
    return net.unsqueeze(taken, 0, module)


def as_tensor(net: Net, sizes: Sequence[Size], module: str) -> Value:
    """Lengths as one tensor: a constant where all are numbers, else a Concat."""
    numbers = [length for length in sizes if isinstance(length, int)]
    if len(numbers) == len(sizes):
        return net.constant(np.array(numbers, dtype=np.int64), module)
    parts = [_one(net, length, module) for length in sizes]
    return net.concat(parts, module, axis=0)


def view(net: Net, x: Value, sizes: Sequence[Size], shape: Shape, module: str) -> Value:
    """`x.view(*sizes)`."""
    return net.emit("Reshape", [x, as_tensor(net, sizes, module)], module, shape=shape)


def view_tail(net: Net, x: Value, tail: Sequence[int], module: str) -> Value:
    """`x.view(x.size(0), x.size(1), *tail)`."""
    sizes = [size(net, x, axis, module) for axis in range(2)]
    return view(net, x, [*sizes, *tail], (*x.shape[:2], *tail), module)


def expand(net: Net, x: Value, sizes: Sequence[Size], shape: Shape, module: str) -> Value:
    """`x.expand(*sizes)`: where sizes are computed, the exporter replaces -1 by one, whether there is any or not."""
    wanted = as_tensor(net, sizes, module)
    if not all(isinstance(length, int) for length in sizes):
        count = net.constant(np.array([len(sizes)], dtype=np.int64), module)
        ones = net.emit("ConstantOfShape", [count], module, shape=(len(sizes),), value=net.filling(1))
        minus = net.emit("Mul", [ones, net.constant(np.int64(-1), module)], module)
        same = net.emit("Equal", [wanted, minus], module)
        wanted = net.emit("Where", [same, ones, wanted], module)
    return net.emit("Expand", [x, wanted], module, shape=shape)


def arange(net: Net, end: Size, module: str, length: int | str, *, start: Size = 0) -> Value:
    """`torch.arange(start, end)`, so many numbers as `length` says or names."""
    if isinstance(start, int) and isinstance(end, int):
        return net.constant(np.arange(start, end), module)
    limits = [_scalar(net, limit, module) for limit in (start, end)]
    return net.emit("Range", [*limits, net.constant(np.int64(1), module)], module, shape=(length,))


def total(net: Net, a: Size, b: Size, module: str) -> Size:
    """Sum of two lengths."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return net.emit("Add", [_one(net, a, module), _one(net, b, module)], module, shape=(1,))


def zeros(net: Net, sizes: Sequence[Size], shape: Shape, module: str) -> Value:
    """`torch.zeros(*sizes)`."""
    if all(isinstance(length, int) for length in sizes):
        return net.constant(np.zeros(sizes, np.float32), module)  # type: ignore[arg-type]
    return net.emit("ConstantOfShape", [as_tensor(net, sizes, module)], module, shape=shape, value=net.filling(0.0))


def _one(net: Net, length: Size, module: str) -> Value:
    return net.constant(np.array([length], dtype=np.int64), module) if isinstance(length, int) else length


def _scalar(net: Net, length: Size, module: str) -> Value:
    if isinstance(length, int):
        return net.constant(np.int64(length), module)
    axis = net.constant(np.array([0], dtype=np.int64), module)
    return net.emit("Squeeze", [length, axis], module, shape=())
