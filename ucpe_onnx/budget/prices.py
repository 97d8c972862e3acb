"""What layers cost by the channels that they read and make: multiply-accumulates, parameters, or predicted time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.counts import holds_weights, products_of
from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.shared_weights import origin
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.analysis.tracer import WeightUse
from ucpe_onnx.model.limits import all_tensors
from ucpe_onnx.planning.cost import Costs

_NOMINAL = 28
"""Length assumed for an axis that is dynamic, unless it is the first: that counts samples."""

Emitted: TypeAlias = npt.NDArray[np.bool_]


class Prices(Protocol):
    """Costs of one kind."""

    def layer(self, use: WeightUse, read: int, made: int) -> float:
        """A layer that reads and makes so many channels."""

    def carried(self, segment: Segment, emitted: Emitted) -> float:
        """What hands a segment's channels on, if these of its slots are left, shape (slots,)."""

    def selection(self, consumer: Consumer, emitted: int, kept: int) -> float:
        """What it costs a consumer to select what it keeps from what is emitted."""

    def rest(self, chosen: Collection[int]) -> float:
        """What is neither a layer nor handed on in one of these segments, and costs what it does whatever goes."""


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates or parameters, as :mod:`ucpe_onnx.analysis.counts` counts them.

    Attributes:
        trace: the analysed model.
        parameters: count weights, not operations.
    """

    trace: Trace
    parameters: bool = False

    def layer(self, use: WeightUse, read: int, made: int) -> float:
        """In proportion to both; a bias is not the layer's, but goes with the channels that it is added to."""
        consumer, maker = self.trace.consumers.get(use.name), self._makers.get(use.node.index)
        cost = self._share_of(use) if self.parameters else float(self._operations_of(use))
        if consumer is not None:
            cost *= read / max(consumer.channels, 1)
        return cost if maker is None else cost * made / max(self.trace.slots.axes[maker.tensor_axis].size, 1)

    def carried(self, segment: Segment, emitted: Emitted) -> float:
        """Of depthwise convolutions and their like; or of all constants with an entry for each channel."""
        return math.fsum(cost * float(emitted[slots].mean()) for cost, slots in self._shares(segment))

    def selection(self, consumer: Consumer, emitted: int, kept: int) -> float:
        """None."""
        return 0.0

    def rest(self, chosen: Collection[int]) -> float:
        """What the model costs, less what is accounted for."""
        graph = self.trace.graph
        uses = self._uses
        if self.parameters:
            known = math.fsum(self._share_of(use) for use in uses.values())
            stored = (math.prod(t.dims) for t in all_tensors(graph.model) if holds_weights(t))
            total = float(sum(stored))
        else:
            known = math.fsum(self._operations_of(use) for use in uses.values())
            total = math.fsum(sum(self._operations(node)) for node in graph.nodes)
        segments = (self.trace.segments[number] for number in chosen)
        return total - known - math.fsum(cost for segment in segments for cost, _ in self._shares(segment))

    @cached_property
    def _uses(self) -> dict[str, WeightUse]:
        """Every layer by its name, and every recurrence."""
        makers = {use.name: use for use in self._makers.values()}
        return {**makers, **{name: consumer.use for name, consumer in self.trace.consumers.items()}}

    def _share_of(self, use: WeightUse) -> float:
        """A layer's part of its weight's elements: if several layers read it, they are there once."""
        return self._elements(use.weight) / self._readers[origin(self.trace.graph, use.weight).name]

    @cached_property
    def _readers(self) -> Counter[str]:
        """How many layers there are for each weight."""
        return Counter(origin(self.trace.graph, use.weight).name for use in self._uses.values())

    @cached_property
    def _held_by(self) -> Counter[str]:
        """How many segments have channels that a constant has entries for."""
        graph, found = self.trace.graph, Counter[str]()
        for segment in self.trace.segments:
            parameters = (axis[0] for axis in segment.axes if isinstance(axis[0], tuple))
            found.update({graph.nodes[node].inputs[place] for node, place in parameters})
        return found

    @cached_property
    def _makers(self) -> dict[int, WeightUse]:
        return {use.node.index: use for use in self.trace.producers}

    def _shares(self, segment: Segment) -> list[tuple[float, IntArray]]:
        """What is there for a segment's channels, with the slots that it is proportional to."""
        if segment.id not in self._known_shares:
            self._known_shares[segment.id] = list(
                self._constants(segment) if self.parameters else self._depthwise(segment)
            )
        return self._known_shares[segment.id]

    @cached_property
    def _known_shares(self) -> dict[int, list[tuple[float, IntArray]]]:
        return {}

    def _depthwise(self, segment: Segment) -> Iterator[tuple[float, IntArray]]:
        for node in carriers(self.trace, segment):
            cost = float(sum(self._operations(node)))
            if cost:
                yield cost, self._slots(segment, _axis_of(self.trace, segment, node))

    def _constants(self, segment: Segment) -> Iterator[tuple[float, IntArray]]:
        weights = {use.weight for use in self._makers.values()}
        weights |= {consumer.use.weight for consumer in self.trace.consumers.values()}
        for axis in segment.axes:
            if isinstance(axis[0], tuple):
                node, place = axis[0]
                name = self.trace.graph.nodes[node].inputs[place]
                if name not in weights:
                    weights.add(name)
                    yield self._elements(name) / self._held_by[name], self._slots(segment, axis)

    def _slots(self, segment: Segment, axis: AxisKey) -> IntArray:
        return segment.local(self.trace.slots.axes[axis])

    def _elements(self, constant: str) -> int:
        value = self.trace.graph.value(constant)
        if value is None:
            return 0
        counts = value.dtype.kind == "f" or (value.dtype.itemsize == 1 and value.ndim > 1)
        return value.size if counts else 0

    def _operations_of(self, use: WeightUse) -> int:
        """Multiply-accumulates of a layer or a recurrence for one sample."""
        operations = self._operations(use.node)
        return sum(operations[1:] if use.recurrence else operations[:1])

    def _operations(self, node: Node) -> list[int]:
        """Multiply-accumulates of each weight of a node for one sample."""
        graph = self.trace.graph

        def lengths(tensor: str) -> list[int] | None:
            shape = graph.shape(tensor)
            return None if shape is None else _lengths(shape)

        return [math.prod(factors) for factors in products_of(node, lengths) or ()]


