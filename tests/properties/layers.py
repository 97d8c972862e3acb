"""Random layers: convolutions, elementwise operators, normalisation and pools, on whatever tensors there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import onnx

from tests.builders import Net

T = TypeVar("T")
Choose = Callable[[int], int]
"""Some number below the given one: all randomness of the graphs, so that hypothesis or a seed may provide it."""

_OPSETS = (17, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18, 18, 19, 20, 21, 23, 24)
_CHANNELS = (1, 2, 3, 4, 5, 6, 8, 8, 12, 16, 20, 32)
_UNARY = [
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Neg", "Abs", "Softplus", "Elu", "Erf", "Cos", "Identity", "Dropout",
    "Softsign", "HardSigmoid", "Selu",
]  # fmt: skip
_MOST_ELEMENTS = 3000


class Layers:
    """Adds random layers to a net; knows which tensors there are to build on.

    Args:
        choose: makes all choices.
        net: the net.
    """

    def __init__(self, choose: Choose, net: Net) -> None:
        self.choose, self.net = choose, net
        self.tensors: list[str] = []
        self.kernels: list[str] = []
        """Convolution weights that another convolution may share."""

    # Drawing

    def pick(self, choices: Iterable[T]) -> T:
        given = list(choices)
        return given[self.choose(len(given))]

    def int(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)

    def flag(self) -> bool:
        return bool(self.choose(2))

    def permuted(self, values: Sequence[T]) -> list[T]:
        left = list(values)
        return [left.pop(self.choose(len(left))) for _ in range(len(left))]

    def knows(self, op_type: str) -> bool:
        """Whether the net's opset has an operator."""
        return (
            onnx.defs.has(op_type, self.net.opset, "") and not onnx.defs.get_schema(op_type, self.net.opset).deprecated
        )

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front or, where the opset knows that, from the back."""
        return axis - rank if self.net.opset >= 11 and self.flag() else axis

    def tensor(self, rank: int | None = None, good: Callable[[tuple], bool] = lambda shape: True) -> str | None:
        """Some tensor; later ones more often, so that graphs get deep."""
        fit = [
            t for t in self.tensors if (rank is None or len(self.net.shapes[t]) == rank) and good(self.net.shapes[t])
        ]
        if not fit:
            return None
        return self.pick(fit) if self.flag() else fit[-1]

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.net.shapes[tensor]

    def name(self, op_type: str) -> str:
        """A node name or none."""
        return self.pick([f"{op_type}{len(self.net.nodes)}", ""])

    def keep(self, *tensors: str | None) -> None:
        """Make tensors available to later operators."""
        for tensor in tensors:
            if tensor and np.prod(self.shape(tensor)) <= _MOST_ELEMENTS:
                self.tensors.append(tensor)

    # Weights

    def hidden(self, value: np.ndarray) -> str:
        """A weight as an initializer, or behind nodes that compute it from constants."""
        net = self.net
        kind = self.pick(["initializer"] * 5 + ["Constant", "Identity", "Transpose", "Mul", "DequantizeLinear"])
        if kind == "DequantizeLinear" and net.opset >= 13:  # stays a node, so the weight is one at run time
            return net.op(kind, net.weight((value * 50).astype(np.int8)), net.weight(np.float32(0.02)))
        if kind in ("initializer", "DequantizeLinear"):
            return net.weight(value)
        if kind == "Constant":
            return net.constant(value)
        if kind == "Identity" or (kind == "Transpose" and not value.ndim):
            return net.op("Identity", net.weight(value))
        if kind == "Mul":
            return net.op("Mul", net.weight(value), net.constant(np.float32(0.5)))
        axes = list(range(value.ndim))[::-1]
        return net.op("Transpose", net.weight(value.transpose(axes)), perm=axes)

    # Convolutions

    def conv(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        channels = self.shape(x)[1]
        shared = [w for w in self.kernels if self.net.shapes[w][1] == channels]
        if shared and self.flag():
            weight = self.pick(shared)
        else:
            k = self.pick([1, 1, 3])
            weight = self.hidden(self.net.normal(self.pick(_CHANNELS), channels, k, k))
            self.kernels.append(weight)
        stride = self.pick([1, 1, 2])
        self.keep(self.net.conv_with(x, weight, bias=self.flag(), name=self.name("Conv"), strides=[stride, stride]))

    def conv_1d(self) -> None:
        x = self.tensor(3)
        if x is not None:
            groups = self.pick([1, 1, self.shape(x)[1]])
            out = self.pick(_CHANNELS) if groups == 1 else groups * self.int(1, 2)
            self.keep(self.net.conv(x, out, self.pick([1, 3]), groups=groups, name=self.name("Conv")))

    def grouped_conv(self) -> None:
        x = self.tensor(4, lambda s: s[1] > 1)
        if x is None:
            return
        channels = self.shape(x)[1]
        groups = self.pick([g for g in range(2, channels + 1) if channels % g == 0])
        self.keep(self.net.conv(x, groups * self.int(1, 3), groups=groups, name=self.name("Conv")))

    def depthwise(self) -> None:
        x = self.tensor(4, lambda s: s[1] > 1)
        if x is not None:
            self.keep(self.net.depthwise(x, self.pick([1, 1, 2]), self.pick([1, 3])))

    def conv_transpose(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        channels = self.shape(x)[1]
        groups = self.pick([1, 1, *[g for g in range(2, channels + 1) if channels % g == 0]])
        out = self.pick(_CHANNELS) if groups == 1 else self.int(1, 2)
        inputs = [x, self.hidden(self.net.normal(channels, out, 2, 2))]
        inputs += [self.net.weight(self.net.normal(out * groups))] if self.flag() else []
        self.keep(self.net.op("ConvTranspose", *inputs, group=groups, strides=[2, 2], name=self.name("ConvTranspose")))

    def squeeze_excite(self) -> None:
        x = self.tensor(4)
        if x is not None:
            gate = self.net.op("GlobalAveragePool", x)
            gate = self.net.op("Relu", self.net.conv(gate, self.pick(_CHANNELS)))
            gate = self.net.op("Sigmoid", self.net.conv(gate, self.shape(x)[1]))
            self.keep(self.net.op("Mul", *self.permuted([x, gate])))

    def reader(self) -> None:
        """Two convolutions that read the same tensor: where unconstrained masks differ."""
        x = self.tensor(4)
        if x is not None:
            self.keep(*[self.net.conv(x, self.pick(_CHANNELS)) for _ in range(2)])

    def head(self, x: str) -> str:
        """Something that reads the channels, so that these are not the graph's output themselves."""
        if len(self.shape(x)) < 2:
            return x
        if len(self.shape(x)) == 2:
            return self.net.gemm(x, 2)
        return self.net.conv(x, 2) if len(self.shape(x)) == 4 else self.linear_on(x)

    # Elementwise

    def unary(self) -> None:
        x = self.tensor()
        if x is not None:
            op_type = self.pick(_UNARY + ["Gelu"] * (self.net.opset >= 20) + ["HardSwish"] * (self.net.opset >= 14))
            self.keep(self.net.op(op_type, x, name=self.name(op_type)))

    def clip(self) -> None:
        x = self.tensor()
        if x is None:
            return
        if self.net.opset < 11:
            self.keep(self.net.op("Clip", x, min=-1.0, max=1.0))
        else:
            self.keep(self.net.op("Clip", x, self.net.constant(np.float32(-1)), self.net.weight(np.float32(1))))

    def prelu(self) -> None:
        x = self.tensor(4)
        if x is not None:
            channels = self.shape(x)[1]
            self.keep(
                self.net.op("PRelu", x, self.hidden(self.net.normal(*self.pick([(channels, 1, 1), (1,), (1, 1, 1)]))))
            )

    def with_constant(self) -> None:
        x = self.tensor()
        if x is None:
            return
        shape = list(self.shape(x))
        shape = [d if self.flag() else 1 for d in shape][self.int(0, len(shape)) :]
        value = self.net.normal(*shape)
        other = self.hidden(value)
        op_type = self.pick(["Add", "Mul", "Sub", "Max", "Min"])
        self.keep(self.net.op(op_type, *self.permuted([x, other])))

    def spread(self) -> None:
        """A constant that broadcasts the activation, so that channels come from the constant."""
        x = self.tensor(4, lambda s: s[1] == 1)
        if x is not None:
            self.keep(self.net.op("Add", x, self.hidden(self.net.normal(1, self.pick(_CHANNELS), 1, 1))))

    def two(self) -> None:
        """An operator on two activations; the second is made to fit if none does."""
        x = self.tensor(4)
        if x is None:
            return
        n, c, h, w = self.shape(x)
        y = self.tensor(4, lambda s: s[0] in (1, n) and s[1] in (1, c) and s[2] in (1, h) and s[3] in (1, w))
        if y == x and self.flag():
            source = self.tensor(4, lambda s: (s[0], *s[2:]) == (n, h, w))
            y = self.net.conv(source or x, c)
        op_type = self.pick(["Add", "Add", "Mul", "Sub", "Max", "Sum"])
        self.keep(self.net.op(op_type, *self.permuted([x, y or x]), name=self.name(op_type)))

    def where(self) -> None:
        x = self.tensor(4)
        if x is not None:
            channels = self.shape(x)[1]
            condition = self.net.weight(self.net.random.random((channels, 1, 1)) < 0.5)
            other = self.pick([x, self.net.weight(np.float32(0.25)), self.net.conv(x, channels)])
            self.keep(self.net.op("Where", condition, x, other))

    # Normalisation

    def normalise(self) -> None:
        x = self.tensor(4)
        if x is None:
            return
        channels = self.shape(x)[1]
        op_type = self.pick(["BatchNormalization", "BatchNormalization", "InstanceNormalization", "LRN"])
        if op_type == "BatchNormalization":
            self.keep(self.net.batch_norm(x))
        elif op_type == "LRN":
            self.keep(self.net.op("LRN", x, size=3))
        else:
            scale, bias = (self.hidden(self.net.normal(channels)) for _ in range(2))
            self.keep(self.net.op("InstanceNormalization", x, scale, bias, epsilon=0.1))

    def softmax(self) -> None:
        x = self.tensor()
        if x is not None:
            op_type = self.pick(["Softmax", "LogSoftmax"])
            self.keep(self.net.op(op_type, x, axis=self.axis(self.int(0, len(self.shape(x)) - 1), len(self.shape(x)))))

    def layer_norm(self) -> None:
        x = self.tensor()
        if x is not None and self.net.opset >= 17:
            rank = len(self.shape(x))
            axis = self.int(max(1, rank - 2), rank - 1)
            shape = self.shape(x)[axis:]
            scale = self.net.weight(self.net.normal(*shape))
            op_type = self.pick(["LayerNormalization", *["RMSNormalization"] * self.knows("RMSNormalization")])
            self.keep(self.net.op(op_type, x, scale, axis=self.pick([axis, axis - rank]), epsilon=0.1))

    # Pools and reductions

    def pool(self) -> None:
        x = self.tensor(4, lambda s: min(s[2:]) >= 2)
        if x is not None:
            op_type = self.pick(["MaxPool", "AveragePool"])
            self.keep(self.net.op(op_type, x, kernel_shape=[2, 2], strides=[self.int(1, 2)] * 2))

    def global_pool(self) -> None:
        x = self.tensor(4)
        if x is not None:
            self.keep(self.net.op(self.pick(["GlobalAveragePool", "GlobalMaxPool"]), x))

    def reduce(self) -> None:
        x = self.tensor(good=lambda s: len(s) > 2)
        if x is not None:
            rank = len(self.shape(x))
            axes = [self.axis(axis, rank) for axis in self.pick([[2, 3], [1], [2], [3]] if rank == 4 else [[1], [2]])]
            keepdims = int(self.flag())
            y = self.net.reduce(self.pick(["ReduceMean", "ReduceMax", "ReduceSum"]), x, axes, keepdims)
            self.keep(y)
