"""What a consumer reads under each lowering, and which lowerings it can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import LAYER_OPS
from ucpe_onnx.analysis.restriction import Restrictions
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.lowerings import Lowering, Need, Reads
from ucpe_onnx.masks import Mask


@dataclass(frozen=True)
class Routes:
    """Answers for one model."""

    trace: Trace
    _known: dict[int, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def restrictions(self) -> Restrictions:
        """Which nodes may run on a part of the channels."""
        return Restrictions(self.trace)

    def unmet(self, consumer: Consumer, lowering: Lowering) -> Need | None:
        """What a consumer would have to be able to do for a lowering, and is not; None if it can take it."""
        able = {
            Need.SELECT: self.selects,
            Need.DIVIDE: self.divides,
            Need.SUM: self.summable,
            Need.SEPARATE: self.separable,
        }
        return next((need for need in lowering.needs if not able[need](consumer)), None)

    def read(
        self,
        consumer: Consumer,
        lowering: Lowering,
        emitted: tuple[Sequence[Sequence[int]], IntArray],
        keep: Mask,
    ) -> IntArray:
        """The channels that a consumer reads under a lowering: no more than that makes it.

        Args:
            consumer: the consumer.
            lowering: how it gets its channels.
            emitted: slots of each block, and the channels of the tensor that it reads, in emitted order.
            keep: its mask, shape (C_in,).
        """
        blocks, layout = emitted
        if lowering.reads == Reads.OWN:
            return self.own(consumer, keep)
        if lowering.reads == Reads.BLOCKS:
            return self.in_blocks(consumer, blocks, layout, keep)
        if lowering.reads == Reads.WHOLE:
            return layout
        kept = np.flatnonzero(keep[layout])
        return layout[kept[0] : kept[-1] + 1] if lowering.contiguous else layout[kept]

    def summable(self, consumer: Consumer) -> bool:
        """Whether a consumer may become a sum with one term for each part that it reads."""
        use = consumer.use
        reads_once = sum(name == use.tensor_axis[0] for name in use.node.inputs) == 1
        op = LAYER_OPS.get(use.node.op_type)
        adds_up = op is not None and op.linear and self.trace.graph.opset >= op.bias_optional_since
        return adds_up and self.divides(consumer) and self.direct(consumer) and reads_once

    def direct(self, consumer: Consumer) -> bool:
        """Whether a consumer's weight is its own constant; behind codecs, parts would break what onnxruntime fuses."""
        return consumer.use.constant == (consumer.use.node.index, consumer.use.weight_input)

    def selects(self, consumer: Consumer) -> bool:
        """Whether a consumer may read a part of its tensor; a recurrence reads the units that its layer makes."""
        if consumer.use.recurrence:
            return False
        return consumer.use.groups == 1 and self.restrictions.consumed_input(consumer.use.node) is not None

    def divides(self, consumer: Consumer) -> bool:
        """Whether a consumer may read blocks, or what producers make for it alone."""
        tensor = str(consumer.use.tensor_axis[0])
        axis = self.restrictions.channel_axis(tensor, consumer.segment)
        return self.selects(consumer) and axis == consumer.use.tensor_axis

    def in_blocks(self, consumer: Consumer, blocks: Sequence[Sequence[int]], layout: IntArray, keep: Mask) -> IntArray:
        """The channels that a consumer reads if it takes each block of which it keeps a channel.

        Args:
            consumer: the consumer.
            blocks: slots of each block.
            layout: channels of the tensor that it reads, in emitted order.
            keep: its mask, shape (C_in,).

        Returns:
            Channels in the order of the tensor's blocks and, within these, in emitted order.
        """
        held = self._block_of(consumer, blocks, layout)
        wanted = [block for block in dict.fromkeys(held.tolist()) if keep[layout[held == block]].any()]
        return np.concatenate([layout[held == block] for block in wanted] or [layout[:0]])

    def blocks_of(self, consumer: Consumer, blocks: Sequence[Sequence[int]], layout: IntArray) -> IntArray:
        """Numbers of the blocks that the tensor which a consumer reads holds channels of."""
        return np.unique(self._block_of(consumer, blocks, layout))

    def _block_of(self, consumer: Consumer, blocks: Sequence[Sequence[int]], layout: IntArray) -> IntArray:
        block_of = np.full(len(self.trace.segments[consumer.segment].classes), -1, dtype=np.int64)
        for number, slots in enumerate(blocks):
            block_of[list(slots)] = number
        return block_of[consumer.slots[layout]]

    def own(self, consumer: Consumer, keep: Mask) -> IntArray:
        """The channels that a consumer reads from producers of its own, which leave them in their order."""
        return np.flatnonzero(np.isin(consumer.slots, consumer.slots[keep]))

    def separable(self, consumer: Consumer) -> bool:
        """Whether everything between the producers and a consumer can be repeated for it alone."""
        tensor = str(consumer.use.tensor_axis[0])
        segment = self.trace.segments[consumer.segment]
        return self.divides(consumer) and not segment.frozen.any() and tensor in self._separable(segment)

    def _separable(self, segment: Segment) -> frozenset[str]:
        """The tensors of a segment that can be made in parts, with everything in front of them."""
        if segment.id not in self._known:
            found: set[str] = set()
            for tensor in dict.fromkeys(tensor for tensor, _ in segment.axes if isinstance(tensor, str)):
                node = self.trace.graph.makers.get(tensor)  # what it works on comes before it among the axes
                if node is not None and self.repeats(node, tensor, segment.id):
                    carried = [source for source in node.inputs if source and self._carries(node, segment, source)]
                    if found.issuperset(carried):
                        found.add(tensor)
            self._known[segment.id] = frozenset(found)
        return self._known[segment.id]

    def repeats(self, node: Node, tensor: str, segment: int) -> bool:
        """Whether a node can make a part of the channels of a tensor."""
        known = self.restrictions
        return known.restrictable(node, segment) or known.joins(node, segment) or known.cuts(node, tensor, segment)

    def _carries(self, node: Node, segment: Segment, source: str) -> bool:
        consumed = self.restrictions.consumed_input(node)
        reads = consumed is not None and node.inputs[consumed] == source
        return not reads and self.restrictions.channel_axis(source, segment.id) is not None
