"""Widths counted in channels: how many slots make a tensor as wide as the runtime's kernels like it.

A slot stands for one channel of most tensors, but for a whole head of attention, a group of a normalisation, or a block
of a pixel shuffle it stands for several. Kernels see channels: twelve slots of 64 channels are 768 wide, and so are
eleven a fine width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import BLOCKED
from ucpe_onnx.analysis.layout import covers_target
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.trace import Segment, Trace
from ucpe_onnx.runtime.target import Target

LOCAL_POOLS = frozenset({"AveragePool", "MaxPool"})
_POOLS = LOCAL_POOLS | {"GlobalAveragePool", "GlobalMaxPool"}


@dataclass(frozen=True, eq=False)
class _Reading:
    """What one axis, or several alike, make of the slots.

    Attributes:
        positions: channels that each slot stands for, shape (slots,).
        convolved: whether a convolution reads or makes one of them.
    """

    positions: IntArray
    convolved: bool


@dataclass(frozen=True)
class Rounding:
    """What the widths of a segment had better be, in channels of the axes that layers and pools read or make.

    Attributes:
        target: the runtime.
        multiple: the strictest multiple that an operator on the segment asks for, in channels.
        readings: the axes; those on which all slots stand for equally many channels are one.
    """

    target: Target
    multiple: int
    readings: tuple[_Reading, ...]

    @classmethod
    def of(cls, trace: Trace, segment: Segment, target: Target) -> Rounding:
        """The rounding of a segment."""
        found: dict[bytes, tuple[IntArray, IntArray, bool]] = {}
        for axis, convolved in _read_axes(trace, segment):
            slots, counts = np.unique(segment.local(trace.slots.axes[axis]), return_counts=True)
            key = slots.tobytes() + counts.tobytes()
            found[key] = slots, counts, convolved or (key in found and found[key][2])
        readings = _side_by_side(segment, found.values())
        return cls(target, width_multiple(trace, segment, target), readings)

    def slots(self, multiple: int) -> int:
        """The least number of slots of which any multiple is a multiple of so many channels, on every axis."""
        return math.lcm(*(multiple // math.gcd(multiple, each) for each in self._channels()))

    @property
    def step(self) -> int:
        """What the width of a block is a multiple of, in slots."""
        return self.slots(self.multiple)

    @property
    def minimum(self) -> int:
        """The least width of a block, in slots."""
        least = self.target.minimum if self.target.blocked else 1
        widest = max((-(-least // each) for each in self._channels()), default=least)
        return -(-widest // self.step) * self.step

    @property
    def joined(self) -> int:
        """What the width of blocks is a multiple of that it is cheap to join, in slots."""
        return self.slots(self.target.joined_multiple) if self.target.blocked else 1

    @property
    def exact(self) -> Rounding:
        """The same for blocks of any width."""
        return replace(self, multiple=1)

    def _channels(self) -> Iterator[int]:
        """Channels that a slot stands for, of each axis; the greatest divisor where that differs."""
        for reading in self.readings:
            yield int(np.gcd.reduce(reading.positions)) or 1

    def added(
        self, emitted: npt.NDArray[np.bool_], members: IntArray, spare: IntArray, *, grouped: bool, fill: bool
    ) -> int:
        """How many of the spare slots of a group have to be emitted so that its width suits every axis.

        Args:
            emitted: the slots that are emitted by now, shape (slots,).
            members: the slots of the group.
            spare: those of them that are not emitted, best first.
            grouped: whether they lie in the groups of a convolution.
            fill: round up to whole blocks of the blocked layout.

        Returns:
            The least number that does, or of all of them.
        """
        if not (self.target.blocked or self.target.aligned):
            return 0
        fine = np.ones(len(spare) + 1, dtype=bool)
        for reading in self.readings:
            available = int(reading.positions[members].sum())
            start = int((reading.positions[members] * emitted[members]).sum())
            widths = start + np.cumsum(np.concatenate([[0], reading.positions[spare]]))
            fine &= widths % self._asked(reading, members, grouped=grouped, fill=fill) == 0
            if available >= self.target.minimum:
                fine &= widths >= self.target.minimum
        return int(np.argmax(fine)) if fine.any() else len(spare)

    def _asked(self, reading: _Reading, members: IntArray, *, grouped: bool, fill: bool) -> int:
        """The multiple of channels that an axis asks of a group of slots.

        To fill up a block costs nothing where nothing but a convolution's block gets fuller. A head of attention that
        only matrix products read is work of its own: there what is masked goes.
        """
        positions, block = reading.positions[members], self.target.block
        if grouped and positions.sum() < block:
            return 1  # a convolution whose groups are narrower than a block is in no blocked layout anyway
        free = reading.convolved or positions.max() == 1
        if fill and free and self.target.blocked and positions.sum() >= 2 * block:
            return block
        return self.multiple


def _side_by_side(segment: Segment, axes: Iterable[tuple[IntArray, IntArray, bool]]) -> tuple[_Reading, ...]:
    """Axes in as few readings as there can be: those that no group of slots shares are one, if they ask for the same.

    The operands of a long Concat are so many axes, each of a few slots.

    Args:
        segment: the segment.
        axes: for each the slots that it has, the channels that each of them stands for, and whether it is convolved.
    """
    found: dict[tuple[int, bool], list[tuple[set[int], IntArray]]] = defaultdict(list)
    for slots, counts, convolved in axes:
        groups = set(np.unique(segment.group_of[slots]).tolist())
        same = found[int(np.gcd.reduce(counts)), convolved]
        free = next((each for each in same if each[0].isdisjoint(groups)), None)
        if free is None:
            free = set(), np.zeros(len(segment.classes), dtype=np.int64)
            same.append(free)
        free[0].update(groups)
        free[1][slots] = counts
    return tuple(_Reading(positions, convolved) for (_, convolved), same in found.items() for _, positions in same)


def width_multiple(trace: Trace, segment: Segment, target: Target) -> int:
    """The strictest multiple that an operator on the segment asks for, in channels."""
    joined = any(
        not covers_target(link, trace.slots.axes[axis].size) for axis, links in segment.links.items() for link in links
    )
    pooled = any(True for _ in pooled_axes(trace, segment, _POOLS))
    return target.joined_multiple if joined or pooled else target.read_multiple


def pooled_axes(trace: Trace, segment: Segment, pools: frozenset[str] = LOCAL_POOLS) -> Iterator[AxisKey]:
    """The axes of a segment's channels that pools read."""
    axes = set(segment.axes)
    for node in nodes_at(trace, segment):
        if node.op_type in pools and (node.inputs[0], 1) in axes:
            yield node.inputs[0], 1


def nodes_at(trace: Trace, segment: Segment) -> list[Node]:
    """The nodes that read or make a tensor of a segment, in graph order: all that has to be looked at for it."""
    graph, found = trace.graph, {}
    for tensor in dict.fromkeys(tensor for tensor, _ in segment.axes if isinstance(tensor, str)):
        for node in (graph.makers.get(tensor), *(reader for reader, _ in graph.readers.get(tensor, ()))):
            if node is not None:
                found[node.index] = node
    return [found[index] for index in sorted(found)]


def _read_axes(trace: Trace, segment: Segment) -> Iterator[tuple[AxisKey, bool]]:
    """The axes that layers and pools read or make, and whether a convolution or a pool does."""
    axes = set(segment.axes)
    reading = [trace.consumers[name].use for name in segment.consumers]
    for use in (*reading, *(use for name in segment.producers for use in trace.made_by.get(name, ()))):
        if use.tensor_axis in axes:
            yield use.tensor_axis, use.node.op_type in BLOCKED
    for axis in pooled_axes(trace, segment, _POOLS):
        yield axis, True
