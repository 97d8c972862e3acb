"""From scores to masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Net
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.selection.select import Selection, matches, select_masks
from ucpe_onnx.selection.tied import slot_scores


def branches() -> Trace:
    """x -> a (12) read by b, c and, beside the 3 channels of x, by d; b (8) is read by e."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a = net.conv(x, 12, name="a")
    b = net.conv(a, 8, name="b")
    net.output(net.conv(a, 2, name="c"), net.conv(net.op("Concat", x, a, axis=1), 2, name="d"))
    return trace(net.output(net.conv(b, 2, name="e")).model())


TRACE = branches()
READERS = {"b": 12, "c": 12, "d": 12, "e": 8}
"""Consumers with prunable channels, and how many of these they have."""


def random_scores(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.random(TRACE.consumers[name].channels) for name in READERS}


def dropped(masks: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}


@settings(max_examples=40, derandomize=True)
@given(ratio=st.floats(0, 0.999), seed=st.integers(0, 5))
def test_local_drops_exactly_that_share_of_every_consumer(ratio: float, seed: int) -> None:
    scores = random_scores(seed)
    masks = select_masks(TRACE, scores, Selection(ratio))
    assert dropped(masks) == {name: int(ratio * n) for name, n in READERS.items() if int(ratio * n)}
    for name, mask in masks.items():
        prunable = TRACE.consumers[name].prunable
        assert mask[~prunable].all() and mask.any()
        assert scores[name][~mask].max() <= scores[name][mask & prunable].min()


@settings(max_examples=40, derandomize=True)
@given(ratio=st.floats(0, 0.999), seed=st.integers(0, 5))
def test_global_drops_that_share_of_all_but_never_a_whole_consumer(ratio: float, seed: int) -> None:
    scores = random_scores(seed)
    scores["e"] *= 1e-3  # all of e's scores are among the lowest
    masks = select_masks(TRACE, scores, Selection(ratio, scope="global"))
    total = int(ratio * sum(READERS.values()))
    assert total - len(READERS) <= sum(dropped(masks).values()) <= total  # each may get one back
    assert all(mask.any() for mask in masks.values())
    gone = [s for name, mask in masks.items() for s in scores[name][~mask]]
    stay = [s for n in READERS for s in scores[n][masks.get(n, np.True_) & TRACE.consumers[n].prunable]]
    if sum(dropped(masks).values()) == total and gone:
        assert max(gone) <= min(stay)


def test_global_keeps_the_best_channel_of_a_consumer_that_would_lose_all() -> None:
    scores = random_scores()
    scores["e"] = np.linspace(1e-6, 2e-6, 8)[::-1].copy()
    masks = select_masks(TRACE, scores, Selection(0.5, scope="global"))
    assert np.flatnonzero(masks["e"]).tolist() == [0]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_constrained_masks_agree_on_every_slot(scope: str) -> None:
    masks = select_masks(TRACE, random_scores(), Selection(0.5, scope, constrained=True))
    assert np.array_equal(masks["b"], masks["c"])
    assert np.array_equal(masks["d"][3:], masks["b"]) and masks["d"][:3].all()
    if scope == "local":
        assert dropped(masks) == {"b": 6, "c": 6, "d": 6, "e": 4}


def test_constrained_goes_by_the_mean_score() -> None:
    scores = random_scores()
    for name in ("b", "c", "d"):
        scores[name] = np.ones(TRACE.consumers[name].channels)
    scores["b"][4] = 0.0
    scores["c"][4] = 0.1
    scores["b"][5] = 0.2  # low for one reader only
    masks = select_masks(TRACE, scores, Selection(1 / 12, constrained=True))
    assert np.flatnonzero(~masks["b"]).tolist() == [4]


def test_constrained_keeps_a_channel_of_every_part() -> None:
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    joined = net.op("Concat", net.conv(x, 4), net.conv(x, 2), axis=1)
    traced = trace(net.output(net.conv(joined, 2, name="c")).model())
    scores = {"c": np.array([9.0, 8, 7, 6, 1, 2])}
    mask = select_masks(traced, scores, Selection(0.5, constrained=True))["c"]
    assert mask.tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize("constrained", [False, True])
