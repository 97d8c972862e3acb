"""Small graphs to time: a chain of layers that notes the work which it asks of the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ucpe_onnx.planning import kernels
from ucpe_onnx.planning.kernels import Amounts
from ucpe_onnx.runtime.target import Target

_PATTERN = np.random.default_rng(0).standard_normal(4099).astype(np.float32) * 0.05
_SCALE = 0.05
_REACH = 4


@dataclass
class Chain:
    """A graph of one input under construction, and the work in it.

    Attributes:
        target: the runtime that it is for; says what a layer is to the runtime.
        channels: of the tensor at the end of the chain.
        size: height and width of all tensors.
        threads: threads that share the work.
        work: family and amounts of every kernel so far.
        inside: whether the tensor at the end lies in the convolutions' layout.
    """

    target: Target
    channels: int
    size: int
    threads: int = 1
    work: list[tuple[str, Amounts]] = field(default_factory=list)
    inside: bool = False

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.input = (self.channels, self.size)
        self.matrix = False
        self.tensor = "x"
        if self.target.precision == "int8":
            self._constant("scale", np.float32(_SCALE))
            self._constant("zero", np.uint8(128))
            self._constant("weight_scale", np.float32(_SCALE / 10))
            self._constant("weight_zero", np.int8(0))
            self._constant("bias_scale", np.float32(_SCALE * _SCALE / 10))
            self._constant("bias_zero", np.int32(0))
            self.tensor = self._requantised("x")
        self.made = [(self.tensor, self.inside, self.channels)] * _REACH

    @property
    def positions(self) -> int:
        """Height times width."""
        return self.size * self.size

    @property
    def before(self) -> str:
        """A tensor made some layers ago, no longer in the nearest cache: what skips and joins of networks read."""
        return self.made[-_REACH][0]

    @property
    def written(self) -> int:
        """Bytes of the tensor at the end of the chain."""
        return self.channels * self.positions * self.target.element_bytes

    def model(self) -> onnx.ModelProto:
        """The graph so far."""
        shape = [1, self.input[0], self.size, self.size]
        if self.matrix:
            shape = [self.positions, self.input[0]]
        graph = helper.make_graph(
            self.nodes,
            "calibration",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(self.tensor, TensorProto.FLOAT, None)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)

    def conv(self, cout: int, kernel: int = 1) -> None:
        """A convolution with a bias, stride 1, padded to the same size."""
        self._push(*self._conv(self.tensor, cout, kernel), cout)

    def depthwise(self, kernel: int) -> None:
        """A convolution of every channel for itself."""
        self._push(*self._conv(self.tensor, self.channels, kernel, depthwise=True), self.channels)

    def clip(self) -> None:
        """A Clip that the convolution before it does, as a pass over its output."""
        self._note("fused", {"write": self.written / kernels.MEGA})
        self.made.pop()  # nothing else may read it, or the Clip would stand alone
        self._push(self._node("Clip", [self.tensor, *self._constants(-1.0, 1.0)]), self.inside, self.channels)

    def partial(self, kernel: int = 1) -> None:
        """The sum of two convolutions, which the runtime may do within the second one."""
        parts, inside = self._two_convs(self.channels, kernel)
        family = "partial" if kernel == 1 else "partial-spatial"
        if self.target.fuses_add:
            self._note(family, {"write": self.written / kernels.MEGA})
        else:
            self._note("add", kernels.moved(self.written))
        self._push(self._node("Add", parts), inside, self.channels)

    def concat(self) -> None:
        """Two convolutions to half of the channels each, joined."""
        halves, inside = self._two_convs(self.channels // 2, 1)
        self._note("concat", kernels.moved(self.written))
        self._push(self._node("Concat", halves, axis=1), inside, self.channels)

    def stack(self) -> None:
        """A Concat with an earlier tensor that lies in the same layout, if there is one, as dense blocks have it."""
        whole = [
            (tensor, channels)
            for tensor, inside, channels in self.made[: 1 - _REACH]
            if inside == self.inside and channels % self.target.joined_multiple == 0
        ]
        if whole and self.channels % self.target.joined_multiple == 0:
            earlier, more = whole[-1]
            joined = self._node("Concat", [self.tensor, earlier], axis=1)
            self._push(joined, self.inside, self.channels + more)
            self._note("concat", kernels.moved(self.written))

    def join(self) -> None:
        """A Concat with an earlier tensor, cut to the size of one again."""
        self._enter(inside=False)
        self._note("concat", kernels.moved(2 * self.written))
        both = self._node("Concat", [self.tensor, self.before], axis=1)
        self._note("slice", kernels.moved(self.written))
        self._push(self._slice(both, 0, self.channels), False, self.channels)

    def gather(self) -> None:
        """All channels in reverse; after a convolution with a reorder on either side."""
        self._enter(inside=False)
        indices = self._fresh("i")
        self._constant(indices, np.arange(self.channels, dtype=np.int64)[::-1].copy())
        self._note("gather", kernels.moved(self.written, self.channels))
        self._push(self._node("Gather", [self.tensor, indices], axis=1), False, self.channels)

    def slice_(self, channels: int) -> None:
        """The channels but the first ones."""
        self._enter(inside=False)
        start, self.channels = self.channels - channels, channels
        self._note("slice", kernels.moved(self.written))
        self._push(self._slice(self.tensor, start, start + channels), False, channels)

    def add(self) -> None:
        """The sum with an earlier tensor; no convolution made either."""
        self._enter(inside=False)
        self._note("add", kernels.moved(self.written))
        self._push(self._node("Add", [self.tensor, self.before]), False, self.channels)

    def activation(self) -> None:
        """An activation of straight pieces that nothing does on the way."""
        self._note("straight", kernels.moved(self.written))
        self._push(self._node("Relu", [self.tensor]), self.inside, self.channels)

    def normalise(self) -> None:
        """A BatchNormalization that no convolution takes in."""
        self._note("normal", kernels.moved(self.written, self.channels))
        parameters = self._parameters(1.0, 0.0, 0.0, 1.0)
        self._push(self._node("BatchNormalization", [self.tensor, *parameters]), self.inside, self.channels)

    def curved(self) -> None:
        """An activation with an exponential in it, likewise."""
        self._note("curved", kernels.moved(self.written))
        self._push(self._node("Sigmoid", [self.tensor]), self.inside, self.channels)

    def product(self, cout: int) -> None:
        """A product with a constant matrix; the positions are its rows, of which the head of a network has one."""
        self.matrix = True
        work = kernels.gemm(self.positions, self.channels, cout, element=self.target.element_bytes)
        self._note("gemm", work)
        if self.positions > 1:
            made = self._node("MatMul", [self.tensor, self._weight([self.channels, cout])])
        else:
            made = self._node("Gemm", [self.tensor, self._weight([cout, self.channels]), self._bias(cout)], transB=1)
        self._push(made, False, cout)

    def _two_convs(self, cout: int, kernel: int) -> tuple[list[str], bool]:
        """Two convolutions of the same tensor."""
        (one, inside), (other, _) = (self._conv(self.tensor, cout, kernel) for _ in range(2))
        return [one, other], inside

    def _conv(self, tensor: str, cout: int, kernel: int, *, depthwise: bool = False) -> tuple[str, bool]:
        """What a convolution makes, and whether that lies in the convolutions' layout."""
        groups = self.channels if depthwise else 1
        weight = self._weight([cout, self.channels // groups, kernel, kernel])
        bias = self._bias(cout)
        inside = self._note_conv(cout, kernel, depthwise=depthwise)
        attributes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "group": groups}
        return self._node("Conv", [tensor, weight, bias], **attributes), inside

    def _note_conv(self, cout: int, kernel: int, *, depthwise: bool) -> bool:
        target, cin, shape = self.target, self.channels, (kernel, kernel)
        shallow = cin < target.block and not depthwise
        inside = target.blocked and (shallow or cin % target.read_multiple == 0)
        self._enter(inside=inside and not shallow)
        if depthwise:
            block = target.block if inside else 1
            element = target.element_bytes
            work = kernels.depthwise_conv(
                cin, shape, self.positions, in_positions=self.positions, block=block, element=element
            )
            self._note("depthwise" if inside else "plain-depthwise", work)
        elif inside:
            work = kernels.blocked_conv(
                cin, cout, shape, self.positions, self.positions, block=target.block, threads=self.threads
            )
            self._note("shallow" if shallow else "pointwise" if kernel == 1 else "spatial", work)
        else:
            align = target.block if target.aligned else 1
            element = target.element_bytes
            work = kernels.plain_conv(cin, cout, shape, self.positions, self.positions, element=element, align=align)
            self._note("plain", work)
        return inside

    def _enter(self, *, inside: bool) -> None:
        """Note the reorder that brings the tensor into the convolutions' layout, or out of it."""
        if self.target.blocked and inside != self.inside:
            self._note("reorder", kernels.moved(self.written))
            self.inside = inside

    def _slice(self, tensor: str, start: int, end: int) -> str:
        return self._node("Slice", [tensor, *self._constants([start], [end], [1])])

    def _push(self, tensor: str, inside: bool, channels: int) -> None:
        self.tensor, self.inside, self.channels = tensor, inside, channels
        self.made.append((tensor, inside, channels))

    def _note(self, family: str, amounts: Amounts) -> None:
        self.work.append((family, amounts))

    def _node(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = self._fresh("t")
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return self._requantised(name) if self.target.precision == "int8" else name

    def _requantised(self, tensor: str) -> str:
        quantised, name = self._fresh("q"), self._fresh("d")
        self.nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [quantised]))
        self.nodes.append(helper.make_node("DequantizeLinear", [quantised, "scale", "zero"], [name]))
        return name

    def _weight(self, shape: list[int]) -> str:
        name, values = self._fresh("w"), np.resize(_PATTERN, shape)
        values.flat[0] = len(self.constants)  # of equal weights onnxruntime keeps one: they would always be in cache
        if self.target.precision != "int8":
            self._constant(name, values)
            return name
        self._constant(f"{name}_q", np.clip(values * 400, -127, 127).astype(np.int8))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "weight_scale", "weight_zero"], [name]))
        return name

    def _bias(self, count: int) -> str:
        name = self._fresh("b")
        if self.target.precision != "int8":
            self._constant(name, np.zeros(count, np.float32))
            return name
        self._constant(f"{name}_q", np.zeros(count, np.int32))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "bias_scale", "bias_zero"], [name]))
        return name

    def _constant(self, name: str, value: Any) -> None:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))

    def _parameters(self, *values: float) -> list[str]:
        """A vector for each value, with a number for each channel."""
        names = [self._fresh(f"p{index}_") for index in range(len(values))]
        for name, value in zip(names, values, strict=True):
            self._constant(name, np.full(self.channels, value, np.float32))
        return names

    def _constants(self, *values: Any) -> list[str]:
        names = []
        for value in values:
            names.append(self._fresh("v"))
            self._constant(names[-1], np.array(value, dtype=np.float32 if isinstance(value, float) else np.int64))
        return names

    def _fresh(self, prefix: str) -> str:
        return f"{prefix}{len(self.nodes)}_{len(self.constants)}"
