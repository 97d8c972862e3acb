"""The ratio starts at nothing, never falls, and is full where it should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.pruning.pruning_models import few
from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning import Schedule


@few
@given(
    st.integers(1, 200),
    st.floats(0, 0.6),
    st.one_of(st.none(), st.floats(0, 0.4)),
    st.sampled_from(["linear", "cubic"]),
    st.integers(1, 7),
)
def test_it_grows_from_0_to_1(steps: int, warmup: float, ramp: float | None, shape: str, every: int) -> None:
    schedule = Schedule(steps, warmup, ramp, shape, every)
    ratios = [schedule.ratio_at(step) for step in range(steps + 5)]
    assert ratios == sorted(ratios)
    assert all(0 <= ratio <= 1 for ratio in ratios)
    assert all(ratio == 0 for ratio in ratios[: schedule.start])
    assert ratios[steps] == 1


def test_the_default_leaves_a_third_of_the_steps_at_the_full_ratio() -> None:
    ratios = [Schedule(300).ratio_at(step) for step in range(300)]
    assert ratios[48] == 0 < ratios[49]
    assert ratios[199] < 1 == ratios[200]
    assert ratios[124] == pytest.approx(0.5)


def test_the_cubic_one() -> None:
    """Zhu and Gupta's equation 1."""
    assert Schedule(100, 0, 0.8, "cubic").ratio_at(20) == pytest.approx(1 - (1 - 0.25) ** 3)


def test_the_papers_own() -> None:
    """Of epoch e the share is min(1, epsilon (e - s)), with s = 16 of 100 epochs and epsilon = 0.015."""
    schedule = Schedule(100 * 10, 16 / 100, 1 / (0.015 * 100), "linear", every=10)
    for epoch in range(100):
        wanted = min(1.0, 0.015 * max(0, epoch - 16))
        for step in (0, 3, 9):
            assert schedule.ratio_at(10 * epoch + step) == pytest.approx(wanted)


def test_the_share_of_the_hold_that_is_over() -> None:
    schedule = Schedule(100, 0.2, 0.4)
    assert [schedule.held_at(step) for step in (0, 60, 70, 80, 100, 110)] == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert [Schedule(10, 0.5, 0.5).held_at(step) for step in (5, 9, 10)] == [0, 0, 1]


def test_the_share_of_the_time_until_some_of_the_hold_is_over() -> None:
    schedule = Schedule(100, 0.2, 0.4)
    assert [schedule.share_until(0.5, step) for step in (0, 20, 50, 80, 100)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [schedule.share_until(1, step) for step in (60, 100)] == pytest.approx([0.5, 1])
    assert [Schedule(10, 0.5, 0).share_until(0, step) for step in (4, 5)] == [0, 1]


def test_without_warm_up_or_ramp_it_is_full_at_once() -> None:
    assert Schedule(10, 0, 0).ratio_at(0) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "at least one step"),
        ((10, -0.1), "shares of the steps"),
        ((10, 0.5, 0.6), "no step at the full ratio"),
        ((10, 0.1, 0.2, "square"), "linear or cubic"),
        ((10, 0.1, 0.2, "linear", 0), "at least one step"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Schedule(*arguments)  # type: ignore[arg-type]
