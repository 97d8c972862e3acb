"""The vectorised union-find against a naive one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ucpe_onnx.analysis.slots import SlotTable, components


class NaiveUnionFind:
    def __init__(self, count: int) -> None:
        self.members = [{i} for i in range(count)]

    def join(self, a: int, b: int) -> None:
        merged = self.members[a] | self.members[b]
        for member in merged:
            self.members[member] = merged

    def roots(self) -> list[int]:
        return [min(members) for members in self.members]


@st.composite
def edges(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    count = draw(st.integers(1, 40))
    vertex = st.integers(0, count - 1)
    return count, draw(st.lists(st.tuples(vertex, vertex), max_size=60))


@given(edges())
def test_components(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = graph
    naive = NaiveUnionFind(count)
    for a, b in pairs:
        naive.join(a, b)
    left, right = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    assert components(count, left, right).tolist() == naive.roots()


def test_components_of_a_long_chain_in_the_worst_order() -> None:
    left = np.random.default_rng(0).permutation(5000)
    assert (components(5001, left, left + 1) == 0).all()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_table(sizes: list[int], data: st.DataObject) -> None:
    table = SlotTable()
    ids = [table.add((f"t{i}", 1), size) for i, size in enumerate(sizes)]
    naive = NaiveUnionFind(sum(sizes))
    frozen: set[int] = set()
    for _ in range(data.draw(st.integers(0, 6))):
        a, b = (data.draw(st.sampled_from(ids)) for _ in range(2))
        width = min(len(a), len(b))
        table.join(a[:width], b[-width:])
        for left, right in zip(a[:width], b[-width:], strict=True):
            naive.join(int(left), int(right))
    for _ in range(data.draw(st.integers(0, 2))):
        chosen = data.draw(st.sampled_from(ids))[:1]
        table.freeze(chosen, "because")
        frozen.add(int(chosen[0]))
    slots = table.resolve()
    roots = naive.roots()
    assert slots.count == len(set(roots))
    flat = np.concatenate([slots.axes[f"t{i}", 1] for i in range(len(sizes))])
    for i in range(len(flat)):
        assert [bool(flat[i] == other) for other in flat] == [roots[i] == root for root in roots]
        assert slots.frozen[flat[i]] == bool(frozen & naive.members[i])
    assert all(reason == "because" for _, reason in slots.reasons)


def test_an_axis_gets_its_ids_once() -> None:
    table = SlotTable()
    first = table.add(("t", 1), 3)
    assert table.add(("t", 1), 3) is first
    assert table.add(("t", 0), 2).tolist() == [3, 4]
    assert ("t", 0) in table and ("u", 0) not in table


def test_freezing_after_the_relation_is_solved() -> None:
    table = SlotTable()
    table.join(table.add(("a", 0), 3), table.add(("b", 0), 3))
    slots = table.resolve()
    slots.freeze(slots.axes["b", 0][1:2], "late")
    assert slots.frozen.tolist() == [False, True, False]
    slots.freeze(np.empty(0, dtype=np.int64), "nothing")
    assert [reason for _, reason in slots.reasons] == ["late"]
