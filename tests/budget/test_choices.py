"""What there is to choose from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.budget.nets import by_weights, joined, limits, recurrent, residual
from tests.builders import Net
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.budget.choices import ChoiceLimits, SegmentChoices, choices_for
from ucpe_onnx.selection.data_criteria import RemovalCurve


def chosen(traced: Trace, limit: ChoiceLimits) -> list[SegmentChoices]:
    return choices_for(traced, by_weights(traced), limit)


def chain() -> Trace:
    """One layer that one other reads."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 16, name="a"))
    return trace(net.output(net.conv(a, 4, name="b")).model())


@pytest.mark.parametrize("mode", ["auto", "unconstrained", "constrained"])
@pytest.mark.parametrize("build", [residual, joined])
def test_bases_are_nested_and_ways_within_them(build, mode: str) -> None:
    traced = trace(build())
    for choice in chosen(traced, limits(mode)):
        segment = traced.segments[choice.segment]
        assert choice.bases[0].all()
        assert all(
            (smaller <= larger).all() and smaller.sum() < larger.sum() for larger, smaller in pairwise(choice.bases)
        )
        assert all(base[segment.frozen].all() for base in choice.bases)
        for name, ways in choice.readings.items():
            consumer = traced.consumers[name]
            assert {way.base for way in ways} == set(range(len(choice.bases)))
            assert ways[0].mask.all() and ways[0].loss == 0.0
            for way in ways:
                assert way.kept == way.mask.sum() > 0 and way.mask[~consumer.prunable].all()
                assert (way.mask <= choice.bases[way.base][consumer.slots]).all()
            for one, other in pairwise(ways):
                if one.base == other.base:
                    assert (other.mask <= one.mask).all() and other.kept < one.kept
                    assert other.loss >= one.loss - 1e-12


def test_modes() -> None:
    traced = trace(residual())
    by_mode = {
        mode: {c.segment: c for c in chosen(traced, limits(mode))} for mode in ("auto", "unconstrained", "constrained")
    }
    shared, alone = traced.consumers["left"].segment, traced.consumers["right"].segment
    for found in by_mode.values():  # who reads alone has nothing to select from
        ways = found[alone].readings["right"]
        assert len(found[alone].bases) > 5 and len(ways) == len(found[alone].bases)
        assert all(way.kept == found[alone].bases[way.base].sum() for way in ways)
    assert len(by_mode["unconstrained"][shared].bases) == 1
    assert len(by_mode["constrained"][shared].readings["left"]) == len(by_mode["constrained"][shared].bases) > 5
    assert len(by_mode["auto"][shared].readings["left"]) > len(by_mode["auto"][shared].bases) > 5
    for name, ways in by_mode["constrained"][shared].readings.items():
        slots = traced.consumers[name].slots
        assert all((way.mask == by_mode["constrained"][shared].bases[way.base][slots]).all() for way in ways)


@pytest.mark.parametrize("mode", ["auto", "constrained"])
@pytest.mark.parametrize("most", [0.1, 0.34, 0.95])
def test_no_consumer_loses_more_than_it_may(mode: str, most: float) -> None:
    for build in (residual, joined):
        traced = trace(build())
        for choice in chosen(traced, limits(mode, most)):
            for name, ways in choice.readings.items():
                prunable = int(traced.consumers[name].prunable.sum())
                lost = [traced.consumers[name].channels - way.kept for way in ways]
                assert max(lost) <= most * prunable
                if len(traced.segments[choice.segment].consumers) == 1:
                    assert max(lost) == int(most * prunable)  # what may go is looked at, too


def test_what_one_consumer_must_keep_stays_for_all() -> None:
    traced = trace(residual())
    found = {c.segment: c for c in chosen(traced, limits(most={"left": 0.0}))}
    choice = found[traced.consumers["left"].segment]
    assert len(choice.bases) == 1 and len(choice.readings["left"]) == 1
    assert len(choice.readings.get("fc", (0, 0))) > 1
    some = {c.segment: c for c in chosen(traced, limits("constrained", most={"left": 0.25}))}
    assert min(base.sum() for base in some[traced.consumers["left"].segment].bases) == 9


def test_frozen_channels_stay() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    joint = net.op("Concat", x, net.conv(x, 6, name="a"), axis=1)
    traced = trace(net.output(net.conv(joint, 4, name="b"), net.conv(joint, 4, name="c")).model())
    (choice,) = chosen(traced, limits())
    assert len(choice.bases) > 3
    for ways in choice.readings.values():
        assert all(way.mask[:3].all() for way in ways) and any(way.kept == 4 for way in ways)
    alone = Net()
    assert chosen(trace(alone.output(alone.conv(alone.input(), 3)).model()), limits()) == []


def test_multiples() -> None:
    traced = chain()
    (choice,) = chosen(traced, limits(multiple=4))
    assert [int(base.sum()) for base in choice.bases] == [16, 12, 8, 4]
    two = trace(residual())
    choice = next(c for c in chosen(two, limits(reading=4)) if len(c.readings) > 1)
    selections = [way.kept for way in choice.readings["left"] if way.base == 0]
    assert len(selections) > 2 and all(kept % 4 == 0 for kept in selections)


def test_channels_that_cost_alike() -> None:
    """What goes from the segment is the beginning of the consumer's own curve, also among equals."""
    traced = chain()
    losses = by_weights(traced)
    order = np.random.default_rng(0).permutation(16)
    losses._known["b"] = RemovalCurve(tuple(np.array([channel]) for channel in order), np.zeros(16))
    (choice,) = choices_for(traced, losses, limits(most=0.5))
    assert len(choice.bases) == 9
    for way in choice.readings["b"]:
        assert way.kept == choice.bases[way.base].sum() >= 8


def test_flattened_channels_go_whole() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 2, 2)), 6, name="a")
    traced = trace(net.output(net.gemm(net.op("Flatten", a), 2, name="b")).model())
    (choice,) = chosen(traced, limits())
    for way in choice.readings["b"]:
        assert (way.mask.reshape(6, 4) == choice.bases[way.base][:, None]).all()


@pytest.mark.parametrize("mode", ["auto", "unconstrained", "constrained"])
def test_a_recurrence_keeps_what_is_emitted(mode: str) -> None:
    traced = trace(recurrent())
    for name in ("b/recurrence", "c/recurrence"):
        consumer = traced.consumers[name]
        (choice,) = [c for c in chosen(traced, limits(mode)) if c.segment == consumer.segment]
        assert len(choice.bases) > 2
        ways = choice.readings[name]
        assert [way.base for way in ways] == list(range(len(choice.bases)))
        for way in ways:
            assert np.array_equal(way.mask, choice.bases[way.base][consumer.slots])
