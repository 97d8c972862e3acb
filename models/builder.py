"""`Net`: the layers that the architectures are written in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from .emitter import Array, Shape, Value, fan_in_std, graphs
from .functions import Functions, Sizes, expanded, pooled_sizes

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
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), before * factor + self.bias


class Net(Functions):
    """Builds one network, layer by layer.

    Attributes:
        input: The image, or what the network reads instead.
        classes: Number of outputs that the classifier is to have.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int,
        opset: int,
        fold_bn: bool,
        shape: Shape,
        inputs: Sequence[str] = (),
        classes: int,
    ) -> None:
        super().__init__(name, seed=seed, opset=opset, shape=shape, inputs=inputs)
        self.classes = classes
        self._fold_bn = fold_bn

    # Convolutions and normalisations

    def conv(
        self,
        x: Value,
        module: str,
        channels: int,
        kernel: Sizes = 1,
        *,
        stride: Sizes = 1,
        padding: Sizes | None = None,
        groups: int = 1,
        bias: bool = True,
    ) -> Value:
        """Convolution alone over one, two or three spatial axes; `padding` defaults to half the kernel."""
        weight, offset = self._draw_conv(x, channels, kernel, groups, bias=bias)
        return self._emit_conv(x, module, (weight, offset), stride=stride, padding=padding, groups=groups)

    def conv_bn(
        self,
        x: Value,
        conv: str,
        bn: str,
        channels: int,
        kernel: Sizes = 1,
        *,
        stride: Sizes = 1,
        padding: Sizes | None = None,
        groups: int = 1,
        bias: bool = False,
        epsilon: float = 1e-5,
    ) -> Value:
        """Convolution and batch normalisation, which `fold_bn` makes one convolution."""
        weight, offset = self._draw_conv(x, channels, kernel, groups, bias=bias)
        norm = self._draw_batch_norm(channels, 1.0, epsilon)
        if not self._fold_bn:
            y = self._emit_conv(x, conv, (weight, offset), stride=stride, padding=padding, groups=groups)
            return self._emit_batch_norm(y, bn, norm)
        y = self._emit_conv(x, conv, norm.fold(weight, offset), stride=stride, padding=padding, groups=groups)
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
        centred = self.emit("Sub", [x, self.reduce("ReduceMean", x, module, [-1], keepdims=True)], module)
        squared = self.emit("Pow", [centred, self.constant(2.0, module)], module)
        variance = self.reduce("ReduceMean", squared, module, [-1], keepdims=True)
        deviation = self.emit("Sqrt", [self.emit("Add", [variance, self.constant(epsilon, module)], module)], module)
        y = self.emit("Div", [centred, deviation], module, power=_LAYER_NORM_POWER)
        return self.emit("Add", [self.emit("Mul", [y, weight], module), bias], module)

    def rms_norm(self, x: Value, module: str, *, epsilon: float = 1e-6) -> Value:
        """Divide the last axis by the root of its mean square, and scale it; no opset here has an operator for it."""
        weight = self.parameter(f"{module}.weight", self.uniform(int(x.shape[-1]), 0.5, 1.5))
        squared = self.emit("Pow", [x, self.constant(2.0, module)], module)
        mean = self.reduce("ReduceMean", squared, module, [-1], keepdims=True)
        root = self.emit("Sqrt", [self.emit("Add", [mean, self.constant(epsilon, module)], module)], module)
        inverse = self.emit("Div", [self.constant(1.0, module), root], module, shape=root.shape)
        y = self.emit("Mul", [x, inverse], module, power=_LAYER_NORM_POWER)
        return self.emit("Mul", [weight, y], module, shape=y.shape, power=y.power)

    def group_norm(self, x: Value, module: str, groups: int, *, epsilon: float = 1e-5) -> Value:
        """Normalise groups of channels; below opset 21, which has the operator, by way of InstanceNormalization."""
        weight, bias = self.uniform(x.channels, 0.5, 1.5), self.normal([x.channels], 0.1)
        if self.opset >= 21:
            given = [self.parameter(f"{module}.weight", weight), self.parameter(f"{module}.bias", bias)]
            return self.emit(
                "GroupNormalization", [x, *given], module, power=_BATCH_NORM_POWER, epsilon=epsilon, num_groups=groups
            )
        ones, zeros = (self.constant(np.full(groups, value, np.float32), module) for value in (1, 0))
        y = self.view(x, [0, groups, -1], (x.shape[0], groups, -1), module)
        y = self.emit("InstanceNormalization", [y, ones, zeros], module, epsilon=epsilon)
        y = self.emit("Reshape", [y, self.emit("Shape", [x], module)], module, shape=x.shape, power=_BATCH_NORM_POWER)
        column = (x.channels, *[1] * (len(x.shape) - 2))
        y = self.emit("Mul", [y, self.parameter(f"{module}.weight", weight.reshape(column))], module)
        return self.emit("Add", [y, self.parameter(f"{module}.bias", bias.reshape(column))], module)

    # Sequences

    def embedding(self, ids: Value, module: str, rows: int, width: int) -> Value:
        """Look up one row of a table for every number."""
        table = self.parameter(f"{module}.weight", self.normal([rows, width], 0.5))
        return self.emit("Gather", [table, ids], module, shape=(*ids.shape, width), power=0.25)

    def recurrent(
        self, x: Value, module: str, op: str, hidden: int, *, bidirectional: bool, states: Sequence[Value] = ()
    ) -> Value:
        """One layer of an LSTM or a GRU over (steps, batch, width), directions joined in the last axis."""
        return self.recurrent_states(x, module, op, hidden, bidirectional=bidirectional, states=states)[0]

    def recurrent_states(
        self, x: Value, module: str, op: str, hidden: int, *, bidirectional: bool, states: Sequence[Value] = ()
    ) -> list[Value]:
        """As `recurrent`, with the states after the last step, (directions, batch, hidden) as `states` are."""
        directions, gates = 1 + bidirectional, {"LSTM": 4, "GRU": 3}[op]
        sizes = {"W": (int(x.shape[2]), x.power), "R": (hidden, 0.2)}
        given = [
            self.parameter(f"{module}.{name}", self._draw_weight((directions, gates * hidden, fan_in), (2,), power))
            for name, (fan_in, power) in sizes.items()
        ]
        given.append(self.parameter(f"{module}.B", self.normal([directions, 2 * gates * hidden], 0.05)))
        attributes = {"linear_before_reset": 1} if op == "GRU" else {}
        last = Value(None, (directions, x.shape[1], hidden), 0.1)
        y, *after = self.emit_many(
            op,
            [x, *given, *((None, *states) if states else ())],
            module,
            [Value(None, (x.shape[0], *last.shape), 0.1), *[last] * len(states)],
            hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward",
            **attributes,
        )
        if not bidirectional:
            axis = self.constant(np.array([1], dtype=np.int64), module)
            return [self.emit("Squeeze", [y, axis], module, shape=(*x.shape[:2], hidden)), *after]
        y = self.transpose(y, [0, 2, 1, 3], module)
        return [self.view(y, [0, 0, -1], (*x.shape[:2], 2 * hidden), module), *after]

    # Linear layers

    def linear(self, x: Value, module: str, width: int, *, bias: bool = True) -> Value:
        """Linear layer over the last axis: Gemm for a matrix, MatMul and Add, if it has a bias, for more axes."""
        fan_in = int(x.shape[-1])
        shape: Shape = (*x.shape[:-1], width)
        matrix = len(x.shape) == 2
        values = self._draw_weight((width, fan_in) if matrix else (fan_in, width), (1 if matrix else 0,), x.power)
        weight = self.parameter(f"{module}.weight", values)
        if not (matrix or bias):
            return self.emit("MatMul", [x, weight], module, shape=shape, power=1.0)
        offset = self.parameter(f"{module}.bias", self._draw_bias(width))
        if matrix:
            return self.emit("Gemm", [x, weight, offset], module, shape=shape, power=1.0, alpha=1.0, beta=1.0, transB=1)
        y = self.emit("MatMul", [x, weight], module, shape=shape, power=1.0)
        return self.emit("Add", [offset, y], module, shape=shape)

    def weight(self, name: str, shape: tuple[int, ...], summed: tuple[int, ...], power: float) -> Value:
        """A weight by itself, for inputs of this power, whose axes `summed` are those that an output sums over."""
        return self.parameter(name, self._draw_weight(shape, summed, power))

    # Blocks

    def squeeze_excite(
        self,
        x: Value,
        module: str,
        squeeze: int,
        *,
        names: tuple[str, str] = ("fc1", "fc2"),
        activation: Callable[[Value, str], Value] | None = None,
        gate: Callable[[Value, str], Value] | None = None,
        reduced: bool = False,
    ) -> Value:
        """Scale every channel by a gate that is computed from the means of all channels.

        Args:
            x: The feature map.
            module: Name of the block.
            squeeze: Number of channels between the two convolutions.
            names: Of the two convolutions.
            activation: Between them; SiLU by default.
            gate: After them; a sigmoid by default.
            reduced: Take the means with ReduceMean, as `x.mean((2, 3), keepdim=True)` does, and not with a pool.
        """
        means = (
            self.spatial_mean(x, module, keepdims=True) if reduced else self.global_average_pool(x, f"{module}.avgpool")
        )
        scale = self.conv(replace(means, power=_SQUEEZE_GAIN * x.power), f"{module}.{names[0]}", squeeze)
        scale = (activation or self.silu)(scale, f"{module}.activation")
        # Narrow gates, around a half: wide ones would depend on the estimated power, and its errors would build up.
        scale = self.conv(replace(scale, power=4.0 * scale.power), f"{module}.{names[1]}", x.channels)
        return self.gate(x, (gate or self.sigmoid)(scale, f"{module}.scale_activation"), module)

    def classify(self, x: Value, module: str, pool: str = "avgpool") -> Value:
        """The usual head: global average, Flatten, linear layer."""
        return self.linear(self.flatten(self.global_average_pool(x, pool)), module, self.classes)

    # Private: drawing parameters, emitting nodes with given parameters

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
        self, x: Value, channels: int, kernel: Sizes, groups: int, *, bias: bool
    ) -> tuple[Array, Array | None]:
        inputs = x.channels // groups
        power = x.power if inputs > 1 else _DEPTHWISE_GAIN * x.power
        shape = (channels, inputs, *expanded(kernel, len(x.shape) - 2))
        weight = self._draw_weight(shape, tuple(range(1, len(shape))), power)
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
        stride: Sizes,
        padding: Sizes | None = None,
        groups: int,
    ) -> Value:
        weight, bias = parameters
        kernels = list(weight.shape[2:])
        strides = expanded(stride, len(kernels))
        pads = [size // 2 for size in kernels] if padding is None else expanded(padding, len(kernels))
        inputs = [x, self.parameter(f"{module}.weight", weight)]
        if bias is not None:
            inputs.append(self.parameter(f"{module}.bias", bias))
        return self.emit(
            "Conv",
            inputs,
            module,
            shape=(x.shape[0], weight.shape[0], *pooled_sizes(x.shape, kernels, strides, pads)),
            power=1.0,
            dilations=[1] * len(kernels),
            group=groups,
            kernel_shape=kernels,
            pads=pads * 2,
            strides=strides,
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
        for graph in graphs(model.graph)
        for tensor in graph.initializer
        if tensor.data_type in floating and tensor.dims and tensor.name not in statistics
    )
