"""How each consumer gets its channels from what its segment emits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.masks import Mask
from ucpe_onnx.planning.cost import ReadCost
from ucpe_onnx.planning.target import Target


@dataclass(frozen=True)
class Reading:
    """A consumer in front of the tensor that it reads.

    Attributes:
        layout: original channels in the emitted order of that tensor.
        keep: the consumer's mask, shape (C_in,).
        shape: what its costs depend on.
        target: the runtime.
        grouped: the consumer's channels are bound to convolution groups; it must read all.
    """

    layout: IntArray
    keep: Mask
    shape: ReadCost
    target: Target
    grouped: bool = False


@dataclass(frozen=True)
class Lowered:
    """A decision for one consumer.

    Attributes:
        kind: one of :data:`ucpe_onnx.plan.LOWERINGS`.
        read: original channels that it reads, in emitted order.
    """

    kind: str
    read: IntArray


Lowering: TypeAlias = Callable[[Reading], Lowered]


def union(reading: Reading) -> Lowered:
    """Read all that is there; what the mask drops has zero weights. No copy at all."""
    kind = "direct" if reading.keep[reading.layout].all() else "union"
    return Lowered(kind, reading.layout)


def gather(reading: Reading) -> Lowered:
    """Gather the kept channels, filled up to a width that runs well."""
    places = np.flatnonzero(reading.keep[reading.layout])
    spare = np.setdiff1d(np.arange(reading.layout.size), places, assume_unique=True)
    places = np.sort(np.concatenate([places, spare[: _width(reading, places.size) - places.size]]))
    return _selected("gather", reading, places)


def slice_(reading: Reading) -> Lowered:
    """Slice the kept channels where they are contiguous, else gather them."""
    places = np.flatnonzero(reading.keep[reading.layout])
    if places[-1] - places[0] + 1 != places.size:
        return gather(reading)
    width = _width(reading, places.size)
    start = min(int(places[0]), reading.layout.size - width)
    return _selected("slice", reading, np.arange(start, start + width))


def auto(reading: Reading) -> Lowered:
    """Whichever is predicted to be fastest; with equal predictions the one without a copy."""
    choices = [union(reading), slice_(reading)]
    return min(choices, key=lambda lowered: predicted_us(reading, lowered))


def predicted_us(reading: Reading, lowered: Lowered) -> float:
    """Time of the consumer and of the copy in front of it, in microseconds."""
    compute = reading.shape.compute_us(reading.target, lowered.read.size)
    if lowered.kind in ("direct", "union"):
        return compute
    return compute + reading.shape.copy_us(reading.target, lowered.read.size, reading.layout.size)


def _width(reading: Reading, count: int) -> int:
    if not reading.shape.convolution:
        return count
    return reading.target.width(count, reading.layout.size, reading.target.read_multiple)


def _selected(kind: str, reading: Reading, places: IntArray) -> Lowered:
    """A selection, unless it selects everything or the consumer can't take one."""
    if places.size == reading.layout.size or reading.grouped:
        return union(reading)
    return Lowered(kind, reading.layout[places])


LOWERING_RULES: Mapping[str, Lowering] = MappingProxyType(
    {"auto": auto, "union": union, "gather": gather, "slice": slice_}
)
"""Lowerings by the name that ``--lowering`` takes."""
