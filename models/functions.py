"""`Functions`: the layers without parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .emitter import Emitter, Shape, Value

Sizes = int | tuple[int, ...]
"""A size for every spatial axis, or one for all."""

# What each layer leaves of the power of its input. These are rough: errors of a few per cent per layer are harmless,
# as are larger ones in what a network has only a handful of.
_RELU_POWER = 0.34
_SILU_POWER = 0.33
_GELU_POWER = 0.34
_GATE_POWER = 0.27
_MAX_POOL_GAIN = 2.0
_AVERAGE_POOL_GAIN = 0.7
_GLOBAL_POOL_GAIN = 0.3


class Functions(Emitter):
    """Activations, pooling and what moves elements around."""

    # Activations

    def relu(self, x: Value, module: str, *, kept: float = _RELU_POWER) -> Value:
        """Compute max(x, 0), which keeps more of the power, `kept`, where x is positive for the most part."""
        return self.emit("Relu", [x], module, power=kept * x.power)

    def leaky_relu(self, x: Value, module: str) -> Value:
        """Compute max(x, x / 100)."""
        return self.emit("LeakyRelu", [x], module, power=_RELU_POWER * x.power, alpha=0.01)

    def relu6(self, x: Value, module: str) -> Value:
        """Compute min(max(x, 0), 6)."""
        limits = [self.constant(0.0, module), self.constant(6.0, module)]
        return self.emit("Clip", [x, *limits], module, power=_RELU_POWER * x.power)

    def tanh(self, x: Value, module: str) -> Value:
        """Compute the hyperbolic tangent."""
        return self.emit("Tanh", [x], module, power=0.6 * min(x.power, 1.0))

    def sigmoid(self, x: Value, module: str) -> Value:
        """Compute 1 / (1 + exp(-x))."""
        return self.emit("Sigmoid", [x], module, power=_GATE_POWER)

    def hard_sigmoid(self, x: Value, module: str) -> Value:
        """Compute min(max(x / 6 + 1 / 2, 0), 1)."""
        return self.emit("HardSigmoid", [x], module, power=_GATE_POWER, alpha=1 / 6, beta=0.5)

    def silu(self, x: Value, module: str) -> Value:
        """The product of x and sigmoid(x), which has no operator of its own."""
        return self.emit("Mul", [x, self.sigmoid(x, module)], module, power=_SILU_POWER * x.power)

    def hard_swish(self, x: Value, module: str) -> Value:
        """The product of x and hard_sigmoid(x), which below opset 14 has no operator of its own."""
        if self.opset >= 14:
            return self.emit("HardSwish", [x], module, power=_SILU_POWER * x.power)
        return self.emit("Mul", [x, self.hard_sigmoid(x, module)], module, power=_SILU_POWER * x.power)

    def gelu(self, x: Value, module: str) -> Value:
        """The product of x and Phi(x); below opset 20, which has no operator for it, as a subgraph around Erf."""
        power = _GELU_POWER * x.power
        if self.opset >= 20:
            return self.emit("Gelu", [x], module, power=power, approximate="none")
        y = self.emit("Erf", [self.emit("Div", [x, self.constant(math.sqrt(2.0), module)], module)], module)
        y = self.emit("Mul", [x, self.emit("Add", [y, self.constant(1.0, module)], module)], module)
        return self.emit("Mul", [y, self.constant(0.5, module)], module, power=power)

    def gate(self, x: Value, gate: Value, module: str) -> Value:
        """The product of x and a gate between 0 and 1, which may be broadcast."""
        return self.emit("Mul", [gate, x], module, shape=x.shape, power=_GATE_POWER * x.power)

    # Pooling

    def max_pool(
        self, x: Value, module: str, kernel: Sizes, stride: Sizes, *, padding: Sizes = 0, ceil: bool = False
    ) -> Value:
        """Maximum over windows; `ceil` keeps a last window that is only partly filled."""
        rank = len(x.shape) - 2
        kernels, strides, pads = (expanded(sizes, rank) for sizes in (kernel, stride, padding))
        sizes = pooled_sizes(x.shape, kernels, strides, pads, ceil=ceil)
        return self.emit(
            "MaxPool",
            [x],
            module,
            shape=(*x.shape[:2], *sizes),
            power=_MAX_POOL_GAIN * x.power,
            ceil_mode=int(ceil),
            kernel_shape=kernels,
            pads=pads * 2,
            strides=strides,
        )

    def average_pool(
        self, x: Value, module: str, kernel: int, stride: int | None = None, *, padding: int = 0, ceil: bool = False
    ) -> Value:
        """Mean over windows, which do not overlap unless a stride says so; the padding counts as zeros."""
        rank = len(x.shape) - 2
        kernels, strides, pads = (expanded(sizes, rank) for sizes in (kernel, stride or kernel, padding))
        sizes = pooled_sizes(x.shape, kernels, strides, pads, ceil=ceil)
        return self.emit(
            "AveragePool",
            [x],
            module,
            shape=(*x.shape[:2], *sizes),
            power=_AVERAGE_POOL_GAIN * x.power,
            ceil_mode=int(ceil),
            count_include_pad=1,
            kernel_shape=kernels,
            pads=pads * 2,
            strides=strides,
        )

    def global_average_pool(self, x: Value, module: str) -> Value:
        """Mean of every channel, as a map of one element."""
        shape = (*x.shape[:2], *[1] * (len(x.shape) - 2))
        return self.emit("GlobalAveragePool", [x], module, shape=shape, power=_GLOBAL_POOL_GAIN * x.power)

    def spatial_mean(self, x: Value, module: str = "", *, keepdims: bool = False) -> Value:
        """Mean of every channel, as a matrix: what `x.mean([2, 3])` exports to."""
        axes = list(range(2, len(x.shape)))
        y = self.reduce("ReduceMean", x, module, axes, keepdims=keepdims)
        return Value(y.tensor, y.shape, _GLOBAL_POOL_GAIN * x.power)

    def reduce(self, op: str, x: Value, module: str, axes: Sequence[int], *, keepdims: bool) -> Value:
        """ReduceMean or ReduceSum, whose axes became an input in opset 18 or 13."""
        gone = [axis % len(x.shape) for axis in axes]
        kept = [1 if axis in gone else size for axis, size in enumerate(x.shape) if keepdims or axis not in gone]
        if self.opset < (13 if op == "ReduceSum" else 18):
            return self.emit(op, [x], module, shape=tuple(kept), axes=list(axes), keepdims=int(keepdims))
        given = self.constant(np.array(axes, dtype=np.int64), module)
        return self.emit(op, [x, given], module, shape=tuple(kept), keepdims=int(keepdims))

    # Structure

    def add(self, a: Value, b: Value, module: str = "") -> Value:
        """Sum of two branches."""
        return self.emit("Add", [a, b], module, power=a.power + b.power)

    def concat(self, values: Sequence[Value], module: str = "", *, axis: int = 1) -> Value:
        """Join branches."""
        first = values[0].shape
        widths = [int(value.shape[axis]) for value in values]
        power = sum(value.power * width for value, width in zip(values, widths, strict=True)) / sum(widths)
        shape = list(first)
        shape[axis] = sum(widths)
        return self.emit("Concat", values, module, shape=tuple(shape), power=power, axis=axis)

    def slice(self, x: Value, module: str, axis: int, bounds: tuple[int, int | None], step: int = 1) -> Value:
        """Take a part of one axis, as `x[:, start:stop:step]` exports to."""
        start, stop = bounds
        positions = range(int(x.shape[axis]))[start:stop:step]
        end = np.iinfo(np.int64).max if stop is None else stop
        numbers = [self.constant(np.array([number], dtype=np.int64), module) for number in (start, end, axis, step)]
        return self.emit("Slice", [x, *numbers], module, shape=(*x.shape[:axis], len(positions), *x.shape[axis + 1 :]))

    def pad(self, x: Value, module: str, before: Sequence[int], after: Sequence[int]) -> Value:
        """Zeros around; one number per axis and side."""
        shape = tuple(
            size if low == high == 0 else int(size) + low + high
            for size, low, high in zip(x.shape, before, after, strict=True)
        )
        pads = self.constant(np.array([*before, *after], dtype=np.int64), module)
        return self.emit("Pad", [x, pads, self.constant(0.0, module)], module, shape=shape, mode="constant")

    def upsample(self, x: Value, module: str, scale: int) -> Value:
        """Repeat every element in both directions."""
        scales = self.constant(np.array([1, 1, scale, scale], dtype=np.float32), module)
        return self.emit(
            "Resize",
            [x, None, scales],
            module,
            shape=(*x.shape[:2], x.size * scale, int(x.shape[3]) * scale),
            coordinate_transformation_mode="asymmetric",
            cubic_coeff_a=-0.75,
            mode="nearest",
            nearest_mode="floor",
        )

    def flatten(self, x: Value, module: str = "") -> Value:
        """Keep the batch, join all other axes."""
        width = math.prod(int(size) for size in x.shape[1:])
        return self.emit("Flatten", [x], module, shape=(x.shape[0], width), axis=1)

    def reshape(self, x: Value, shape: Sequence[int], module: str = "") -> Value:
        """Reshape all axes but the batch, which the target copies (0) where it is dynamic."""
        leading = self.batch if isinstance(self.batch, int) else 0
        return self.view(x, [leading, *shape], (x.shape[0], *shape), module)

    def view(self, x: Value, target: Sequence[int], shape: Shape, module: str = "") -> Value:
        """Reshape with a given target, whose 0 and -1 come out as `shape` says."""
        return self.emit("Reshape", [x, self.constant(np.array(target, dtype=np.int64), module)], module, shape=shape)

    def transpose(self, x: Value, perm: Sequence[int], module: str = "") -> Value:
        """Permute the axes."""
        return self.emit("Transpose", [x], module, shape=tuple(x.shape[axis] for axis in perm), perm=list(perm))

    def scale(self, x: Value, factor: float, module: str = "") -> Value:
        """Multiply by a number."""
        return self.emit("Mul", [x, self.constant(factor, module)], module, power=factor**2 * x.power)

    def unsqueeze(self, x: Value, axis: int, module: str = "") -> Value:
        """Insert an axis of size one."""
        given = self.constant(np.array([axis], dtype=np.int64), module)
        return self.emit("Unsqueeze", [x, given], module, shape=(*x.shape[:axis], 1, *x.shape[axis:]))

    def unbind(self, x: Value, module: str = "") -> list[Value]:
        """Split the first axis into its positions, as `x.unbind(0)` does."""
        axis = self.constant(np.array([0], dtype=np.int64), module)
        parts = self.emit_split(x, module, int(x.shape[0]), axis=0)
        return [self.emit("Squeeze", [part, axis], module, shape=x.shape[1:]) for part in parts]

    def take(self, x: Value, module: str, axis: int, index: int) -> Value:
        """Take one position of an axis, which disappears: `x[:, index]`."""
        given = self.constant(np.int64(index), module)
        return self.emit("Gather", [x, given], module, shape=(*x.shape[:axis], *x.shape[axis + 1 :]), axis=axis)


def expanded(sizes: Sizes, rank: int) -> list[int]:
    """One size for every spatial axis."""
    return [sizes] * rank if isinstance(sizes, int) else list(sizes)


def pooled_sizes(
    shape: Shape, kernels: Sequence[int], strides: Sequence[int], pads: Sequence[int], *, ceil: bool = False
) -> list[int]:
    """Number of windows along every spatial axis."""
    windows = zip(shape[2:], kernels, strides, pads, strict=True)
    return [_pooled(int(size), *window, ceil=ceil) for size, *window in windows]


def _pooled(size: int, kernel: int, stride: int, padding: int, *, ceil: bool) -> int:
    room = size + 2 * padding - kernel
    if room < 0:
        raise ValueError(f"the image is too small: a {kernel}x{kernel} window meets a {size}x{size} map")
    windows = room // stride + 1
    # A partly filled window must start inside of the map or its leading padding.
    if ceil and room % stride and windows * stride < size + padding:
        windows += 1
    return windows
