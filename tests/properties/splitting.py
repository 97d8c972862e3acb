"""Plans that split segments at random: any partition into blocks, any lowering that a consumer can take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.lowerings import LOWERINGS, Lowering, Reads
from ucpe_onnx.masks import Mask
from ucpe_onnx.plan import Plan, SegmentPlan
from ucpe_onnx.planning.apply import Groups
from ucpe_onnx.planning.routes import Routes


def split_at_random(trace: Trace, plan: Plan, random: np.random.Generator) -> Plan:
    """The plan with other orders, blocks and lowerings; masks stay. What consumers read is left to be derived."""
    segments, reads = [], {name: consumer.read for name, consumer in plan.consumers.items()}
    routes = Routes(trace)
    for segment, decided in zip(trace.segments, plan.segments, strict=True):
        if random.random() < 0.2:
            segments.append(decided)
            continue
        segments.append(_split(segment, decided, random))
        lowerings = {}
        layouts = segment_layouts(trace, segment, segments[-1].order)
        for name in segment.consumers:
            consumer, keep = trace.consumers[name], plan.consumers[name].mask()
            emitted = segments[-1].blocks, layouts[consumer.use.tensor_axis]
            possible = [x for x in LOWERINGS.values() if _can(routes, x, consumer, keep, emitted)]
            wanted = [lowering for lowering in possible if lowering.askable]
            lowerings[name] = str(random.choice([lowering.name for lowering in wanted or possible]))
            reads[name] = ()
        segments[-1] = replace(segments[-1], lowerings=lowerings)
    consumers = {name: replace(consumer, read=reads[name]) for name, consumer in plan.consumers.items()}
    return replace(plan, consumers=consumers, segments=tuple(segments))


def _can(routes: Routes, lowering: Lowering, consumer: Consumer, keep: Mask, emitted: tuple[Groups, IntArray]) -> bool:
    """Whether a consumer can take a lowering, and a plan may then say so."""
    if lowering.reads == Reads.WHOLE:
        return lowering.everything_kept == bool(keep[emitted[1]].all())
    if not keep.any() or routes.unmet(consumer, lowering) is not None:
        return False
    read = routes.read(consumer, lowering, emitted, keep)
    return lowering.reads != Reads.SELECTION or read.size < emitted[1].size


def _split(segment: Segment, decided: SegmentPlan, random: np.random.Generator) -> SegmentPlan:
    emitted = set(decided.order)
    blocks: list[tuple[int, ...]] = []
    for group in segment.groups:
        slots = [slot for slot in group if slot in emitted]
        if not segment.frozen[group[0]]:
            random.shuffle(slots)
        cuts = sorted(random.integers(0, len(slots) + 1, size=random.integers(0, 3)).tolist())
        pieces = [slots[a:b] for a, b in zip([0, *cuts], [*cuts, len(slots)], strict=True)]
        blocks += [tuple(piece) for piece in pieces if piece]
    if random.random() < 0.2:  # a block may reach over the end of a group
        first = int(random.integers(len(blocks)))
        blocks[first : first + 2] = [tuple(slot for block in blocks[first : first + 2] for slot in block)]
    order = tuple(slot for block in blocks for slot in block)
    return replace(decided, order=order, blocks=tuple(blocks), split=True)
