from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucpe_onnx.solve.consecutive import arrange, failing_component, has_consecutive_ones, ordered_blocks, overlap

SLOTS = 6
ORDERS = np.array(list(permutations(range(SLOTS))))
POWERS = 1 << np.arange(SLOTS)


def serves_all(sets: list[int]) -> bool:
    """Whether some permutation makes each set a run."""
    good = np.ones(len(ORDERS), dtype=bool)
    for members in sets:
        bits = ((members >> ORDERS) & 1) @ POWERS
        good &= (bits & (bits + (bits & -bits))) == 0
    return bool(good.any())


def is_run(order: list[int], members: int) -> bool:
    places = [place for place, slot in enumerate(order) if members >> slot & 1]
    return not places or places[-1] - places[0] + 1 == len(places)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 2**SLOTS - 1), max_size=6))
def test_agrees_with_all_permutations(sets: list[int]) -> None:
    possible = serves_all(sets)
    order = arrange(2**SLOTS - 1, sets)
    assert has_consecutive_ones(sets) == possible == (order is not None)
    if order is not None:
        assert sorted(order) == list(range(SLOTS))
        assert all(is_run(order, members) for members in sets)
    else:
        failing = failing_component(sets)
        assert failing is not None
        assert not serves_all([sets[index] for index in failing])


def test_random_families_agree_with_all_permutations() -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(400):
        order = rng.permutation(SLOTS)
        sets = []
        for _ in range(5):
            low, high = sorted(rng.integers(0, SLOTS + 1, size=2))
            sets.append(int(sum(1 << slot for slot in order[low:high])) ^ int((rng.random() < 0.4) << rng.integers(6)))
        outcomes.append(serves_all(sets))
        assert has_consecutive_ones(sets) == outcomes[-1]
    assert 50 < sum(outcomes) < 350  # both answers are exercised


# The five kinds of minimal obstructions (Tucker, J. Combin. Theory B 12, 1972), smallest members, as sets of slots.
TUCKER = {
    "I": [{0, 1}, {1, 2}, {0, 2}],
    "I, four": [{0, 1}, {1, 2}, {2, 3}, {3, 0}],
    "II": [{0, 1}, {1, 2}, {0, 1, 3}, {1, 2, 3}, {0, 2, 3}],
    "III": [{0, 1}, {1, 2}, {1, 3}],
    "IV": [{0, 1}, {2, 3}, {4, 5}, {0, 2, 4}],
    "V": [{0, 1}, {2, 3}, {0, 1, 2, 3}, {0, 2, 4}],
}


@pytest.mark.parametrize("sets", TUCKER.values(), ids=TUCKER)
def test_obstructions(sets: list[set[int]]) -> None:
    masks = [sum(1 << slot for slot in members) for members in sets]
    assert has_consecutive_ones(masks) == serves_all(masks)
    assert not has_consecutive_ones(masks)


def test_blocks_of_a_chain() -> None:
    assert ordered_blocks([0b0111, 0b1100]) == [0b0011, 0b0100, 0b1000]
    assert overlap(0b0111, 0b1100)
    assert not overlap(0b0111, 0b0011)
    assert not overlap(0b0011, 0b1100)


def test_free_choices_follow_the_original_order() -> None:
    assert arrange(0b11111, []) == [0, 1, 2, 3, 4]
    assert arrange(0b11111, [0b10010]) == [0, 1, 4, 2, 3]
    assert arrange(0b11111, [0b01110, 0b11000]) == [0, 1, 2, 3, 4]


def test_left_anchor_comes_first() -> None:
    everything, left, right = 0b0111, 0b01000, 0b10000
    order = arrange(everything | left | right, [0b0100 | left, everything | left, everything | right], left)
    assert order == [3, 2, 0, 1, 4]
