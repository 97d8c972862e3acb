"""What is decided for one consumer: how it gets its channels, and which it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ucpe_onnx.analysis.layer_ops import BLOCKED
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.structure import Consumer
from ucpe_onnx.lowerings import LOWERINGS, Reads, selection, whole
from ucpe_onnx.masks import Mask
from ucpe_onnx.runtime.target import Target


@dataclass(frozen=True)
class Lowered:
    """A decision for one consumer.

    Attributes:
        kind: one of :data:`ucpe_onnx.lowerings.LOWERINGS`.
        read: original channels that it reads, in emitted order.
    """

    kind: str
    read: IntArray

    @classmethod
    def whole(cls, layout: IntArray, keep: Mask) -> Lowered:
        """A consumer reads a tensor as it is."""
        return cls(whole(everything_kept=bool(keep[layout].all())).name, layout)

    @classmethod
    def untouched(cls, channels: int) -> Lowered:
        """A consumer reads and keeps a tensor from which nothing is removed."""
        return cls.whole(np.arange(channels, dtype=np.int64), np.ones(channels, dtype=bool))

    def with_everything_kept(self) -> Lowered:
        """The same where all is kept that is read."""
        reads_all = LOWERINGS[self.kind].reads == Reads.WHOLE
        return replace(self, kind=whole(everything_kept=True).name) if reads_all else self


def selected(consumer: Consumer, layout: IntArray, keep: Mask, target: Target) -> Lowered:
    """The kept channels, filled up to a width that runs well; a slice where they are contiguous."""
    places = np.flatnonzero(keep[layout])
    width = places.size
    if consumer.use.node.op_type in BLOCKED:
        width = target.width(width, layout.size, target.read_multiple)
    if width == layout.size:
        return Lowered.whole(layout, keep)
    if places[-1] - places[0] + 1 == places.size:
        start = min(int(places[0]), layout.size - width)
        return Lowered(selection(contiguous=True).name, layout[start : start + width])
    spare = np.setdiff1d(np.arange(layout.size), places, assume_unique=True)
    places = np.sort(np.concatenate([places, spare[: width - places.size]]))
    return Lowered(selection(contiguous=False).name, layout[places])
