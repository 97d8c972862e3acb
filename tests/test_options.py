"""What the options do to masks and plans, and how Python spells them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tests.models_small import branches, wide
from ucpe_onnx import Plan, UsageError, prune
from ucpe_onnx.options import Options


def kept(plan: Plan) -> dict[str, list[int]]:
    return {name: list(consumer.keep) for name, consumer in plan.consumers.items()}


def run(model=None, **options):
    return prune(model or wide(), bench_seconds=0, **options)


# Modes


def test_unconstrained_honours_the_ratio_exactly_and_consumers_differ():
    masks = run(mode="unconstrained", ratio=0.3).plan.masks()
    assert set(masks) == {"left", "right", "head"}  # the graph's input is frozen
    assert {name: int(mask.sum()) for name, mask in masks.items()} == dict.fromkeys(masks, 64 - int(0.3 * 64))
    assert (masks["left"] != masks["head"]).any()


def test_constrained_consumers_of_a_channel_agree():
    plan = run(mode="constrained", ratio=0.5).plan
    assert kept(plan)["left"] == kept(plan)["head"] != kept(run(mode="unconstrained", ratio=0.5).plan)["head"]
    assert 0 < len(kept(plan)["left"]) < 64
    for consumer in plan.consumers.values():
        assert list(consumer.read) == list(consumer.keep) or consumer.segment == 0


def test_auto_keeps_what_costs_nothing():
    """A superset of the unconstrained mask, no larger than what is read anyway."""
    exact, auto = (kept(run(mode=mode, ratio=0.3).plan) for mode in ("unconstrained", "auto"))
    assert all(set(exact[name]) <= set(auto[name]) for name in exact) and exact != auto
    for consumer in run(mode="auto", ratio=0.3).plan.consumers.values():
        assert sorted(consumer.read) == list(consumer.keep)


def test_ratio_zero_changes_nothing():
    for mode in ("auto", "unconstrained", "constrained"):
        result = run(mode=mode, ratio=0)
        assert result.plan.masks() == {} and result.report.kept == 1.0


@pytest.mark.parametrize("mode", ["auto", "unconstrained", "constrained"])
def test_every_consumer_keeps_something_at_any_ratio(mode):
    result = run(mode=mode, ratio=0.999, scope="global")
    assert all(kept(result.plan).values()) and result.report.verification.passed


def test_scope_global_takes_from_where_it_hurts_least():
    model = wide()
    weight = next(t for t in model.graph.initializer if list(t.dims) == [5, 64, 1, 1])
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1e-3).tobytes()
    masks = run(model, mode="unconstrained", ratio=0.25, scope="global").plan.masks()
    assert "left" not in masks and int(masks["head"].sum()) == 64 - int(0.25 * 3 * 64)


# Masks


def test_masks_are_honoured_exactly():
    random = np.random.default_rng(5)
    for lowering in ("auto", "union", "gather", "slice"):
        masks = {name: random.random(64) < 0.5 for name in ("left", "right", "head")}
        result = run(masks=masks, lowering=lowering, ratio=0.9)
        found = result.plan.masks()
        assert set(found) == set(masks) and all((found[name] == masks[name]).all() for name in masks)
        assert result.report.mode == "masks" and result.report.verification.passed


def test_masks_as_indices_and_for_some_consumers():
    found = run(masks={"left": [3, 1]}).plan.masks()
    assert list(found) == ["left"] and np.flatnonzero(found["left"]).tolist() == [1, 3]
    assert run(masks={}).plan.masks() == {}


def test_a_mask_may_drop_frozen_channels():
    """They stay in the graph, with zero weights: the mask is about the consumer."""
    result = run(masks={"stem": [0, 2]})
    assert kept(result.plan)["stem"] == [0, 2] and result.report.verification.passed


# Patterns


@pytest.mark.parametrize(
    ("patterns", "pruned"),
    [
        (("left",), {"right", "head"}),
        ("left", {"right", "head"}),
        (("l*t",), {"right", "head"}),
        (["*t"], {"head"}),
        (("h?ad", "left"), {"right"}),
        (("*",), set()),
    ],
)
def test_ignore(patterns, pruned):
    assert set(run(mode="unconstrained", ignore=patterns).plan.masks()) == pruned


def test_a_pattern_that_matches_nothing_is_an_error():
    for options in ({"ignore": ["left", "lift*"]}, {"ratio_for": {"left": 0.5, "lift*": 0.5}}):
        with pytest.raises(UsageError, match=r"'lift\*' matches no consumer"):
            run(**options)


@pytest.mark.parametrize("mode", ["auto", "constrained"])
def test_ignore_holds_in_every_mode(mode):
    assert len(kept(run(mode=mode, ratio=0.6, ignore="head").plan)["head"]) == 64


def test_ratio_for():
    def counts(ratio_for):
        plan = run(mode="unconstrained", ratio=0.5, ratio_for=ratio_for).plan
        return [len(kept(plan)[name]) for name in ("left", "right", "head")]

    assert counts([("left", 0.25)]) == [48, 32, 32]
    assert counts([("*", 0.25), ("right", 0.75)]) == [48, 16, 48]
    assert counts([("right", 0.75), ("*", 0.25)]) == [48, 48, 48]
    assert counts({"head": 0}) == [32, 32, 64]


# Seeds


@pytest.mark.parametrize("options", [{}, {"criterion": "random", "seed": 4, "mode": "unconstrained", "ratio": 0.5}])
def test_two_runs_give_the_same_plan_and_model(options):
    first, second = (run(**options) for _ in range(2))
    assert without_times(first.plan) == without_times(second.plan)
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)


def test_the_seed_matters_where_it_should():
    plans = [kept(run(criterion="random", seed=s, mode="unconstrained", ratio=0.5).plan) for s in (1, 2)]
    assert plans[0] != plans[1]


def without_times(plan: Plan) -> dict:
    raw = plan.to_dict()
    for segment in raw["segments"]:
        del segment["seconds"]
    return raw


# Python's spellings


def test_every_kind_of_model_gives_the_same(tmp_path):
    model = wide()
    before = model.SerializeToString(deterministic=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    plans = [kept(run(source).plan) for source in (model, path, str(path), gs.import_onnx(model))]
    assert plans[1:] == plans[:-1]
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_without_names_is_not_changed_either():
    model = branches(("", "twin", "twin", ""))
    before = model.SerializeToString(deterministic=True)
    result = run(model, masks={"Conv_0": [0, 1, 2], "Conv_2": [1]})
    assert model.SerializeToString(deterministic=True) == before
    assert list(result.plan.consumers) == ["Conv_0", "Conv_2", "Conv_3", "Gemm_8"]


def test_options_and_overrides():
    base = Options(ratio=0.5, mode="unconstrained", bench_seconds=0)
    assert len(kept(prune(wide(), base).plan)["left"]) == 32
    assert len(kept(prune(wide(), base, ratio=0.25).plan)["left"]) == 48
    assert base.ratio == 0.5
    with pytest.raises(TypeError, match="rato"):
        prune(wide(), rato=0.5)


def test_lone_strings_are_not_letters():
    checked = Options(providers="cpu", ignore="conv*").checked()
    assert (checked.providers, checked.ignore) == (("CPUExecutionProvider",), ("conv*",))


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": "0.5"},
        {"ratio": 1},
        {"criterion": "L2"},
        {"scope": ""},
        {"mode": None},
        {"lowering": "x"},
        {"opt_level": "99"},
        {"providers": ()},
        {"seed": 0.5},
        {"threads": "2"},
        {"rtol": "1e-3"},
        {"atol": -1e-9},
        {"solver_seconds": 0},
        {"bench_seconds": float("nan")},
        {"masks": {}, "plan": "p.json"},
        {"masks": {}, "ignore": ("a",)},
        {"plan": "p.json", "ratio_for": {"a": 0.5}},
    ],
)
def test_values_that_make_no_sense(options):
    with pytest.raises(UsageError) as error:
        Options(**options).checked()
    flag = next(reversed(options)).replace("_", "-")
    assert f"--{flag}" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_model():
    with pytest.raises(UsageError, match="can't prune a dict"):
        prune({}, bench_seconds=0)


def test_recorded_options_are_plain_values():
    options = Options(masks={"a": np.ones(3, bool)}, data=[{}], input_shapes={"x": (1, 2)}, ratio_for=(("a", 0.5),))
    recorded = options.recorded()
    assert (recorded["masks"], recorded["data"]) == ("<dict>", "<list>")
    assert recorded["input_shapes"] == {"x": [1, 2]} and recorded["ratio_for"] == [["a", 0.5]]
    assert Options(plan=Path("p.json")).recorded()["plan"] == "p.json"
