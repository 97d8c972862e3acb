from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.solve.block_instances import brute_force, concat, dense_block, fixed_layouts, trunk
from ucpe_onnx.solve.blocks import (
    KINDS,
    Block,
    BlockProblem,
    BlockReader,
    BlockSolution,
    BlockTensor,
    Choice,
    Copy,
    Group,
    SlotClass,
    Table,
    evaluate,
    search,
    solve_blocks,
)
from ucpe_onnx.solve.blocks import solve as solver_module
from ucpe_onnx.solve.blocks.bound import lower_bound
from ucpe_onnx.solve.blocks.layout import BlockPrices
from ucpe_onnx.solve.blocks.master import SolverLimits, all_types, solve_master
from ucpe_onnx.solve.blocks.partitions import fitted
from ucpe_onnx.solve.blocks.problem import OPTIMAL

COSTS = st.integers(0, 40).map(float)
SMALL = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.5])


@st.composite
def tables(draw: st.DrawFn, step: int, entries: int, slope: float, fall: float) -> Table:
    """Costs with an overhead and jumps, so that one block is not always the best."""
    rises = draw(st.lists(st.sampled_from([0.0, 1.0, 1.0, 1.0, 2.5, -fall]), min_size=entries, max_size=entries))
    us = np.maximum(0.0, draw(SMALL) + slope * np.cumsum(rises))
    return Table(step, np.concatenate([[0.0], us]))


@st.composite
def block_readers(draw: st.DrawFn, name: str, tensors: int, table: st.SearchStrategy[Table]) -> BlockReader:
    even = Copy(draw(SMALL), draw(SMALL) / 4)
    kinds = draw(st.sampled_from([["partial"], ["concat"], ["partial", "concat"], []]))
    kinds = [*kinds, *draw(st.lists(st.sampled_from(KINDS), min_size=not kinds, max_size=2))]
    return BlockReader(
        name,
        draw(st.integers(0, tensors - 1)),
        draw(table),
        part_us=draw(SMALL),
        concat=even,
        concat_ragged=Copy(even.call_us + draw(SMALL), even.channel_us + draw(SMALL)),
        select_us=draw(COSTS),
        duplicate_us=draw(COSTS),
        allowed=frozenset(kinds),
    )


@st.composite
def problems(draw: st.DrawFn, fall: float = 0.0) -> BlockProblem:
    """Small enough for brute force, with everything that a problem can have."""
    step = draw(st.sampled_from([1, 1, 2]))
    groups = draw(st.sampled_from([1, 1, 2]))
    readers = draw(st.sampled_from([3, 2, 1] if groups == 1 else [2, 1]))
    most = 6 // groups
    tensors = [
        BlockTensor(
            tuple(draw(st.permutations(range(groups)))), *draw(st.tuples(COSTS, COSTS, SMALL)), draw(st.booleans())
        )
        for _ in range(draw(st.sampled_from([1, 1, 2])))
    ]
    table = tables(step, most + 2, draw(st.sampled_from([8.0, 2.0])), fall)
    family = [draw(block_readers(f"r{index}", len(tensors), table)) for index in range(readers)]
    classes, laid = [], []
    for group in range(groups):
        left = most
        for pattern in draw(st.lists(st.integers(0, 2**readers - 1), min_size=2, max_size=4, unique=True)):
            count = draw(st.integers(1, 2))
            keepers = frozenset(index for index in range(readers) if pattern >> index & 1)
            if count <= left:
                classes.append(SlotClass(group, count, keepers, draw(st.sampled_from([False] * 5 + [True]))))
                left -= count
        made = tuple(draw(tables(step, most, 1.0, fall)) for _ in range(draw(st.integers(0, 2))))
        splittable = draw(st.sampled_from([True, True, True, False]))
        laid.append(Group(made, draw(st.integers(0, min(left, 2))), draw(SMALL), splittable))
    minimum, joined = draw(st.sampled_from([(1, 2), (2, 4), (3, 4), (2, 3)]))
    return BlockProblem(tuple(classes), tuple(laid), tuple(family), tuple(tensors), step, minimum, joined, max_blocks=3)


def check(problem: BlockProblem, solution: BlockSolution) -> None:
    """What holds for every solution; the evaluation also raises on an invalid one."""
    assert evaluate(problem, solution) == solution.objective
    assert 0 <= solution.bound <= solution.objective
    assert (solution.status == "OPTIMAL") == (solution.bound == solution.objective)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(problems())
