"""`Net`: the layers that the architectures are written in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from .emitter import Array, Emitter, Shape, Value, fan_in_std

# What each layer leaves of the power of its input. These are rough: errors of a few per cent per layer are harmless,
# as are larger ones in what a network has only a handful of.
_RELU_POWER = 0.34
_SILU_POWER = 0.33
_GELU_POWER = 0.34
_GATE_POWER = 0.27
_MAX_POOL_GAIN = 2.0
_AVERAGE_POOL_GAIN = 0.7
_GLOBAL_POOL_GAIN = 0.3
_SQUEEZE_GAIN = 0.15
# A filter that sums to zero sees less of a single map, which is smooth and has a border of zeros.
_DEPTHWISE_GAIN = 0.7
# Power that follows a normalisation: E[scale^2] E[1 / var], a little more for mean and bias.
_BATCH_NORM_POWER = 1.2
_LAYER_NORM_POWER = 1.1


@dataclass(frozen=True)
class _BatchNorm:
    """Parameters of one batch normalisation: y = scale (x - mean) / sqrt(var + epsilon) + bias."""

    scale: Array
    bias: Array
    mean: Array
    var: Array
    epsilon: float

    def fold(self, weight: Array, bias: Array | None) -> tuple[Array, Array]:
        """Weight and bias of the one convolution that equals a convolution and this normalisation after it."""
        factor = self.scale / np.sqrt(self.var + np.float32(self.epsilon))
        before = -self.mean if bias is None else bias - self.mean
        return weight * factor[:, None, None, None], before * factor + self.bias


class Net(Emitter):
    """Builds one network, layer by layer.

    Attributes:
        input: The image.
        classes: Number of outputs that the classifier is to have.
    """

    def __init__(
        self, name: str, *, seed: int, opset: int, fold_bn: bool, batch: int | str, image: int, classes: int
    ) -> None:
        super().__init__(name, seed=seed, opset=opset, batch=batch, image=image)
        self.classes = classes
        self._fold_bn = fold_bn

    # Convolutions and normalisations

    def conv(
        self,
        x: Value,
        module: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = True,
    ) -> Value:
        """Convolution alone; `padding` defaults to half the kernel."""
        weight, offset = self._draw_conv(x, channels, kernel, groups, bias=bias)
        return self._emit_conv(x, module, (weight, offset), stride=stride, padding=padding, groups=groups)

    def conv_bn(
        self,
        x: Value,
        conv: str,
        bn: str,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        epsilon: float = 1e-5,
    ) -> Value:
        """Convolution and batch normalisation, which `fold_bn` makes one convolution."""
        weight, offset = self._draw_conv(x, channels, kernel, groups, bias=bias)
        norm = self._draw_batch_norm(channels, 1.0, epsilon)
        if not self._fold_bn:
            y = self._emit_conv(x, conv, (weight, offset), stride=stride, groups=groups)
            return self._emit_batch_norm(y, bn, norm)
        y = self._emit_conv(x, conv, norm.fold(weight, offset), stride=stride, groups=groups)
        return replace(y, power=_BATCH_NORM_POWER)

    def conv_transpose(self, x: Value, module: str, channels: int, kernel: int) -> Value:
        """Transposed convolution whose stride is its kernel: an upsampling without overlap."""
        # Each output sees one tap of the kernel, so it sums over the channels alone.
        values = self._draw_weight((x.channels, channels, kernel, kernel), (0,), x.power)
        weight = self.parameter(f"{module}.weight", values)
        bias = self.parameter(f"{module}.bias", self._draw_bias(channels))
        return self.emit(
            "ConvTranspose",
            [x, weight, bias],
            module,
            shape=(x.shape[0], channels, x.size * kernel, x.size * kernel),
            power=1.0,
            dilations=[1, 1],
            group=1,
            kernel_shape=[kernel, kernel],
            pads=[0, 0, 0, 0],
            strides=[kernel, kernel],
        )

    def batch_norm(self, x: Value, module: str, *, epsilon: float = 1e-5) -> Value:
        """Batch normalisation that follows no convolution, and so is never folded."""
        return self._emit_batch_norm(x, module, self._draw_batch_norm(x.channels, x.power, epsilon))

    def layer_norm(self, x: Value, module: str, *, epsilon: float) -> Value:
        """Normalise the last axis; below opset 17, which has no operator for it, as a subgraph."""
        width = int(x.shape[-1])
        weight = self.parameter(f"{module}.weight", self.uniform(width, 0.5, 1.5))
        bias = self.parameter(f"{module}.bias", self.normal([width], 0.1))
        if self.opset >= 17:
            return self.emit(
                "LayerNormalization", [x, weight, bias], module, power=_LAYER_NORM_POWER, axis=-1, epsilon=epsilon
            )
        centred = self.emit("Sub", [x, self._reduce_mean(x, module, [-1], keepdims=True)], module)
        squared = self.emit("Pow", [centred, self.constant(2.0, module)], module)
        variance = self._reduce_mean(squared, module, [-1], keepdims=True)
        deviation = self.emit("Sqrt", [self.emit("Add", [variance, self.constant(epsilon, module)], module)], module)
        y = self.emit("Div", [centred, deviation], module, power=_LAYER_NORM_POWER)
        return self.emit("Add", [self.emit("Mul", [y, weight], module), bias], module)

    # Linear layers

    def linear(self, x: Value, module: str, width: int) -> Value:
        """Linear layer over the last axis: Gemm for a matrix, MatMul and Add for more axes."""
        fan_in = int(x.shape[-1])
        shape: Shape = (*x.shape[:-1], width)
        matrix = len(x.shape) == 2
        values = self._draw_weight((width, fan_in) if matrix else (fan_in, width), (1 if matrix else 0,), x.power)
        weight = self.parameter(f"{module}.weight", values)
        bias = self.parameter(f"{module}.bias", self._draw_bias(width))
        if matrix:
            return self.emit("Gemm", [x, weight, bias], module, shape=shape, power=1.0, alpha=1.0, beta=1.0, transB=1)
        y = self.emit("MatMul", [x, weight], module, shape=shape, power=1.0)
        return self.emit("Add", [bias, y], module, shape=shape)

    # Activations

    def relu(self, x: Value, module: str, *, kept: float = _RELU_POWER) -> Value:
        """Compute max(x, 0), which keeps more of the power, `kept`, where x is positive for the most part."""
        return self.emit("Relu", [x], module, power=kept * x.power)

    def relu6(self, x: Value, module: str) -> Value:
        """Compute min(max(x, 0), 6)."""
        limits = [self.constant(0.0, module), self.constant(6.0, module)]
        return self.emit("Clip", [x, *limits], module, power=_RELU_POWER * x.power)

    def sigmoid(self, x: Value, module: str) -> Value:
        """Compute 1 / (1 + exp(-x))."""
        return self.emit("Sigmoid", [x], module, power=_GATE_POWER)

    def silu(self, x: Value, module: str) -> Value:
        """The product of x and sigmoid(x), which has no operator of its own."""
        return self.emit("Mul", [x, self.sigmoid(x, module)], module, power=_SILU_POWER * x.power)

    def gelu(self, x: Value, module: str) -> Value:
        """The product of x and Phi(x); below opset 20, which has no operator for it, as a subgraph around Erf."""
        power = _GELU_POWER * x.power
        if self.opset >= 20:
            return self.emit("Gelu", [x], module, power=power, approximate="none")
        y = self.emit("Erf", [self.emit("Div", [x, self.constant(math.sqrt(2.0), module)], module)], module)
        y = self.emit("Mul", [x, self.emit("Add", [y, self.constant(1.0, module)], module)], module)
        return self.emit("Mul", [y, self.constant(0.5, module)], module, power=power)

    def squeeze_excite(self, x: Value, module: str, squeeze: int) -> Value:
        """Scale every channel by a gate that is computed from the means of all channels."""
        gate = replace(self.global_average_pool(x, f"{module}.avgpool"), power=_SQUEEZE_GAIN * x.power)
        gate = self.silu(self.conv(gate, f"{module}.fc1", squeeze), f"{module}.activation")
        # Narrow gates, around a half: wide ones would depend on the estimated power, and its errors would build up.
        gate = replace(gate, power=4.0 * gate.power)
        gate = self.sigmoid(self.conv(gate, f"{module}.fc2", x.channels), f"{module}.scale_activation")
        return self.emit("Mul", [gate, x], module, shape=x.shape, power=_GATE_POWER * x.power)

    # Pooling

    def max_pool(
        self, x: Value, module: str, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False
    ) -> Value:
        """Maximum over windows; `ceil` keeps a last window that is only partly filled."""
        size = _pooled(x.size, kernel, stride, padding, ceil)
        return self.emit(
            "MaxPool",
            [x],
            module,
            shape=(*x.shape[:2], size, size),
            power=_MAX_POOL_GAIN * x.power,
            ceil_mode=int(ceil),
            kernel_shape=[kernel, kernel],
            pads=[padding] * 4,
            strides=[stride, stride],
        )

    def average_pool(self, x: Value, module: str, kernel: int) -> Value:
        """Mean over windows that do not overlap."""
        size = _pooled(x.size, kernel, kernel, 0, ceil=False)
        return self.emit(
            "AveragePool",
            [x],
            module,
            shape=(*x.shape[:2], size, size),
            power=_AVERAGE_POOL_GAIN * x.power,
            ceil_mode=0,
            count_include_pad=1,
            kernel_shape=[kernel, kernel],
            pads=[0, 0, 0, 0],
            strides=[kernel, kernel],
        )

    def global_average_pool(self, x: Value, module: str) -> Value:
        """Mean of every channel, as a 1x1 map."""
        power = _GLOBAL_POOL_GAIN * x.power
        return self.emit("GlobalAveragePool", [x], module, shape=(*x.shape[:2], 1, 1), power=power)

    def spatial_mean(self, x: Value, module: str = "") -> Value:
        """Mean of every channel, as a matrix: what `x.mean([2, 3])` exports to."""
        y = self._reduce_mean(x, module, [2, 3], keepdims=False)
        return Value(y.tensor, x.shape[:2], _GLOBAL_POOL_GAIN * x.power)

    # Structure

    def add(self, a: Value, b: Value, module: str = "") -> Value:
        """Sum of two branches."""
        return self.emit("Add", [a, b], module, power=a.power + b.power)

    def concat(self, values: Sequence[Value], module: str = "", *, axis: int = 1) -> Value:
        """Join branches."""
        first = values[0].shape
        widths = [int(value.shape[axis]) for value in values]
        power = sum(value.power * width for value, width in zip(values, widths, strict=True)) / sum(widths)
        shape = (*first[:axis], sum(widths), *first[axis + 1 :])
        return self.emit("Concat", values, module, shape=shape, power=power, axis=axis)

    def flatten(self, x: Value, module: str = "") -> Value:
        """Keep the batch, join all other axes."""
        width = math.prod(int(size) for size in x.shape[1:])
        return self.emit("Flatten", [x], module, shape=(x.shape[0], width), axis=1)

    def reshape(self, x: Value, shape: Sequence[int], module: str = "") -> Value:
        """Reshape all axes but the batch, which the target copies (0) where it is dynamic."""
        leading = self.batch if isinstance(self.batch, int) else 0
        target = self.constant(np.array([leading, *shape], dtype=np.int64), module)
        return self.emit("Reshape", [x, target], module, shape=(x.shape[0], *shape))

    def transpose(self, x: Value, perm: Sequence[int], module: str = "") -> Value:
        """Permute the axes."""
        return self.emit("Transpose", [x], module, shape=tuple(x.shape[axis] for axis in perm), perm=list(perm))

    def classify(self, x: Value, module: str, pool: str = "avgpool") -> Value:
        """The usual head: global average, Flatten, linear layer."""
        return self.linear(self.flatten(self.global_average_pool(x, pool)), module, self.classes)

    # Private: drawing parameters, emitting nodes with given parameters

    def _reduce_mean(self, x: Value, module: str, axes: Sequence[int], *, keepdims: bool) -> Value:
        """ReduceMean, whose axes became an input in opset 18; the caller knows the shape of the result."""
        if self.opset < 18:
            return self.emit("ReduceMean", [x], module, axes=list(axes), keepdims=int(keepdims))
        return self.emit(
            "ReduceMean", [x, self.constant(np.array(axes, dtype=np.int64), module)], module, keepdims=int(keepdims)
        )

    def _draw_bias(self, size: int) -> Array:
        return self.normal([size], 0.05)

    def _draw_weight(self, shape: tuple[int, ...], summed: tuple[int, ...], power: float) -> Array:
        """Draw weights for outputs of power one, where the axes `summed` are those that an output sums over.

        Every such sum of weights is zero. Behind an activation all channels have a positive mean, and with free
        weights these would come to drown what an output says about the image; training avoids that as well.
        """
        fan_in = math.prod(shape[axis] for axis in summed)
        weight = self.normal(shape, fan_in_std(fan_in, power))
        if fan_in > 1:
            weight -= weight.mean(axis=summed, keepdims=True)
        return weight

    def _draw_conv(
        self, x: Value, channels: int, kernel: int, groups: int, *, bias: bool
    ) -> tuple[Array, Array | None]:
        inputs = x.channels // groups
        power = x.power if inputs > 1 else _DEPTHWISE_GAIN * x.power
        weight = self._draw_weight((channels, inputs, kernel, kernel), (1, 2, 3), power)
        return weight, self._draw_bias(channels) if bias else None

    def _draw_batch_norm(self, channels: int, power: float, epsilon: float) -> _BatchNorm:
        return _BatchNorm(
            scale=self.uniform(channels, 0.5, 1.5),
            bias=self.normal([channels], 0.1),
            mean=self.normal([channels], 0.1 * math.sqrt(power)),
            var=self.uniform(channels, 0.5 * power, 1.5 * power),
            epsilon=epsilon,
        )

    def _emit_conv(
        self,
        x: Value,
        module: str,
        parameters: tuple[Array, Array | None],
        *,
        stride: int,
        padding: int | None = None,
        groups: int,
    ) -> Value:
        weight, bias = parameters
        channels, _, kernel, _ = weight.shape
        padding = kernel // 2 if padding is None else padding
        size = _pooled(x.size, kernel, stride, padding, ceil=False)
        inputs = [x, self.parameter(f"{module}.weight", weight)]
        if bias is not None:
            inputs.append(self.parameter(f"{module}.bias", bias))
        return self.emit(
            "Conv",
            inputs,
            module,
            shape=(x.shape[0], channels, size, size),
            power=1.0,
            dilations=[1, 1],
            group=groups,
            kernel_shape=[kernel, kernel],
            pads=[padding] * 4,
            strides=[stride, stride],
        )

    def _emit_batch_norm(self, x: Value, module: str, norm: _BatchNorm) -> Value:
        names = {"weight": norm.scale, "bias": norm.bias, "running_mean": norm.mean, "running_var": norm.var}
        parameters = [self.parameter(f"{module}.{name}", values) for name, values in names.items()]
        return self.emit(
            "BatchNormalization",
            [x, *parameters],
            module,
            power=_BATCH_NORM_POWER,
            epsilon=norm.epsilon,
            momentum=0.9,
        )


def count_parameters(model: onnx.ModelProto) -> int:
    """Count the trainable parameters of a model.

    That is what the field's tables count: every floating-point initializer, but neither the running statistics of a
    batch normalisation nor scalars, which are constants such as the limits of a Clip.
    """
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in floating and tensor.dims and tensor.name not in statistics
    )


def _pooled(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Number of windows along one side."""
    room = size + 2 * padding - kernel
    if room < 0:
        raise ValueError(f"the image is too small: a {kernel}x{kernel} window meets a {size}x{size} map")
    windows = room // stride + 1
    # A partly filled window must start inside of the map or its leading padding.
    if ceil and room % stride and windows * stride < size + padding:
        windows += 1
    return windows