def test_ignored_consumers_keep_everything(constrained: bool) -> None:
    masks = select_masks(TRACE, random_scores(), Selection(0.5, constrained=constrained, ignore=("[ab]",)))
    assert "b" not in masks
    assert ("c" in masks) == (not constrained)  # constrained: what b keeps, the other readers keep
    assert dropped(masks)["e"] == 4


def test_patterns_are_of_whole_names_and_know_case() -> None:
    masks = select_masks(TRACE, random_scores(), Selection(0.5, ignore=("B", "x*", "?b")))
    assert set(masks) == set(READERS)


def test_ratio_for_the_last_match_counts() -> None:
    chosen = Selection(0.5, ratio_for=(("*", 0.25), ("b", 0.75), ("e", 0.0)))
    assert [chosen.ratio_of(name) for name in "abe"] == [0.25, 0.75, 0.0]
    masks = select_masks(TRACE, random_scores(), chosen)
    assert dropped(masks) == {"b": 9, "c": 3, "d": 3}


def test_ratio_for_in_a_constrained_segment_is_the_least() -> None:
    chosen = Selection(0.5, constrained=True, ratio_for=(("c", 0.25),))
    assert dropped(select_masks(TRACE, random_scores(), chosen)) == {"b": 3, "c": 3, "d": 3, "e": 4}


def test_nothing_to_prune() -> None:
    assert select_masks(TRACE, random_scores(), Selection(0.0)) == {}
    assert select_masks(TRACE, {}, Selection(0.5, scope="global")) == {}
    assert select_masks(TRACE, random_scores(), Selection(0.5, scope="global", ignore=("*",))) == {}


@pytest.mark.parametrize("constrained", [False, True])
def test_flattened_channels_stay_or_go_as_a_whole(constrained: bool) -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 2, 2)), 6, name="a")
    traced = trace(net.output(net.gemm(net.op("Flatten", a), 2, name="g")).model())
    scores = {"g": np.repeat(np.random.default_rng(0).random(6), 4)}
    mask = select_masks(traced, scores, Selection(0.5, constrained=constrained))["g"]
    assert mask.sum() == 12
    assert (mask.reshape(6, 4).all(axis=1) | ~mask.reshape(6, 4).any(axis=1)).all()


def test_slot_scores_scale_every_reader_to_mean_1() -> None:
    segment = TRACE.segments[TRACE.consumers["b"].segment]
    readers = [TRACE.consumers[name] for name in ("b", "c")]
    slots = readers[0].slots
    ramp = np.arange(12.0)
    scores = {"b": ramp, "c": 1000 * ramp[::-1]}
    found = slot_scores(segment, readers, scores)
    assert np.allclose(found[slots], 1.0)  # the ramps cancel
    assert (found[np.setdiff1d(np.arange(len(found)), slots)] == 0).all()  # slots that nobody scored


def test_a_name_with_brackets_matches_itself() -> None:
    assert matches("conv[0]", "conv[0]") and matches("conv1", "conv[0-9]") and not matches("conv1", "conv[0]")


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("most", [0.0, 0.25, 0.5, 0.9])
def test_nobody_loses_more_than_the_largest_share(scope: str, constrained: bool, most: float) -> None:
    scores = random_scores()
    scores["e"] *= 1e-3  # without a limit all of e would go first
    masks = select_masks(TRACE, scores, Selection(0.5, scope, constrained, most=most))
    lost = dropped(masks)
    assert all(count <= most * READERS[name] for name, count in lost.items())
    if scope == "local":
        assert lost == {name: int(min(0.5, most) * n) for name, n in READERS.items() if int(min(0.5, most) * n)}
    elif not constrained:
        assert lost.get("e", 0) == int(most * 8)
    if scope == "global" and most == 0.9:
        slots = {"b": 12, "e": 8} if constrained else READERS  # slots of a segment count once
        assert sum(lost.get(name, 0) for name in slots) == int(0.5 * sum(slots.values()))


def test_what_may_not_go_is_made_up_for_elsewhere() -> None:
    scores = random_scores()
    scores["e"] *= 1e-3
    free, capped = (dropped(select_masks(TRACE, scores, Selection(0.4, "global", most=m))) for m in (None, 0.5))
    assert free["e"] == 7 and capped["e"] == 4
    assert sum(capped.values()) == int(0.4 * sum(READERS.values()))


