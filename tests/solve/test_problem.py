from __future__ import annotations

import pytest

from ucpe_onnx.solve import OrderingProblem, Reader, served_readers

GROUPS = ((0, 1, 2), (3, 4))


def reader(keep: set[int], sequence: tuple[int, ...] = (0, 1), weight: float = 1.0, name: str = "r") -> Reader:
    return Reader(name, frozenset(keep), sequence, weight)


@pytest.mark.parametrize(
    ("groups", "readers", "fixed", "message"),
    [
        (((0, 1), (1, 2)), (), set(), "slot 1 appears twice"),
        (((0, 0),), (), set(), "slot 0 appears twice"),
        (GROUPS, (reader({3}, (0,)),), set(), "outside its sequence"),
        (GROUPS, (reader({9}),), set(), "outside its sequence"),
        (GROUPS, (reader({0}, (0, 0)),), set(), "repeats a group"),
        (GROUPS, (reader({0}, (0, 2)),), set(), "unknown groups"),
        (GROUPS, (reader({0}, (0, -1)),), set(), "unknown groups"),
        (GROUPS, (), {5}, "unknown groups"),
        (GROUPS, (reader({0}, weight=-1.0),), set(), "weight"),
        (GROUPS, (reader({0}, weight=float("nan")),), set(), "weight"),
        (GROUPS, (reader({0}), reader({1})), set(), "two readers"),
    ],
)
def test_invalid_problems_are_refused(
    groups: tuple[tuple[int, ...], ...], readers: tuple[Reader, ...], fixed: set[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OrderingProblem(groups, readers, frozenset(fixed))


def test_checker_lays_out_and_looks() -> None:
    readers = (
        reader(set(), name="nothing"),
        reader({0, 1, 2, 3, 4}, name="all"),
        reader({2, 3}, name="across"),
        reader({2, 3}, (1, 0), name="reverse"),
        reader({0, 2}, (0,), name="gap"),
    )
    problem = OrderingProblem(GROUPS, readers)
    assert served_readers(problem, GROUPS) == {"nothing", "all", "across"}
    assert served_readers(problem, ((2, 0, 1), (4, 3))) == {"nothing", "all", "reverse", "gap"}


@pytest.mark.parametrize("groups", [((0, 1, 2),), ((0, 1, 3), (2, 4)), ((0, 1, 2), (4, 3)), ((0, 1), (3, 4))])
def test_checker_refuses_invalid_layouts(groups: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="group"):
        served_readers(OrderingProblem(GROUPS, (), frozenset({1})), groups)
