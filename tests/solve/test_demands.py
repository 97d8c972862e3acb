from __future__ import annotations

from ucpe_onnx.solve import OrderingProblem, Reader
from ucpe_onnx.solve.demands import compile_demands, connected, left_anchor, right_anchor

GROUPS = ((0, 1, 2), (3, 4, 5), (), (6, 7, 8))
LEFT, RIGHT = left_anchor(3), right_anchor(3)


def demands_of(*readers: Reader, fixed: frozenset[int] = frozenset()) -> list[dict[int, int]]:
    return [demand.sets for demand in compile_demands(OrderingProblem(GROUPS, readers, fixed)).open]


def reader(name: str, *keep: int, sequence: tuple[int, ...] = (0, 1, 2, 3)) -> Reader:
    return Reader(name, frozenset(keep), sequence)


def test_suffix_all_prefix() -> None:
    assert demands_of(reader("r", 1, 3, 4, 5, 6, 8)) == [{0: 0b010 | RIGHT, 3: 0b101 | LEFT}]
    assert demands_of(reader("r", 1, 3, sequence=(1, 0))) == [{1: 0b001 | RIGHT, 0: 0b010 | LEFT}]
    assert demands_of(reader("gap in the middle", 1, 3, 4, 6)) == []
    assert demands_of(reader("nothing of the middle", 1, 6)) == []


def test_trivial_readers_demand_nothing() -> None:
    readers = (reader("none"), reader("one", 4), reader("group", 3, 4, 5), reader("groups", 0, 1, 2, 3, 4, 5))
    demands = compile_demands(OrderingProblem(GROUPS, readers))
    assert demands.open == ()
    assert demands.trivial == {"none", "one", "group", "groups"}


def test_fixed_groups_are_met_or_not() -> None:
    fixed = frozenset({0})
    assert demands_of(reader("suffix", 1, 2, 3), fixed=fixed) == [{1: 0b001 | LEFT}]
    assert demands_of(reader("no suffix", 0, 1, 3), fixed=fixed) == []
    assert demands_of(reader("prefix", 4, 0, sequence=(1, 0)), fixed=fixed) == [{1: 0b010 | RIGHT}]
    assert demands_of(reader("no prefix", 4, 1, sequence=(1, 0)), fixed=fixed) == []
    assert demands_of(reader("gap", 0, 2), fixed=fixed) == []


def test_equal_demands_are_merged() -> None:
    readers = (reader("a", 0, 1), reader("b", 0, 1, sequence=(0,)), reader("c", 1, 2))
    demands = compile_demands(OrderingProblem(GROUPS, readers)).open
    assert [(demand.names, demand.weight) for demand in demands] == [(("a", "b"), 2.0), (("c",), 1.0)]


def test_parts_that_cannot_interact() -> None:
    readers = (reader("a", 0, 1), reader("b", 1, 2), reader("c", 3, 4), reader("d", 5, 6), reader("e", 3, 4, 6))
    demands = compile_demands(OrderingProblem(GROUPS, readers)).open
    assert connected(demands, [3, 3, 0, 3]) == [[0, 1], [2], [3, 4]]