def _lengths(shape: Sequence[int | str | None]) -> list[int]:
    return [d if isinstance(d, int) else _NOMINAL if place else 1 for place, d in enumerate(shape)]


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

    def carried(self, segment: Segment, emitted: Emitted) -> float:
        """By the rates, too."""
        trace, total = self.costs.trace, 0.0
        if segment.id not in self._carriers:
            self._carriers[segment.id] = carriers(trace, segment)
        for node in self._carriers[segment.id]:
            axis = _axis_of(trace, segment, node)
            width = max(1, int(emitted[segment.local(trace.slots.axes[axis])].sum()))
            total += float(self.costs.carries_us(node, axis, np.array([width]))[0])
        return total

    def selection(self, consumer: Consumer, emitted: int, kept: int) -> float:
        """A Gather, with the changes of layout around it."""
        if kept >= emitted:
            return 0.0
        tensor, axis = consumer.use.tensor_axis
        return self.costs.selects_us(str(tensor), axis, emitted, kept)

    def rest(self, chosen: Collection[int]) -> float:
        """Of the operators that hand on what nothing goes from."""
        others = (segment for segment in self.costs.trace.segments if segment.id not in chosen)
        return sum(self.carried(segment, np.ones(len(segment.classes), dtype=bool)) for segment in others)


def carriers(trace: Trace, segment: Segment) -> list[Node]:
    """The nodes that hand a segment's channels on, each once: those that make them are no such nodes."""
    axes = set(segment.axes)
    makers = {use.node.index for use in trace.producers if use.tensor_axis in axes}
    found: dict[int, Node] = {}
    for axis in segment.axes:
        node = trace.graph.makers.get(axis[0]) if isinstance(axis[0], str) else None
        if node is not None and node.index not in makers:
            found.setdefault(node.index, node)
    return list(found.values())


def _axis_of(trace: Trace, segment: Segment, node: Node) -> AxisKey:
    outputs = set(node.outputs)
    return next(axis for axis in segment.axes if axis[0] in outputs)
