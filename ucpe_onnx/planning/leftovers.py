"""Channels that every consumer's selection leaves out: since they are made, the widest selection reads them as well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.layer_ops import BLOCKED
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.structure import Consumer, Segment, Trace
from ucpe_onnx.lowerings import LOWERINGS, Reads, whole
from ucpe_onnx.planning.lowered import Lowered, selected
from ucpe_onnx.runtime.target import Target

Flags = npt.NDArray[np.bool_]


def reading_leftovers(
    trace: Trace,
    segment: Segment,
    emitted: tuple[Sequence[int], Mapping[AxisKey, IntArray], Target],
    lowered: Mapping[str, Lowered],
) -> dict[str, Lowered]:
    """What consumers read, so that of each channel that is made somebody reads something.

    A width is rounded up for the runtime, and what fills it up is nobody's; consumers that all select would leave it
    behind. They read it with zero weights. Consumers that select the same go on doing so.

    Args:
        trace: the analysed model.
        segment: one of its segments.
        emitted: its slots in emitted order, the emitted channels of its axes, and the runtime they are for.
        lowered: what its consumers read.

    Returns:
        The same, with wider selections where something was left.
    """
    order, layouts, target = emitted
    unread = np.zeros(len(segment.classes), dtype=bool)
    unread[list(order)] = True
    unread &= ~segment.frozen
    selecting: dict[tuple[AxisKey, tuple[int, ...]], list[Consumer]] = defaultdict(list)
    for name, choice in lowered.items():
        consumer, reads = trace.consumers[name], LOWERINGS[choice.kind].reads
        if reads == Reads.SELECTION:
            selecting[consumer.use.tensor_axis, tuple(choice.read.tolist())].append(consumer)
        if reads != Reads.OWN:  # that is made for it alone
            unread[consumer.slots[choice.read]] = False
    found = dict(lowered)
    while unread.any():
        wider = [_Wider.of(layouts[axis], read, readers, unread, target) for (axis, read), readers in selecting.items()]
        wider = [one for one in wider if unread[one.slots].any()]
        if not wider:
            break  # it is the last channel of a group that nobody needs
        best = max(wider, key=lambda one: (LOWERINGS[one.choice.kind].contiguous, one.choice.read.size))
        found.update(dict.fromkeys(best.readers, best.choice))
        unread[best.slots] = False
    return found


@dataclass(frozen=True)
class _Wider:
    """A selection that takes what is left as well.

    Attributes:
        readers: names of the consumers that share it.
        choice: what they read.
        slots: the slots of these channels.
    """

    readers: tuple[str, ...]
    choice: Lowered
    slots: IntArray

    @classmethod
    def of(
        cls, layout: IntArray, read: Sequence[int], readers: Sequence[Consumer], unread: Flags, target: Target
    ) -> _Wider:
        """What consumers that read the same channels of a tensor would read then, at a width that suits them all."""
        strictest = next((reader for reader in readers if reader.use.node.op_type in BLOCKED), readers[0])
        wanted = unread[strictest.slots]
        wanted[list(read)] = True
        choice = selected(strictest, layout, wanted, target)
        if LOWERINGS[choice.kind].reads == Reads.WHOLE:
            choice = Lowered(whole(everything_kept=False).name, layout)
        return cls(tuple(reader.name for reader in readers), choice, strictest.slots[choice.read])
