"""Plans: what the masks leave open is decided, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Net, masks_for, prune
from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan


def block(channels: int = 24) -> onnx.ModelProto:
    """A residual block and a Concat: four consumers of one segment."""
    net = Net()
    x = net.conv(net.input("x", (1, 3, 4, 4)), channels, name="stem")
    y = net.op("Add", net.conv(net.op("Relu", x), channels, 3, name="b"), x)
    z = net.op("Concat", y, net.conv(y, 8, name="c"), axis=1)
    return net.output(net.conv(z, 4, name="d"), net.conv(y, 4, name="e")).model()


MODEL = block()
TRACE = trace(MODEL)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), lowering=st.sampled_from(sorted(LOWERING_RULES)), density=st.floats(0.05, 0.95))
def test_masks_are_honoured_exactly_without_fill(seed: int, lowering: str, density: float) -> None:
    random = np.random.default_rng(seed)
    kept = {}
    for name, consumer in TRACE.consumers.items():
        chosen = np.flatnonzero(random.random(consumer.channels) < density).tolist()
        kept[name] = chosen or [int(random.integers(consumer.channels))]
    masks = masks_for(TRACE, kept)
    plan = make_plan(TRACE, masks, Settings(lowering=lowering))
    for name, consumer in plan.consumers.items():
        assert list(consumer.keep) == sorted(kept[name])
        assert set(consumer.keep) <= set(consumer.read)
        assert len(set(consumer.read)) == len(consumer.read)
    assert {name: mask.tolist() for name, mask in plan.masks().items()} == {
        name: mask.tolist() for name, mask in masks.items() if not mask.all()
    }
    filled = make_plan(TRACE, masks, Settings(lowering=lowering, fill=True))
    for name, consumer in filled.consumers.items():
        assert set(kept[name]) <= set(consumer.keep)
        assert set(consumer.keep) == set(consumer.read)


def test_consumers_read_in_the_order_of_the_layout() -> None:
    _, plan, _ = prune(MODEL, {"b": [0, 5, 9], "c": [5, 9, 20], "e": [9, 20, 21, 22]}, lowering="gather")
    for segment, decided in zip(TRACE.segments, plan.segments, strict=True):
        layouts = segment_layouts(TRACE, segment, decided.order)
        for name in segment.consumers:
            layout = layouts[TRACE.consumers[name].use.tensor_axis].tolist()
            places = [layout.index(channel) for channel in plan.consumers[name].read]
            assert places == sorted(places)


def test_contiguous_orders_are_found() -> None:
    """Two readers can always be served at once: no Gather remains."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 64, name="a")
    model = net.output(net.conv(a, 4, name="b"), net.conv(a, 4, name="c")).model()
    random = np.random.default_rng(0)
    kept = {name: sorted(random.choice(64, 32, replace=False).tolist()) for name in "bc"}
    _, plan, emitted = prune(model, kept, lowering="slice")
    assert {plan.segments[1].lowerings[name] for name in "bc"} == {"slice"}
    assert not [node for node in emitted.graph.node if node.op_type == "Gather"]
    assert plan.segments[1].status == "OPTIMAL"
    assert plan.segments[1].objective == plan.segments[1].bound > 0


def test_a_segment_that_no_mask_touches_stays_as_it_is() -> None:
    plan = make_plan(TRACE, {}, Settings())
    for segment, decided in zip(TRACE.segments, plan.segments, strict=True):
        assert sorted(decided.order) == list(range(len(segment.classes)))
        assert set(decided.lowerings.values()) <= {"direct"}
    assert all(c.read == tuple(range(c.channels)) == c.keep for c in plan.consumers.values())
    assert plan.masks() == {}


def test_untouched_segments_with_interleaved_groups_stay_in_order() -> None:
    """A Slice out of the middle makes three groups; their order is that of the channels."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    model = net.output(net.conv(net.slice(a, [1], [2], [5]), 2, name="b"), net.conv(a, 2, name="c")).model()
    traced, plan, emitted = prune(model, {})
    assert plan.segments[traced.consumers["b"].segment].order == tuple(range(8))
    assert emitted.SerializeToString() == _named(model).SerializeToString()


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    from ucpe_onnx.model.naming import node_names

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node, name in zip(copy.graph.node, node_names(model.graph.node), strict=True):
        node.name = name
    return copy


def test_plans_repeat() -> None:
    kept = masks_for(TRACE, {"b": [0, 5, 9], "d": [1, 5, 30], "e": [9, 20]})
    first, second = (make_plan(TRACE, kept, Settings(seed=3)).to_dict() for _ in range(2))
    for plan in (first, second):
        for segment in plan["segments"]:
            del segment["seconds"]
    assert first == second


def test_settings_are_recorded() -> None:
    plan = make_plan(TRACE, {}, Settings(options={"ratio": 0.5}, source_sha256="ab"))
    assert (plan.options, plan.source_sha256) == ({"ratio": 0.5}, "ab")
    assert list(plan.consumers) == list(TRACE.consumers)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_the_time_limit_holds_and_a_valid_order_comes_back(seconds: float) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 60, name="a")
    model = net.output(*[net.conv(a, 2, name=f"r{i}") for i in range(12)]).model()
    traced = trace(model)
    random = np.random.default_rng(1)
    masks = {f"r{i}": random.random(60) < 0.5 for i in range(12)}
    plan = make_plan(traced, masks, Settings(seconds=seconds))
    decided = plan.segments[traced.consumers["r0"].segment]
    assert decided.seconds < 5
    assert len(set(decided.order)) == len(decided.order)
    assert decided.bound <= decided.objective
