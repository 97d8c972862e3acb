"""Which nodes may run on a part of a segment's channels, as a node of their own for each part."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.quantised import constant_use
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.structure import Segment, Trace
from ucpe_onnx.analysis.tracer import Link, WeightUse
from ucpe_onnx.model.bodies import ENTER, EXIT, IF
from ucpe_onnx.model.bodies.markers import has_bodies

_CUTTING = ("Slice", "Split")
_AXES = 3
"""The input of a Slice that holds its axes."""
_WORTH_MOVING_UP = frozenset({"BatchNormalization", "Clip", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Tanh"})
"""Operators that are as large behind as in front: a selection in front of them saves work."""


@dataclass(frozen=True)
class Restrictions:
    """Answers, node by node, whether its output may be made in parts.

    What a prunable channel holds never depends on its siblings: that is what makes it prunable. So a node that carries
    or makes prunable channels computes the same numbers for a part of them, with its weights and parameters cut to that
    part. This fails where the parts are bound to each other (groups of a convolution) or to their places.
    """

    trace: Trace
    _known: dict[tuple[int, int], bool] = field(default_factory=dict)
    _joins: dict[tuple[int, int], bool] = field(default_factory=dict)
    _sources: dict[AxisKey, dict[AxisKey, list[Link]]] = field(default_factory=dict)

    @cached_property
    def segment_of(self) -> dict[AxisKey, int]:
        """The number of the segment of every axis that belongs to one."""
        return {axis: segment.id for segment in self.trace.segments for axis in segment.axes}

    def channel_axis(self, tensor: str, segment: int) -> AxisKey | None:
        """The axis of an activation that belongs to a segment; None if there is none, or more than one."""
        axes = [axis for axis in self._axes_of.get(tensor, ()) if self.segment_of[tensor, axis] == segment]
        return (tensor, axes[0]) if len(axes) == 1 else None

    def segments(self, tensor: str) -> list[int]:
        """The segments of an activation's axes."""
        return list(dict.fromkeys(self.segment_of[tensor, axis] for axis in self._axes_of.get(tensor, ())))

    def restrictable(self, node: Node, segment: int) -> bool:
        """Whether the node can make a part of its output's channels from the same part of its inputs' channels."""
        key = (node.index, segment)
        if key not in self._known:
            self._known[key] = self._decide(node, self.trace.segments[segment])
        return self._known[key]

    def joins(self, node: Node, segment: int) -> bool:
        """Whether the node does nothing but put the channels of its inputs one after the other."""
        if node.op_type != "Concat":
            return False
        key = (node.index, segment)
        if key not in self._joins:  # every operand asks this of the Concat that reads it
            self._joins[key] = self._decide_join(node, segment)
        return self._joins[key]

    def _decide_join(self, node: Node, segment: int) -> bool:
        out = self.channel_axis(node.outputs[0], segment)
        if out is None:
            return False
        rank = len(self.trace.graph.shape(node.outputs[0]) or ())
        inside = all(self.channel_axis(name, segment) == (name, out[1]) for name in node.inputs)
        return inside and int(node.attributes["axis"]) % max(rank, 1) == out[1]

    def cuts(self, node: Node, output: str, segment: int) -> bool:
        """Whether the node does nothing but hand on some of its input's channels, in their order."""
        if node.op_type not in _CUTTING or not node.inputs[0]:
            return False
        source, target = self.channel_axis(node.inputs[0], segment), self.channel_axis(output, segment)
        if source is None or target is None or source[1] != target[1]:
            return False
        links = self._links(target)
        if any(link.source != source or link.free for link in links) or not links:
            return False
        if self._cut_axes(node) != [source[1]]:
            return False
        slots = self.trace.slots.axes
        return int(np.isin(slots[source], slots[target]).sum()) == slots[target].size  # no slot lies outside as well

    def selects_above(self, node: Node, segment: int) -> bool:
        """Whether a selection that alone reads the node's output does better in front of the node.

        Not between a convolution and what onnxruntime fuses into it.
        """
        if node.op_type not in _WORTH_MOVING_UP:
            return False
        graph = self.trace.graph
        for name in node.inputs:
            maker = graph.makers.get(name)
            private = self.channel_axis(name, segment) is not None and len(graph.readers[name]) == 1
            if private and (maker is None or not (self.selects_above(maker, segment) or self.joins(maker, segment))):
                return False
        return True

    def consumed_input(self, node: Node) -> int | None:
        """The input that a consumer reads its channels from; None for other nodes."""
        consumer = self.trace.consumers.get(node.name)
        if consumer is None:
            return None
        tensor = consumer.use.tensor_axis[0]
        places = [i for i, name in enumerate(node.inputs) if name == tensor and i != consumer.use.weight_input]
        return places[0] if len(places) == 1 else None

    @cached_property
    def _axes_of(self) -> dict[str, list[int]]:
        axes: dict[str, list[int]] = {}
        for tensor, axis in self.segment_of:
            if isinstance(tensor, str):
                axes.setdefault(tensor, []).append(axis)
        return axes

    @cached_property
    def producers(self) -> dict[AxisKey, WeightUse]:
        """The layers that make channels, by the axis of what they make."""
        return {use.tensor_axis: use for use in self.trace.producers}

    @cached_property
    def made(self) -> frozenset[str]:
        """The tensors that producers make."""
        return frozenset(name for use in self.trace.producers for name in use.node.outputs if name)

    @cached_property
    def _partitioned(self) -> set[AxisKey]:
        return {partition.axis for segment in self.trace.segments for partition in segment.partitions}

    def _links(self, axis: AxisKey) -> list[Link]:
        return self.trace.segments[self.segment_of[axis]].links.get(axis, [])

    def _links_from(self, axis: AxisKey) -> dict[AxisKey, list[Link]]:
        """The links of an axis by where they come from: a Concat has as many as operands, which all ask for theirs."""
        if axis not in self._sources:
            by_source: dict[AxisKey, list[Link]] = {}
            for link in self._links(axis):
                by_source.setdefault(link.source, []).append(link)
            self._sources[axis] = by_source
        return self._sources[axis]

    def _decide(self, node: Node, segment: Segment) -> bool:
        outputs = [name for name in node.outputs if name]
        axis = self.channel_axis(outputs[0], segment.id) if len(outputs) == 1 else None
        unparted = node.op_type in (IF, ENTER, EXIT) or node.index in self.trace.graph.recurrences
        if axis is None or unparted or has_bodies(node.proto):
            return False
        if node.index in self.trace.graph.recurrences:  # of which every unit reads all others
            return False
        if segment.frozen[segment.local(self.trace.slots.axes[axis])].any() or axis in self._partitioned:
            return False
        made = self.producers.get(axis)
        if made is not None and made.groups > 1:
            return False
        sources = [self._source(node, index, axis, segment) for index in range(len(node.inputs))]
        if None in sources:
            return False
        return made is not None or any(sources)

    def _source(self, node: Node, index: int, out: AxisKey, segment: Segment) -> bool | None:
        """Whether an input carries the output's channels; None if it stands in the way of making parts."""
        name = node.inputs[index]
        if not name or name in self.trace.graph.constants:
            return False
        if constant_use(self.trace.graph, node, index) is not None:  # behind a codec, which would have to be cut too
            return None
        consumer = self.trace.consumers.get(node.name)
        if consumer is not None and consumer.use.tensor_axis[0] == name:
            return False if index == self.consumed_input(node) else None
        axes = [a for a in self._axes_of.get(name, ()) if self.segment_of[name, a] == segment.id]
        return self._carried((name, axes[0]), out) if len(axes) == 1 else None if axes else False

    def _cut_axes(self, node: Node) -> list[int]:
        """The axes that a Split or Slice cuts; shapes wouldn't show a Slice that turns an axis round."""
        rank = len(self.trace.graph.shape(node.inputs[0]) or ())
        given = node.attributes.get("axis", 0) if node.op_type == "Split" else node.attributes.get("axes")
        if given is None and len(node.inputs) > _AXES:
            given = self.trace.graph.value(node.inputs[_AXES])
        return [] if given is None else [int(axis) % max(rank, 1) for axis in np.atleast_1d(given)]

    def _carried(self, source: AxisKey, out: AxisKey) -> bool | None:
        """True if all channels of the source are those of the output, one by one."""
        if source in self._partitioned:
            return None
        links = self._links_from(out).get(source)
        return True if links and all(link.source_positions is None and not link.free for link in links) else None
