"""Predicted times of a model's nodes in microseconds, by the number of channels that they read, make or carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import CONVOLUTIONS, FUSING, GATES, LAYER_OPS, channel_axis
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.structure import Consumer, Trace
from ucpe_onnx.analysis.tracer import WeightUse
from ucpe_onnx.planning.rates import Rates
from ucpe_onnx.runtime.target import Target

FloatArray: TypeAlias = npt.NDArray[np.float64]

_NOMINAL = 28
"""Length assumed for a spatial axis that is dynamic."""

_SINGLE = 0.5
"""What onnxruntime's Gather takes for a piece of one element, over a larger one: 3 ns, with 6.5 for those of images."""

_FREE = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear", "Concat"})
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
"""What onnxruntime lets a convolution do; all but Relu are a pass over its output."""
_CURVED = frozenset({"Erf", "Exp", "Gelu", "Log", "Mish", "Sigmoid", "Softplus", "Swish", "Tanh"})


@dataclass(frozen=True)
class Costs:
    """What nodes cost on a target.

    Attributes:
        trace: the analysed model.
        target: the runtime.
        rates: of its kernels.
        made: the expected number of channels of an axis in the emitted graph.
        kept: how many channels each consumer keeps.
    """

    trace: Trace
    target: Target
    rates: Rates
    made: Callable[[AxisKey], int]
    kept: Mapping[str, int]

    def blocked(self, tensor: str) -> bool:
        """Whether a tensor lies in the blocked layout."""
        return self.target.blocked and len(self.trace.graph.shape(tensor) or ()) == 4

    def positions(self, tensor: str, axis: int) -> int:
        """Elements of a tensor for each channel."""
        dims = list(self.trace.graph.shape(tensor) or ())
        del dims[axis : axis + 1]
        return max(1, _elements(dims, skip_batch=axis != 0))

    def bytes(self, tensor: str, axis: int) -> int:
        """Bytes of a tensor for each channel."""
        return self.positions(tensor, axis) * self.target.element_bytes

    def reads_us(self, consumer: Consumer, channels: IntArray) -> FloatArray:
        """Time of a consumer, by the channels that it reads."""
        use = consumer.use
        out = next((name for name in use.node.outputs if name), "")
        made = self._made_by(use.node)
        return self._node_us(use, channels, np.full(channels.shape, made), str(use.tensor_axis[0]), out)

    def makes_us(self, use: WeightUse, channels: IntArray) -> FloatArray:
        """Time of a producer, by the channels that it makes."""
        read = self._read_by(use.node)
        return self._node_us(use, np.full(channels.shape, read), channels, use.node.inputs[0], str(use.tensor_axis[0]))

    def layer_us(self, use: WeightUse, read: IntArray, made: IntArray) -> FloatArray:
        """Time of a layer, by the channels that it reads and makes."""
        out = next((name for name in use.node.outputs if name), "")
        return self._node_us(use, read, made, use.node.inputs[0], out)

    def carries_us(self, node: Node, axis: AxisKey, channels: IntArray) -> FloatArray:
        """Time of an operator that hands channels on, by their number; what a convolution does on the way is cheap."""
        tensor = str(axis[0])
        if node.op_type in _FREE or node.op_type in GATES:  # the last state of a layer that costs what it does
            return np.zeros(channels.shape)
        written = channels * max(self.bytes(tensor, axis[1]), self.bytes(node.inputs[0], axis[1]))
        if self._is_fused(node):
            cheap = node.op_type not in _ACTIVATIONS or node.op_type == "Relu"
            return np.zeros(channels.shape) if cheap else _floats(self.rates.fused_us(written))
        if node.op_type in CONVOLUTIONS or self._is_depthwise(node):
            kernel = self._kernel(node) if node.op_type in CONVOLUTIONS else (1, 1)
            read = self.positions(node.inputs[0], 1)
            return _floats(self.rates.depthwise_us(channels, kernel, self.positions(tensor, 1), read))
        if node.op_type in ("Add", "Sum", "Mul", "Sub"):
            return _floats(self.rates.add_us(written))
        if node.op_type == "BatchNormalization":
            return _floats(self.rates.normal_us(written, channels))
        return _floats(self.rates.pointwise_us(written, curved=node.op_type in _CURVED))

    def calls(self, nodes: Iterable[Node]) -> int:
        """How many of the nodes are kernels of their own."""
        return sum(node.op_type not in _FREE and not self._is_fused(node) for node in nodes)

    def part_us(self, consumer: Consumer, channels: int) -> float:
        """What one more term of a sum costs a consumer that reads so many channels in all."""
        use = consumer.use
        halves, whole = self.reads_us(consumer, np.array([max(channels // 2, 1), max(channels, 1)]))
        out = next(name for name in use.node.outputs if name)
        made, rank = self._made_by(use.node), len(self.trace.graph.shape(out) or ())
        positions = self.positions(out, channel_axis(use.node.op_type, rank))
        kernel = self._kernel(use.node) if use.node.op_type in CONVOLUTIONS else (1, 1)
        further = float(self.rates.partial_us(made, positions, kernel))
        if self._adds_already(use.node):
            further = float(self.rates.add_us(made * positions * self.target.element_bytes))
        return max(0.0, float(2 * halves - whole)) + further

    def gather_us(self, tensor: str, axis: int, channels: int) -> float:
        """A Gather of so many channels: it copies a piece for each of them and each position in front of the axis."""
        dims = list(self.trace.graph.shape(tensor) or ())
        pieces = channels * _elements(dims[:axis], skip_batch=axis != 0)
        single = _elements(dims[axis + 1 :], skip_batch=False) == 1
        written = float(channels * self.bytes(tensor, axis))
        return float(self.rates.gather_us(written, pieces * _SINGLE if single else pieces))

    def selects_us(self, tensor: str, axis: int, emitted: int, kept: int) -> float:
        """A selection of so many channels from those that are emitted, with the changes of layout around it."""
        each = self.bytes(tensor, axis)
        reorders = sum(self.reorder_us(tensor, float(width * each)) for width in (emitted, kept))
        return self.gather_us(tensor, axis, kept) + reorders

    def slice_us(self, written: float) -> float:
        """A Slice."""
        return float(self.rates.slice_us(written))

    def concat_us(self, written: float) -> float:
        """A Concat."""
        return float(self.rates.concat_us(written))

    def reorder_us(self, tensor: str, written: float) -> float:
        """A change of layout, of a tensor that lies in the blocked one; else none."""
        return float(self.rates.reorder_us(written)) if self.blocked(tensor) else 0.0

    def reorders_us(self, tensor: str, axis: int, channels: IntArray) -> FloatArray:
        """A change of layout, by the number of channels of the tensor."""
        if not self.blocked(tensor):
            return np.zeros(channels.shape)
        us = _floats(self.rates.reorder_us(_floats(channels * self.bytes(tensor, axis))))
        return np.broadcast_to(us, channels.shape)

    def _node_us(self, use: WeightUse, cin: IntArray, cout: IntArray, data: str, out: str) -> FloatArray:
        node = use.node
        if node.op_type in CONVOLUTIONS:
            read, made = self.positions(data, 1), self.positions(out, 1)
            groups = max(use.groups, 1)
            cin, cout = (-(-np.maximum(channels, 1) // groups) * groups for channels in (cin, cout))
            if LAYER_OPS[node.op_type].transposed:
                return _floats(self.rates.transposed_us(cin, cout, self._kernel(node), made, read, groups=groups))
            us = self.rates.conv_us(cin, cout, self._kernel(node), made, read, groups=groups)
            return _floats(us + self._out_of_layout_us(data, cin, groups))
        if node.op_type in GATES:
            return self._recurrent_us(use, cin, GATES[node.op_type] * cout)
        rows = self.positions(out, len(self.trace.graph.shape(out) or ()) - 1)
        return _floats(self.rates.gemm_us(rows, cin, cout))

    def _recurrent_us(self, use: WeightUse, cin: IntArray, cout: IntArray) -> FloatArray:
        """A product for all steps at once of what a recurrent layer reads; one for each step of its recurrence."""
        node, graph = use.node, self.trace.graph
        lengths = (graph.shape(node.inputs[0]) or (None, None))[:2]
        time, samples = reversed(lengths) if node.attributes.get("layout", 0) else lengths
        steps, batch = time if isinstance(time, int) else _NOMINAL, samples if isinstance(samples, int) else 1
        directions = 2 if node.attributes.get("direction") == b"bidirectional" else 1
        if use.recurrence:
            return _floats(directions * steps * self.rates.gemm_us(batch, cin, cout))
        return _floats(directions * self.rates.gemm_us(steps * batch, cin, cout))

    def _out_of_layout_us(self, data: str, cin: IntArray, groups: int) -> Any:
        """A convolution that reads few channels reads them from the plain layout: what it costs to bring them there."""
        if groups > 1 or not self.blocked(data) or data not in self.trace.graph.makers:
            return 0.0
        written = cin * self.bytes(data, 1)
        return np.where(cin < self.target.minimum, self.rates.reorder_us(written), 0.0)

    def _kernel(self, node: Node) -> tuple[int, int]:
        shape = self.trace.graph.shape(node.inputs[LAYER_OPS[node.op_type].weight]) or ()
        lengths = [size if isinstance(size, int) else 1 for size in shape[2:]]
        return (math.prod(lengths[:-1]), lengths[-1]) if lengths else (1, 1)

    def _made_by(self, node: Node) -> int:
        use = self._producers.get(node.index)
        if use is not None:
            return max(self.made(use.tensor_axis), 1)
        shape = self.trace.graph.shape(next((name for name in node.outputs if name), "")) or ()
        return shape[-1] if shape and isinstance(shape[-1], int) else 1

    def _read_by(self, node: Node) -> int:
        return max(self.kept.get(node.name, 1), 1)

    @cached_property
    def _producers(self) -> Mapping[int, WeightUse]:
        return {use.node.index: use for use in self.trace.producers}

    def _is_fused(self, node: Node) -> bool:
        """Whether onnxruntime lets another kernel, mostly the convolution in front, do the node's work."""
        if node.op_type == "BatchNormalization":
            return self._from_convolution(node.inputs[0])
        if node.op_type in _ACTIVATIONS:
            return self._from_convolution(node.inputs[0], through=("BatchNormalization", "Add"))
        if node.op_type == "Add" and self.target.fuses_add:
            return any(self._from_convolution(name, through=("BatchNormalization",)) for name in node.inputs)
        return node.op_type == "Mul" and self._is_swish(node)

    def _adds_already(self, node: Node) -> bool:
        """Whether a convolution does an Add that it can't do any more once it adds the terms of a sum."""
        out = next(name for name in node.outputs if name)
        readers = [reader for reader, _ in self.trace.graph.readers[out]]
        if len(readers) != 1 or not self.target.fuses_add:
            return False
        if readers[0].op_type == "BatchNormalization":
            return self._adds_already(readers[0])
        others = [name for name in readers[0].inputs if name != out]
        return readers[0].op_type == "Add" and not any(
            self._from_convolution(name, through=("BatchNormalization",)) for name in others
        )

    def _is_swish(self, node: Node) -> bool:
        """Whether a node is the product in ``x * sigmoid(x)``, of which onnxruntime makes one kernel."""
        makers = [self.trace.graph.makers.get(name) for name in node.inputs]
        return any(
            maker is not None and maker.op_type == "Sigmoid" and maker.inputs[0] in node.inputs for maker in makers
        )

    def _is_depthwise(self, node: Node) -> bool:
        """Whether onnxruntime makes a normalisation that no convolution does a depthwise one, 1x1."""
        return node.op_type == "BatchNormalization" and self.blocked(node.outputs[0])

    def _from_convolution(self, tensor: str, through: tuple[str, ...] = ()) -> bool:
        maker = self.trace.graph.makers.get(tensor)
        if maker is None or len(self.trace.graph.readers[tensor]) != 1:
            return False
        if maker.op_type in through:
            return self._is_fused(maker) or self._is_depthwise(maker)
        return maker.op_type in FUSING


def _floats(us: Any) -> FloatArray:
    return np.asarray(us, dtype=np.float64)


def _elements(dims: list[int | str | None], *, skip_batch: bool) -> int:
    known = [d if isinstance(d, int) else _NOMINAL for d in dims]
    if skip_batch and dims and not isinstance(dims[0], int):
        known[0] = 1
    return math.prod(known)
