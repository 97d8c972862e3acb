"""Whoever deals with lowerings knows the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.builders import Net
from tests.properties import test_emitted_equals_masked, test_planned_lowerings
from tests.properties.splitting import split_at_random
from ucpe_onnx import plan as plans
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.cli import build_parser
from ucpe_onnx.errors import UsageError
from ucpe_onnx.lowerings import LOWERINGS, UNSAID, Need, Reads, selection, whole
from ucpe_onnx.options import Options
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.planning.lower import AUTO, LOWERING_RULES, LoweringRule
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.planning.routes import Routes
from ucpe_onnx.report import html_style
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.solve.blocks.problem import APART, BLOCKWISE, KIND_FACTS, KINDS, WHOLE


def test_names_that_plans_and_flags_have_used_so_far_stay() -> None:
    assert list(LOWERINGS) == ["direct", "union", "gather", "slice", "partial", "concat", "duplicate"]
    assert list(LOWERING_RULES) == ["auto", "union", "gather", "slice", "partial", "concat", "duplicate"]
    assert all(name == lowering.name for name, lowering in LOWERINGS.items())
    assert plans.LOWERINGS is LOWERINGS


def test_every_lowering_carries_out_a_kind_and_every_kind_is_a_lowering() -> None:
    assert [kind for kind in KINDS if kind not in {x.kind for x in LOWERINGS.values()}] == []
    for kind in KINDS:
        assert LOWERINGS[kind].kind == kind  # by this name the planner applies what the solver has chosen


@pytest.mark.parametrize("lowering", LOWERINGS.values(), ids=str)
def test_the_solver_and_the_table_say_the_same_of_what_is_read(lowering: Any) -> None:
    kind = lowering.kind
    assert (kind in BLOCKWISE) == lowering.split
    assert (kind in APART) == (lowering.reads == Reads.OWN)
    assert (kind in WHOLE) == (lowering.reads in (Reads.WHOLE, Reads.SELECTION))
    assert KIND_FACTS[kind].reorders == (lowering.reads == Reads.SELECTION)
    assert lowering.joined <= lowering.split and lowering.contiguous <= (lowering.reads == Reads.SELECTION)


def test_the_rules_are_those_of_the_lowerings() -> None:
    assert LOWERING_RULES[AUTO] == LoweringRule(frozenset(KINDS), split=True, ordered=True)
    assert LOWERING_RULES["slice"] == LoweringRule(frozenset({"gather"}), ordered=True)
    assert LOWERING_RULES["partial"] == LoweringRule(frozenset({"partial"}), split=True)
    assert LOWERING_RULES[AUTO].undivided == LoweringRule(frozenset({"union", "gather"}))


def test_the_flag_and_the_options_take_every_rule_and_nothing_else() -> None:
    (flag,) = [action for action in build_parser()._actions if "--lowering" in action.option_strings]
    assert flag.choices is not None and list(flag.choices) == list(LOWERING_RULES)
    for name in LOWERING_RULES:
        Options(lowering=name).checked()
    with pytest.raises(UsageError, match="lowering"):
        Options(lowering="direct").checked()


def test_reports_have_words_and_colours_for_every_lowering() -> None:
    assert len({x.meaning for x in LOWERINGS.values()}) == len(LOWERINGS)
    for at in (0, 1):
        assert len({x.colours[at] for x in LOWERINGS.values()}) == len(LOWERINGS)
    for name, lowering in LOWERINGS.items():
        assert all(f"--{name}: {colour};" in html_style.STYLE for colour in lowering.colours)
        assert f".{name} {{" in html_style.STYLE
        copies = lowering.joined or lowering.reads == Reads.SELECTION
        assert ("memory copy" in lowering.meaning) == copies


def test_what_reads_the_whole_or_a_selection_is_found_by_its_facts() -> None:
    assert [whole(everything_kept=kept).name for kept in (True, False)] == ["direct", "union"]
    assert [selection(contiguous=run).name for run in (True, False)] == ["slice", "gather"]
    assert not UNSAID.needs, "it is what anyone can take"


def test_every_need_is_asked_for_and_answered() -> None:
    net = Net()
    traced = trace(net.output(net.conv(net.input("x", (1, 4, 4, 4)), 4, groups=2, name="a")).model())
    routes = Routes(traced)
    assert {need for lowering in LOWERINGS.values() for need in lowering.needs} == set(Need)
    for lowering in LOWERINGS.values():
        assert routes.unmet(traced.consumers["a"], lowering) == (lowering.needs[0] if lowering.needs else None)


def test_the_property_tests_draw_every_lowering() -> None:
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    traced = trace(net.output(*[net.conv(y, 4, name=name) for name in "bcd"]).model())
    masks = {name: np.isin(np.arange(8), kept) for name, kept in {"b": [0, 2, 5], "c": [1, 2]}.items()}
    plan = make_plan(traced, masks, Settings(Target(blocked=False), UNSAID.name))
    drawn = set()
    for seed in range(60):
        other = check_plan(split_at_random(traced, plan, np.random.default_rng(seed)), traced, "")
        drawn |= {kind for segment in other.segments for kind in segment.lowerings.values()}
    assert drawn == set(LOWERINGS)
    assert test_emitted_equals_masked.LOWERING_RULES is LOWERING_RULES
    compared = {*test_planned_lowerings.AT_ONCE, *test_planned_lowerings.IN_BLOCKS}
    assert compared == {name for name, x in LOWERINGS.items() if x.askable and not x.contiguous}