def test_equals_brute_force(problem: BlockProblem) -> None:
    solution = solve_blocks(problem)
    best = brute_force(problem)
    check(problem, solution)
    assert solution.objective == pytest.approx(best)
    assert solution.status == "OPTIMAL"
    prices = BlockPrices(problem)
    start = min(search.fixed_layouts(prices), key=lambda layout: layout.us)
    alone = solve_master(prices, all_types(prices), start, SolverLimits(10.0, 10.0, 0.0, 0))
    assert lower_bound(prices) <= best + 1e-9
    assert alone.layout is not None
    assert alone.layout.us == pytest.approx(best)
    assert alone.bound == pytest.approx(best, abs=1e-4)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(problems(fall=0.25))
def test_costs_that_fall_mislead_nobody(problem: BlockProblem) -> None:
    solution = solve_blocks(problem)
    check(problem, solution)
    assert solution.bound - 1e-4 <= brute_force(problem) <= solution.objective + 1e-9
    if solution.status == "OPTIMAL":
        assert solution.objective == pytest.approx(brute_force(problem))


@pytest.mark.parametrize(
    "problem",
    [
        trunk(np.random.default_rng(0), 1, 64, 28, 0.5),
        trunk(np.random.default_rng(0), 4, 64, 28, 0.0),
        dense_block(np.random.default_rng(0), 1, 32, 28, 0.5),
        BlockProblem((), (), (), ()),
    ],
    ids=["one reader", "nothing dropped", "one layer", "nothing at all"],
)
def test_what_is_trivial_needs_no_search(problem: BlockProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr("ucpe_onnx.solve.blocks.solve.solve_master", never)
    monkeypatch.setattr("ucpe_onnx.solve.blocks.solve.warm_start", never)
    solution = solve_blocks(problem)
    check(problem, solution)
    assert solution.status == "OPTIMAL"
    assert all(len(blocks) == 1 for blocks in solution.groups)


def test_disjoint_readers_get_a_block_each() -> None:
    """Nothing is read in vain, and splitting costs nothing: the bound of the relaxation is met without CP-SAT."""
    made = Table.of(4, 64, lambda width: 2.0 * width)
    readers = tuple(BlockReader(name, 0, Table.of(4, 64, lambda width: 3.0 * width), part_us=1.0) for name in "ab")
    classes = (SlotClass(0, 32, frozenset({0})), SlotClass(0, 30, frozenset({1})))
    problem = BlockProblem(classes, (Group((made,), spare=2),), readers, (BlockTensor((0,), whole_us=9.0),))
    solution = solve_blocks(problem)
    check(problem, solution)
    assert solution.objective == 5.0 * 64
    assert {block.channels for block in solution.groups[0]} == {((0, 32),), ((1, 30),)}
    assert sorted(choice.blocks for choice in solution.choices) == [((0, 0),), ((0, 1),)]


LARGE = {
    "trunk": trunk(np.random.default_rng(1), 4, 256, 56, 0.5),
    "wide trunk": trunk(np.random.default_rng(1), 7, 1024, 14, 0.75),
    "concat": concat(np.random.default_rng(1), [64, 128, 32, 32], 4, 28, 0.5),
    "dense block": dense_block(np.random.default_rng(1), 24, 32, 14, 0.5),
}


@pytest.mark.parametrize("seconds", [0.0, 0.5])
@pytest.mark.parametrize("name", LARGE)
def test_no_fixed_layout_is_better(name: str, seconds: float) -> None:
    problem = LARGE[name]
    solution = solve_blocks(problem, seconds=seconds)
    check(problem, solution)
    assert solution.objective <= min(evaluate(problem, fixed) for fixed in fixed_layouts(problem))


def test_a_split_trunk_beats_all_fixed_layouts() -> None:
    problem = LARGE["trunk"]
    solution = solve_blocks(problem, seconds=0.5)
    assert len(solution.groups[0]) > 1
    assert solution.objective < 0.97 * min(evaluate(problem, fixed) for fixed in fixed_layouts(problem))


def test_equal_seeds_give_equal_results() -> None:
    problem = trunk(np.random.default_rng(2), 3, 128, 28, 0.5)
    first, second = (solve_blocks(problem, seconds=20.0, seed=3, tolerance=0.05) for _ in range(2))
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


def test_tolerance_does_not_call_a_gap_closed() -> None:
    problem = trunk(np.random.default_rng(2), 3, 128, 28, 0.5)
    solution = solve_blocks(problem, tolerance=0.9)
    check(problem, solution)
    assert solution.status == "FEASIBLE"
    assert 0 < solution.gap <= 0.9


def small() -> tuple[BlockProblem, BlockSolution]:
    """Two blocks, the first of them filled up, and a reader of each kind that reads blocks."""
    table = Table.of(4, 12, float)
    classes = (SlotClass(0, 3, frozenset({0})), SlotClass(0, 8, frozenset({0, 1}), fixed=True))
    readers = tuple(BlockReader(name, 0, table, part_us=1.0, select_us=1.0, duplicate_us=1.0) for name in "ab")
    problem = BlockProblem(classes, (Group((table,), 1),), readers, (BlockTensor((0,)),), 4, 4, 8)
    blocks = (Block(((0, 3),), 1), Block(((1, 8),)))
    choices = (Choice("partial", ((0, 0), (0, 1))), Choice("concat", ((0, 1),)))
    return problem, BlockSolution((blocks,), choices, 0.0, 0.0, "FEASIBLE", 0.0)


def test_evaluation_by_hand() -> None:
    problem, solution = small()
    assert evaluate(problem, solution) == (4 + 8) + (12 + 1) + 8


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((Block(((0, 3),)), Block(((1, 8),))), "3 channels among others"),
        ((Block(((0, 3),), 1), Block(((1, 4),))), "4 of 8 channels"),
        ((Block(((0, 3),), 5), Block(((1, 8),))), "more spare channels"),
        ((Block(((0, 3), (0, 1))), Block(((1, 8),))), "twice"),
        ((Block(((0, 3), (1, 8))),), "not filled up"),
        ((Block((), 1), Block(((0, 3), (1, 8)))), "nothing that is required"),
        ((Block(((0, 3), (1, 1))), Block(((1, 4),)), Block(((1, 3),), 1)), "reads blocks"),
    ],
)
def test_invalid_layouts_are_refused(blocks: tuple[Block, ...], message: str) -> None:
    problem, solution = small()
    with pytest.raises(ValueError, match=message):
        evaluate(problem, replace(solution, groups=(blocks,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": (SlotClass(1, 3, frozenset()),)}, "group 1 is unknown"),
        ({"classes": (SlotClass(0, 3, frozenset({2})),)}, "reader 2"),
        ({"width_multiple": 2}, "step"),
        ({"tensors": (BlockTensor((0, 0)),)}, "repeated"),
        ({"tensors": (BlockTensor((0,), whole_us=-1.0),)}, "negative"),
        ({"readers": (BlockReader("a", 0, Table.of(4, 12, float), allowed=frozenset({"gather"})),) * 2}, "same name"),
        ({"readers": (BlockReader("a", 0, Table.of(4, 12, float), allowed=frozenset({"gather"})),)}, "no kind"),
    ],
)
def test_nonsense_is_refused(change: dict[str, Any], message: str) -> None:
    problem, _ = small()
    with pytest.raises(ValueError, match=message):
        replace(problem, **change)


def test_bound_with_shared_charges_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many readers that can be duplicated the bound is another one; here both are at hand."""
    problem = trunk(np.random.default_rng(3), 4, 64, 28, 0.5)
    able = tuple(replace(reader, duplicate_us=60.0 + 5 * i) for i, reader in enumerate(problem.readers))
    problem = replace(problem, readers=able)
    solution = solve_blocks(problem)
    monkeypatch.setattr("ucpe_onnx.solve.blocks.bound._MAX_DUPLICATED", 2)
    shared = lower_bound(BlockPrices(problem))
    assert 0.5 * solution.objective < shared <= solution.objective


@pytest.mark.parametrize("seed", range(12))
def test_two_readers_of_one_group_need_no_solver(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning takes the search's layout for these, unproven as it is."""
    rng = np.random.default_rng(seed)
    problem = trunk(rng, 2, int(rng.integers(12, 200)), int(rng.choice([7, 14, 28])), float(rng.uniform(0.2, 0.8)))
    best = solve_blocks(problem)
    assert best.status == OPTIMAL
    monkeypatch.setattr(solver_module, "_refined", lambda _prices, layout, bound, _limits: (layout, bound))
    assert solve_blocks(problem).objective == pytest.approx(best.objective, rel=1e-6)


def test_what_is_read_least_fills_up_the_others() -> None:
    """Channels of two gathering readers fit beside those that the two readers of blocks keep, in as few units."""
    served, others = (0, 1), (2, 3)
    counts = {(0,): 65, (1,): 65, served: 63, others: 45}
    classes = tuple(SlotClass(0, count, frozenset(kept)) for kept, count in counts.items())
    cost = Table.of(4, 256, float)
    readers = tuple(BlockReader(f"r{index}", 0, cost) for index in range(4))
    problem = BlockProblem(classes, (Group((cost,), spare=18),), readers, (BlockTensor((0,)),))
    parts = [{member: count} for member, count in enumerate(counts.values())]
    found = fitted(BlockPrices(problem), 0, 0, parts, 16, served=0b11, tight=True)
    assert sorted(found.widths) == [32, 64, 64, 80]
    assert max(range(4), key=lambda place: found.widths[place]) in {0, 1}
    assert {piece.mask & 0b11 for piece in found.pieces} == {0b00, 0b01, 0b10, 0b11}
