"""Plans that split segments at random: any partition into blocks, any lowering that a consumer can take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.trace import Segment, Trace
from ucpe_onnx.plan import Plan, SegmentPlan
from ucpe_onnx.planning.routes import Routes

KINDS = ("partial", "concat", "duplicate", "gather", "union")


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
            layout = layouts[consumer.use.tensor_axis]
            possible = ["direct" if keep[layout].all() else "union"]
            if routes.selects(consumer) and keep.any():
                possible += ["concat"] if routes.divides(consumer) else []
                possible += ["partial"] if routes.summable(consumer) else []
                possible += ["duplicate"] if routes.separable(consumer) else []
                possible += [] if keep[layout].all() else ["gather"]
            wanted = [kind for kind in possible if kind in KINDS]
            lowerings[name] = str(random.choice(wanted or possible))
            reads[name] = ()
        segments[-1] = replace(segments[-1], lowerings=lowerings)
    consumers = {name: replace(consumer, read=reads[name]) for name, consumer in plan.consumers.items()}
    return replace(plan, consumers=consumers, segments=tuple(segments))


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
