"""What layers cost by the channels that they read and make: multiply-accumulates, parameters, or predicted time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.analysis.tracer import WeightUse
from ucpe_onnx.planning.cost import Costs

_NOMINAL = 28


class Prices(Protocol):
    """Costs of one kind."""

    def layer(self, use: WeightUse, read: int, made: int) -> float:
        """A layer that reads and makes so many channels."""

    def carried(self, segment: Segment, share: float) -> float:
        """The operators that hand a segment's channels on, if this share of them is left."""

    def selection(self, consumer: Consumer, emitted: int, kept: int) -> float:
        """What it costs a consumer to select what it keeps from what is emitted."""


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates or parameters.

    Attributes:
        trace: the analysed model.
        parameters: count weights, not operations.
    """

    trace: Trace
    parameters: bool = False

    def layer(self, use: WeightUse, read: int, made: int) -> float:
        """Of a layer with a weight (C_out, C_in / groups, K...): the elements, times output positions."""
        graph = self.trace.graph
        weight = graph.shape(use.weight) or ()
        out = next((name for name in use.node.outputs if name), "")
        shape = [d if isinstance(d, int) else _NOMINAL for d in graph.shape(out) or ()]
        convolution = "Conv" in use.node.op_type
        taps = math.prod(d if isinstance(d, int) else 1 for d in weight[2:]) if convolution else 1
        elements = read * made * taps / max(use.groups, 1)
        if self.parameters:
            return elements + made
        return elements * math.prod(shape[2:] if convolution else shape[1:-1])

    def carried(self, segment: Segment, share: float) -> float:
        """Of depthwise convolutions."""
        return share * sum(self._depthwise(node) for node in carriers(self.trace, segment))

    def selection(self, consumer: Consumer, emitted: int, kept: int) -> float:
        """None."""
        return 0.0

    def _depthwise(self, node: Node) -> float:
        if node.op_type != "Conv":
            return 0.0
        weight = self.trace.graph.shape(node.inputs[1]) or ()
        out = self.trace.graph.shape(node.outputs[0]) or ()
        elements = math.prod(d if isinstance(d, int) else 1 for d in weight)
        positions = math.prod(d if isinstance(d, int) else _NOMINAL for d in out[2:])
        return float(elements if self.parameters else elements * positions)


@dataclass(frozen=True)
class Time:
    """Predicted microseconds.

    Attributes:
        costs: what nodes cost on the target.
    """

    costs: Costs

    @cached_property
    def _carriers(self) -> dict[int, list[Node]]:
        return {}

    def layer(self, use: WeightUse, read: int, made: int) -> float:
        """By the rates of onnxruntime's kernels."""
        return float(self.costs.layer_us(use, np.array([read]), np.array([made]))[0])

    def carried(self, segment: Segment, share: float) -> float:
        """By the rates, too."""
        trace, total = self.costs.trace, 0.0
        if segment.id not in self._carriers:
            self._carriers[segment.id] = carriers(trace, segment)
        for node in self._carriers[segment.id]:
            axis = _axis_of(trace, segment, node)
            width = max(1, round(share * trace.slots.axes[axis].size))
            total += float(self.costs.carries_us(node, axis, np.array([width]))[0])
        return total

    def selection(self, consumer: Consumer, emitted: int, kept: int) -> float:
        """A Gather, with the changes of layout around it."""
        if kept >= emitted:
            return 0.0
        tensor, axis = consumer.use.tensor_axis
        each = self.costs.bytes(str(tensor), axis)
        reorders = sum(self.costs.reorder_us(str(tensor), float(width * each)) for width in (emitted, kept))
        return self.costs.gather_us(float(kept * each), kept) + reorders


def carriers(trace: Trace, segment: Segment) -> list[Node]:
    """The nodes that hand a segment's channels on, each once: those that make them are no such nodes."""
    made = {use.tensor_axis for use in trace.producers}
    found: dict[int, Node] = {}
    for axis in segment.axes:
        node = trace.graph.makers.get(axis[0]) if isinstance(axis[0], str) else None
        if node is not None and axis not in made:
            found.setdefault(node.index, node)
    return list(found.values())


def _axis_of(trace: Trace, segment: Segment, node: Node) -> AxisKey:
    outputs = set(node.outputs)
    return next(axis for axis in segment.axes if axis[0] in outputs)