@pytest.mark.parametrize("ratio", [0.29, 0.57, 0.7, 0.1, 0.3])
@pytest.mark.parametrize("each", [1, 7, 64])
def test_a_ratio_of_units_is_that_of_their_number(ratio: float, each: int) -> None:
    """Rounding of a product of floats makes no difference between units of one channel and of several."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, each, 1)), 100, name="a")
    traced = trace(net.output(net.gemm(net.op("Flatten", a), 2, name="f", trans_b=False)).model())
    gone = dropped(select_masks(traced, {"f": np.repeat(np.arange(100.0), each)}, Selection(ratio)))
    assert gone == {"f": int(ratio * 100) * each}


def wide_and_narrow() -> Trace:
    """a (8) is flattened to 8 times 4 channels and read by f (32), which b (32) reads."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 2, 2)), 8, name="a")
    f = net.gemm(net.op("Flatten", a), 32, name="f", trans_b=False)
    return trace(net.output(net.gemm(f, 2, name="b", trans_b=False)).model())


@pytest.mark.parametrize("constrained", [False, True])
def test_a_global_ratio_counts_channels(constrained: bool) -> None:
    """Of 64 channels a quarter is 16, whether they go one by one or four at a time."""
    traced = wide_and_narrow()
    for lowest in ("f", "b"):
        scores = {name: np.repeat(np.arange(1.0, 9), 4) * (1e-3 if name == lowest else 1) for name in ("f", "b")}
        scores = {name: score if lowest == name else score + 100 for name, score in scores.items()}
        if constrained:  # scaled to mean 1, the higher ones are all about 1
            scores[lowest] = np.repeat([1e-3, 1e-3, 1e-3, 1e-3, 1, 1, 1, 1], 4)
        gone = dropped(select_masks(traced, scores, Selection(0.25, "global", constrained)))
        assert gone == {lowest: 16}


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio, heads", [(0.25, 2), (0.3, 2), (0.375, 3), (0.1, 0)])
def test_what_goes_together_goes_if_it_fits_in(scope: str, ratio: float, heads: int) -> None:
    traced = wide_and_narrow()
    scores = {"f": np.repeat(np.arange(8.0), 4)}
    gone = dropped(select_masks(traced, scores, Selection(ratio, scope)))
    assert gone == ({"f": 4 * heads} if heads else {})


def unit_readers() -> Trace:
    """A layer of twelve units in both directions; b reads both side by side, c each by itself; d reads b."""
    net = Net()
    weights = [net.weight(net.normal(2, 36, size)) for size in (3, 12)]
    x = net.input("x", (4, 1, 3))
    y, last = net.ops("GRU", x, *weights, hidden_size=12, direction="bidirectional", name="r", outputs=2)
    y = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 4, 1, -1)
    b = net.op("MatMul", y, net.weight(net.normal(24, 8)), name="b")
    c = net.op("MatMul", last, net.weight(net.normal(12, 2)), name="c")
    d = net.op("MatMul", net.op("Relu", b), net.weight(net.normal(8, 2)), name="d")
    return trace(net.output(c, d).model())


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_all_that_read_the_units_of_a_recurrence_keep_the_same(scope: str, constrained: bool) -> None:
    traced, random = unit_readers(), np.random.default_rng(0)
    scores = {name: random.random(traced.consumers[name].channels) for name in ("r/recurrence", "b", "c", "d")}
    masks = select_masks(traced, scores, Selection(0.5, scope, constrained))
    assert np.array_equal(masks["b"], np.tile(masks["c"], 2))
    assert np.array_equal(masks["r/recurrence"], masks["c"])
    if scope == "local":
        assert dropped(masks) == {"r/recurrence": 6, "b": 12, "c": 6, "d": 4}


def test_an_ignored_recurrence_keeps_all_units() -> None:
    traced = unit_readers()
    scores = {name: np.arange(consumer.channels, dtype=float) for name, consumer in traced.consumers.items()}
    assert set(select_masks(traced, scores, Selection(0.5, ignore=("*/recurrence",)))) == {"d"}
