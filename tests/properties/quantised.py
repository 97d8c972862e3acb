"""Random quantised layers: QuantizeLinear and DequantizeLinear around floats, and operators on integers."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.properties.layers import _CHANNELS, Layers

WEIGHTS = {"codec": 1, "quantised_conv": 2, "quantised_matmul": 1, "qlinear_conv": 2, "qlinear_matmul": 1,
           "conv_integer": 1, "matmul_integer": 1, "between_integers": 2, "qgemm": 1}  # fmt: skip
"""Steps of this module, with how often they are drawn."""


class Quantised(Layers):
    """Adds quantised layers; what they make is dequantised before others use it."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.shared: list[tuple[str, tuple[int, ...]]] = []
        """Dequantised weights that another layer may share."""

    def parameters(self, count: int, kind: type, *, vary: bool = True) -> list[str]:
        """Scale and zero point, one for all or one per position."""
        if count > 1 and self.net.opset >= 13 and vary and self.flag():
            scale = self.net.random.uniform(0.005, 0.02, count).astype(np.float32)
            return [self.net.weight(scale), self.net.weight(self.net.random.integers(0, 5, count).astype(kind))]
        scale = self.pick([self.net.constant, self.net.weight])(np.float32(0.011))
        return [scale, self.net.weight(kind(self.int(0, 5)))]

    def coded(self, x: str, *, axis: int = 1, vary: bool = True) -> tuple[str, list[str]]:
        """An activation as 8-bit integers, by one scale or by one for each channel."""
        kind = self.pick([np.uint8, np.int8])
        parameters = self.parameters(self.shape(x)[axis], kind, vary=vary)
        along = {"axis": axis} if self.shape(parameters[0]) else {}
        return self.net.op("QuantizeLinear", x, *parameters, **along), parameters

    def coded_at_run_time(self, x: str) -> tuple[str, list[str]]:
        """An activation as 8-bit integers, by scale and zero point of its own least and greatest number."""
        y, *parameters = self.net.ops("DynamicQuantizeLinear", x, outputs=3)
        return y, parameters

    def decoded(self, x: str, parameters: list[str], axis: int = 1) -> str:
        along = {"axis": axis} if self.shape(parameters[0]) else {}
        return self.net.op("DequantizeLinear", x, *parameters, **along)

    def passed(self, x: str) -> str:
        y, parameters = self.coded(x)
        return self.decoded(y, parameters)

    def codec(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is not None and self.net.opset >= 10:
            self.keep(self.passed(x))

    def integers(self, shape: tuple[int, ...], kind: type = np.int8) -> str:
        return self.net.weight(self.net.random.integers(0 if kind is np.uint8 else -9, 9, shape).astype(kind))

    def weights(self, shape: tuple[int, ...], axis: int) -> str:
        """A weight behind DequantizeLinear, or behind QuantizeLinear before that; some are shared."""
        fit = [name for name, known in self.shared if known == shape]
        if fit and self.choose(4) == 3:
            return self.pick(fit)
        parameters = self.parameters(shape[axis], np.int8)
        if self.flag():
            along = {"axis": axis} if self.shape(parameters[0]) else {}
            value = self.net.op("QuantizeLinear", self.net.weight(self.net.normal(*shape) * 0.1), *parameters, **along)
        else:
            value = self.integers(shape)
        made = self.decoded(value, parameters, axis)
        self.shared.append((made, shape))
        return made

    def quantised_conv(self) -> None:
        x = self.tensor(4)
        if x is None or self.net.opset < 10:
            return
        channels, out = self.shape(x)[1], self.pick(_CHANNELS)
        groups = self.pick([1, 1, 1, *[g for g in range(2, channels + 1) if channels % g == 0 == out % g]])
        inputs = [self.passed(x) if self.flag() else x, self.weights((out, channels // groups, 1, 1), 0)]
        if self.flag():
            bias = self.net.weight(self.net.random.integers(-50, 50, out).astype(np.int32))
            scale = self.net.weight(np.full(out, 0.01, np.float32) if self.net.opset >= 13 else np.float32(0.01))
            along = {"axis": 0} if self.shape(scale) else {}
            inputs.append(self.net.op("DequantizeLinear", bias, scale, **along))
        y = self.net.op("Conv", *inputs, group=groups, name=self.name("QC"))
        self.keep(self.passed(y) if self.flag() else y)

    def quantised_matmul(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None or self.net.opset < 10:
            return
        rows, out = self.shape(x)[-1], self.pick(_CHANNELS)
        y = self.passed(x) if self.flag() else x
        if len(self.shape(x)) == 2 and self.flag():
            bias = self.net.weight(self.net.normal(out))
            self.keep(self.net.op("Gemm", y, self.weights((out, rows), 0), bias, transB=1, name=self.name("QG")))
        else:
            self.keep(self.net.op("MatMul", y, self.weights((rows, out), 1), name=self.name("QM")))

    def qlinear_conv(self) -> None:
        """One or two of them, the second on the first's integers."""
        x = self.tensor(4)
        if x is None or self.net.opset < 10:
            return
        y, parameters = self.coded(x, vary=False)
        kind = self.net.constants[parameters[1]].dtype.type
        for _ in range(self.int(1, 2)):
            channels, out = self.shape(y)[1], self.pick(_CHANNELS)
            groups = self.pick([1, 1, *[g for g in range(2, channels + 1) if channels % g == 0 == out % g]])
            weight = [self.integers((out, channels // groups, 1, 1)), *self.parameters(out, np.int8)]
            made = self.parameters(1, kind)
            bias = [self.net.weight(self.net.random.integers(-50, 50, out).astype(np.int32))] * self.choose(2)
            y = self.net.op(
                "QLinearConv", y, *parameters, *weight, *made, *bias, group=groups, name=self.name("QLinearConv")
            )
            parameters = made
        self.keep(self.decoded(y, parameters))

    def qlinear_matmul(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None or self.net.opset < 10:
            return
        y, parameters = self.coded(x, vary=False)
        kind = self.net.constants[parameters[1]].dtype.type
        weight = [self.integers((self.shape(x)[-1], self.pick(_CHANNELS)), kind), *self.parameters(1, kind)]
        made = self.parameters(1, kind)
        self.keep(self.decoded(self.net.op("QLinearMatMul", y, *parameters, *weight, *made), made))

    def conv_integer(self) -> None:
        x = self.tensor(4)
        if x is None or self.net.opset < 10:
            return
        scaled = self.net.op("Mul", x, self.net.constant(0.02))
        dynamic = self.knows("DynamicQuantizeLinear") and self.flag()
        y, parameters = self.coded_at_run_time(scaled) if dynamic else self.coded(scaled, vary=False)
        kind = np.uint8 if dynamic else self.net.constants[parameters[1]].dtype.type
        weight = self.integers((self.pick(_CHANNELS), self.shape(x)[1], 1, 1), kind)
        zero = [self.net.weight(kind(3))] * self.choose(2)
        self._as_float(self.net.op("ConvInteger", y, weight, parameters[1], *zero, name=self.name("I")))

    def matmul_integer(self) -> None:
        x = self.tensor(good=lambda s: len(s) >= 2)
        if x is None or self.net.opset < 10:
            return
        dynamic = self.knows("DynamicQuantizeLinear") and self.flag()
        y, parameters = self.coded_at_run_time(x) if dynamic else self.coded(x, vary=False)
        kind = np.uint8 if dynamic else self.net.constants[parameters[1]].dtype.type
        width = self.pick(_CHANNELS)
        zero = [[], [self.net.weight(kind(2))], [self.integers((width,), kind)]][self.choose(3)]
        weight = self.integers((self.shape(x)[-1], width), kind)
        self._as_float(self.net.op("MatMulInteger", y, weight, parameters[1], *zero, name=self.name("I")))

    def _as_float(self, x: str) -> None:
        self.keep(self.net.op("Mul", self.net.op("Cast", x, to=TensorProto.FLOAT), self.net.constant(0.01)))

    # com.microsoft

    def integer_op(self, op_type: str, *inputs: str, shape: tuple[int, ...], kind: int, **attributes: object) -> str:
        made = {"domain": "com.microsoft", "shapes": [shape], "elem_type": kind}
        return self.net.ops(op_type, *inputs, **made, **attributes)[0]

    def between_integers(self) -> None:
        """What stands between quantised convolutions: sums, pools, activations and joins of 8-bit integers."""
        x = self.tensor(4, lambda s: min(s[2:]) > 1)
        if x is None or self.net.opset < 10:
            return
        other = self.tensor(4, lambda s: s == self.shape(x)) or x
        (a, first), (b, second) = self.coded(x, vary=False), self.coded(other, vary=False)
        kind = self.net.elem_type(a)
        if self.net.elem_type(b) != kind:
            b, second = a, first
        made = self.parameters(1, self.net.constants[first[1]].dtype.type)
        n, c, h, w = self.shape(x)
        op_type = self.pick(["Add", "Mul", "Concat", "LeakyRelu", "Sigmoid", "AveragePool", "GlobalAveragePool"])
        forms = {
            "Concat": ([*made, a, *first, b, *second], (n, 2 * c, h, w), {"axis": 1}),
            "AveragePool": ([a, *first, *made], (n, c, h - 1, w - 1), {"kernel_shape": [2, 2]}),
            "GlobalAveragePool": ([a, *first, *made], (n, c, 1, 1), {"channels_last": 0}),
            "LeakyRelu": ([a, *first, *made], (n, c, h, w), {"alpha": 0.1}),
            "Sigmoid": ([a, *first, *made], (n, c, h, w), {}),
        }
        inputs, shape, more = forms.get(op_type, ([a, *first, b, *second, *made], (n, c, h, w), {}))
        y = self.integer_op(f"QLinear{op_type}", *inputs, shape=shape, kind=kind, **more)
        self.keep(self.decoded(y, made))

    def qgemm(self) -> None:
        x = self.tensor(2)
        if x is None or self.net.opset < 10:
            return
        y, parameters = self.coded(x, vary=False)
        rows, out, transposed = self.shape(x)[1], self.pick(_CHANNELS), self.choose(2)
        kind = self.net.constants[parameters[1]].dtype.type
        weight = [self.integers((out, rows) if transposed else (rows, out), kind), *self.parameters(out, kind)]
        bias = self.net.weight(self.net.random.integers(-50, 50, out).astype(np.int32)) if self.flag() else ""
        made = self.parameters(1, kind) if self.flag() else []
        shape = (self.shape(x)[0], out)
        elem_type = self.net.elem_type(y) if made else TensorProto.FLOAT
        inputs = [y, *parameters, *weight, bias, *made]
        z = self.integer_op("QGemm", *inputs, shape=shape, kind=elem_type, transB=transposed, name=self.name("QG"))
        self.keep(self.decoded(z, made) if made else z)
