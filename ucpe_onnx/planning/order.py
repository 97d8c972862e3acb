"""The order of a segment's channels that lets as many consumers as possible find theirs side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.structure import Consumer, Segment
from ucpe_onnx.masks import Mask
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.solve import OrderingProblem, Reader, solve_ordering

Groups = tuple[tuple[int, ...], ...]


def in_original_order(segment: Segment, emitted: npt.NDArray[np.bool_]) -> Groups:
    """The emitted slots of each group as they come."""
    return tuple(tuple(slot for slot in group if emitted[slot]) for group in segment.groups)


def ordered(
    costs: Costs, segment: Segment, masks: Mapping[str, Mask], groups: Groups, *, seconds: float, seed: int = 0
) -> tuple[Groups, frozenset[str]]:
    """Order the emitted slots of a segment.

    Args:
        costs: what copies cost.
        segment: the segment.
        masks: what its consumers keep.
        groups: the emitted slots of each of its groups.
        seconds: time limit.
        seed: for the solver.

    Returns:
        The slots of each group in emitted order, and the consumers that find their channels side by side.
    """
    fixed = frozenset(i for i, group in enumerate(segment.groups) if segment.frozen[group[0]])
    readers = []
    for name in segment.consumers:
        consumer = costs.trace.consumers[name]
        reader = _reader(segment, consumer, masks[name]) if name in masks else None
        if reader is not None:
            tensor, axis = consumer.use.tensor_axis
            kept = int(masks[name].sum())
            saved = costs.gather_us(str(tensor), axis, kept) - costs.slice_us(
                float(kept * costs.bytes(str(tensor), axis))
            )
            readers.append(Reader(name, *reader, round(max(saved, 0.001), 3)))
    problem = OrderingProblem(groups=groups, readers=tuple(readers), fixed=fixed)
    found = solve_ordering(problem, seconds=seconds, seed=seed)
    return found.groups, frozenset(found.served)


def _reader(segment: Segment, consumer: Consumer, mask: Mask) -> tuple[frozenset[int], tuple[int, ...]] | None:
    """Kept slots and sequence of groups; None if no order can serve the consumer.

    That is so where a slot is read in several places apart (concat of a tensor with itself, channels-last flatten) or
    only some of its positions are kept.
    """
    runs = consumer.slots[np.flatnonzero(np.diff(consumer.slots, prepend=-1))]
    kept, dropped = consumer.slots[mask], consumer.slots[~mask]
    if len(np.unique(runs)) < len(runs) or np.isin(kept, dropped).any():
        return None
    groups = segment.group_of[runs]
    sequence = groups[np.flatnonzero(np.diff(groups, prepend=-1))].tolist()
    if len(set(sequence)) < len(sequence):
        return None
    return frozenset(kept.tolist()), tuple(sequence)
