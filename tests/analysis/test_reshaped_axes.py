"""How a reshape falls apart into independent ones, against brute force on indices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucpe_onnx.analysis.rules.regroup import matched_axes

lengths = st.integers(1, 6)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of one number of elements, by regrouping the factors of both."""
    factors = draw(st.lists(lengths, min_size=1, max_size=6))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(factors) - 1)))) if len(factors) > 1 else []
        bounds = [0, *cuts, len(factors)]
        shape = [math.prod(factors[a:b]) for a, b in itertools.pairwise(bounds)]
        for _ in range(draw(st.integers(0, 2))):
            shape.insert(draw(st.integers(0, len(shape))), 1)
        return tuple(shape)

    return grouped(), grouped()


@given(reshapes())
def test_groups_are_independent_reshapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    before, after = shapes
    pairs = matched_axes(before, after)
    assert pairs is not None
    assert [axis for sources, _ in pairs for axis in sources] == list(range(len(before)))
    assert [axis for _, targets in pairs for axis in targets] == list(range(len(after)))
    indices = np.indices(before).reshape(len(before), *after)
    for sources, targets in pairs:
        others = tuple(axis for axis in range(len(after)) if axis not in targets)
        for source in sources:  # the input index depends on the group's output indices alone
            values = indices[source]
            for axis in others:
                assert (values == np.take(values, [0], axis=axis)).all()


@given(reshapes())
def test_groups_are_as_small_as_can_be(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    before, after = shapes
    for sources, targets in matched_axes(before, after) or ():
        left = {math.prod(before[axis] for axis in sources[:n]) for n in range(1, len(sources))}
        right = {math.prod(after[axis] for axis in targets[:n]) for n in range(1, len(targets))}
        whole = math.prod(before[axis] for axis in sources)
        assert not (left & right) - {1, whole}


@pytest.mark.parametrize(
    "before, after, pairs",
    [
        ((2, 8, 4, 4), (2, 128), [([0], [0]), ([1, 2, 3], [1])]),
        (("N", 8, 4, 4), ("N", 8, 16), [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        (("N", 8, 4, 4), (None, 128), [([0], [0]), ([1, 2, 3], [1])]),
        ((None, 8, "h", "w"), (None, 8, "h", "w"), [([0], [0]), ([1], [1]), ([2], [2]), ([3], [3])]),
        (("N", 8, "h", "w"), ("N", 8, "h", "w"), [([0], [0]), ([1], [1]), ([2], [2]), ([3], [3])]),
        (("N", 8, "h", "w"), ("N", 8, None), [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        (("N", 8, "h", "w"), ("N", 2, None), [([0], [0]), ([1, 2, 3], [1, 2])]),
        (("N", "T", 12, 64), ("N", "T", 768), [([0], [0]), ([1], [1]), ([2, 3], [2])]),
        (("N", "T", 768), (None, 12, 64), [([0, 1], [0]), ([2], [1, 2])]),
        (("a", "b", 8), ("b", "a", 8), [([0, 1], [0, 1]), ([2], [2])]),
        (("N", 8), ("N", 9), None),
        ((1, 8, 1, 1), (8,), [([0, 1], [0]), ([2], []), ([3], [])]),
        ((0, 8), (8, 0), None),
    ],
)
def test_unknown_lengths(before: tuple, after: tuple, pairs: list | None) -> None:
    assert matched_axes(before, after) == pairs
