"""What the analysis of a graph finds: consumers, segments, and the trace that holds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.slots import AxisKey, IntArray, Slots
from ucpe_onnx.analysis.tracer import EqualParts, Link, Rewrite, WeightUse


@dataclass(frozen=True)
class Consumer:
    """A node that reads channels through a constant weight: what a mask is for.

    Attributes:
        use: the node, the axis it reads and the weight.
        channels: C_in, the length of its mask.
        slots: the slot (numbered within the segment) of each input channel, shape (channels,).
        segment: number of the segment it reads from.
        prunable: True for a channel that may be pruned, shape (channels,). A mask may drop others too: see
            :meth:`Trace.offering`.
    """

    use: WeightUse
    channels: int
    slots: IntArray
    segment: int
    prunable: npt.NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The node's name, or that of its recurrence: it identifies the consumer everywhere."""
        return self.use.name


@dataclass(frozen=True)
class Segment:
    """Producers, consumers and the channel-preserving operators between them, with the slots that they share.

    Attributes:
        id: number of the segment, in the order of first appearance in the graph.
        axes: its axes in graph order.
        classes: the graph-wide slot class of each slot, shape (slots,).
        frozen: True for a slot that stays, shape (slots,).
        frozen_by: why slots are frozen, each reason once, in graph order, with how many slots it was the first to
            freeze; these numbers add up.
        groups: the slots of each group. Order is free within a group and fixed between groups (operands of a Concat);
            a group is frozen as a whole or not at all.
        group_of: the group of each slot, shape (slots,).
        parts: for axes that some operator cuts, the number of the part that each position lies in. Parts stay one
            after the other.
        partitions: axes whose parts must keep equal numbers of positions.
        links: the links between its axes, by target.
        consumers: names of the consumers that read it.
        producers: names of the nodes that make its channels.
    """

    id: int
    axes: tuple[AxisKey, ...]
    classes: IntArray
    frozen: npt.NDArray[np.bool_]
    frozen_by: Mapping[str, int]
    groups: tuple[tuple[int, ...], ...]
    group_of: IntArray
    parts: Mapping[AxisKey, IntArray]
    partitions: tuple[EqualParts, ...]
    links: Mapping[AxisKey, list[Link]]
    consumers: tuple[str, ...]
    producers: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why slots are frozen, each reason once, in graph order."""
        return tuple(self.frozen_by)

    @cached_property
    def _local(self) -> IntArray:
        local = np.full(int(self.classes.max(initial=-1)) + 1, -1, dtype=np.int64)
        local[self.classes] = np.arange(self.classes.size)
        return local

    def local(self, classes: IntArray) -> IntArray:
        """Numbers within the segment of graph-wide slot classes that belong to it."""
        return self._local[classes]


@dataclass(frozen=True)
class Trace:
    """What the analysis found; it only reads the model.

    Attributes:
        graph: the view of the model.
        slots: the slot class of every position of every traced axis.
        consumers: by name, in graph order.
        segments: by number.
        producers: all weight uses that make channels, in graph order.
        rewrites: how nodes are adapted to the emitted sizes, by node index.
        stopped: why nodes were not followed at all; segments name such reasons only where they touch one.
    """

    graph: GraphView
    slots: Slots
    consumers: Mapping[str, Consumer]
    segments: tuple[Segment, ...]
    producers: tuple[WeightUse, ...]
    rewrites: Mapping[int, Rewrite]
    stopped: tuple[str, ...] = ()

    def offering(self, readers: Collection[str]) -> Trace:
        """The same with all channels of some consumers prunable, those too that must stay for others.

        Every mask of a consumer is exact, since it only says which of its weights are zeros. Channels that must stay
        stay where they are; a consumer that drops some of them selects the others, and multiplies less. A recurrence
        can't select, so its channels are as prunable as before.

        Args:
            readers: names of consumers.
        """
        offered = {
            name: replace(consumer, prunable=np.ones_like(consumer.prunable))
            for name, consumer in self.consumers.items()
            if name in readers and not consumer.use.recurrence
        }
        return replace(self, consumers={**self.consumers, **offered})

    @cached_property
    def made_by(self) -> Mapping[str, tuple[WeightUse, ...]]:
        """The producers by the names of their nodes."""
        found: dict[str, list[WeightUse]] = defaultdict(list)
        for use in self.producers:
            found[use.node.name].append(use)
        return {name: tuple(uses) for name, uses in found.items()}
