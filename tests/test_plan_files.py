"""Plans as files: the public format, bit-for-bit repetition, hand-written and damaged ones."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.builders import Net
from tests.models_small import branches
from ucpe_onnx import MaskError, Plan, UcpeError, __version__, prune
from ucpe_onnx.analysis.layout import LayoutConflict
from ucpe_onnx.model.files import model_sha256
from ucpe_onnx.planning import checks

MODEL = branches()


def raw_plan(**options: Any) -> dict[str, Any]:
    plan = prune(MODEL, bench_seconds=0, **{"mode": "unconstrained", "ratio": 0.5, **options}).plan
    return json.loads(json.dumps(plan.to_dict()))


def apply(raw: dict[str, Any], model=MODEL):
    return prune(model, plan=Plan.from_dict(raw), bench_seconds=0)


def test_the_public_format():
    raw = raw_plan()
    assert raw["format"] == "ucpe-plan/1" and raw["tool_version"] == __version__
    assert raw["source_sha256"] == model_sha256(MODEL)
    assert raw["options"]["ratio"] == 0.5 and raw["options"]["mode"] == "unconstrained"
    assert list(raw["consumers"]) == ["/a/Conv", "/b/Conv", "/c/Conv", "fc"]
    b = raw["consumers"]["/b/Conv"]
    assert (b["channels"], len(b["keep"]), b["slots"]) == (16, 8, list(range(16)))
    segment = raw["segments"][b["segment"]]
    assert {"id", "order", "blocks", "lowerings", "objective", "bound", "status", "seconds"} <= set(segment)
    assert set(segment["lowerings"]) == {"/b/Conv", "/c/Conv"}
    assert [slot for block in segment["blocks"] for slot in block] == segment["order"]
    assert set(b["keep"]) <= set(segment["order"]) and [s["id"] for s in raw["segments"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("lowering", ["auto", "union", "gather", "slice"])
@pytest.mark.parametrize("mode", ["auto", "unconstrained", "constrained"])
def test_repeated_bit_for_bit(mode, lowering, tmp_path):
    first = prune(MODEL, mode=mode, lowering=lowering, ratio=0.7, bench_seconds=0)
    first.plan.save(tmp_path / "p.json")
    again = prune(MODEL, plan=tmp_path / "p.json", bench_seconds=0)
    assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)
    assert again.plan == first.plan and again.report.mode == "plan"
    assert Plan.load(tmp_path / "p.json") == first.plan


def test_given_masks_make_plans_that_repeat():
    random = np.random.default_rng(0)
    for _ in range(5):
        masks = {name: random.random(n) < 0.4 for name, n in (("/b/Conv", 16), ("/c/Conv", 16), ("fc", 8))}
        masks = {name: mask for name, mask in masks.items() if mask.any()}
        first = prune(MODEL, masks=masks, bench_seconds=0)
        again = prune(MODEL, plan=first.plan, bench_seconds=0)
        assert again.model.SerializeToString(deterministic=True) == first.model.SerializeToString(deterministic=True)


def test_hand_written_plan_without_read():
    """What the public format leaves out is filled in: the design's keys alone are enough."""
    for lowering, reads in (("union", 9), ("gather", 3), ("slice", 4)):
        raw = raw_plan(mode="constrained", ratio=0)
        b = raw["consumers"]["/b/Conv"]
        segment = raw["segments"][b["segment"]]
        for consumer in raw["consumers"].values():
            del consumer["read"]
        b["keep"] = [1, 3, 4]
        raw["consumers"]["/c/Conv"]["keep"] = [0, 2, 4, 5, 6, 7, 8]
        segment["order"] = [0, 2, 1, 4, 3, 5, 6, 7, 8]
        segment["blocks"] = [segment["order"]]
        segment["lowerings"] = {"/b/Conv": lowering, "/c/Conv": "union"}
        if lowering == "slice":
            segment["order"][2:5] = [1, 5, 3]
            segment["order"][5] = 4
        result = apply({**raw, "source_sha256": ""})
        assert result.report.verification.passed
        assert len(result.plan.consumers["/b/Conv"].read) == reads
        assert np.flatnonzero(result.plan.masks()["/b/Conv"]).tolist() == [1, 3, 4]


def test_another_order_gives_the_same_outputs():
    raw = raw_plan(lowering="gather")
    segment = raw["segments"][1]
    segment["order"].reverse()
    segment["blocks"] = [segment["order"]]
    for name in segment["lowerings"]:
        del raw["consumers"][name]["read"]
        segment["lowerings"][name] = "union"
    assert apply(raw).report.verification.passed


def test_an_empty_hash_fits_any_model():
    raw = raw_plan()
    other = copy.deepcopy(MODEL)
    other.doc_string = "another file"
    with pytest.raises(MaskError, match="the plan: it was made for another model"):
        apply(raw, other)
    assert apply({**raw, "source_sha256": ""}, other).report.verification.passed


def test_grouped_convolutions_must_read_everything():
    net = Net()
    a = net.conv(net.input("x", (1, 3, 8, 8)), 8, name="a")
    model = net.output(net.conv(a, 8, groups=2, name="grouped")).model()
    plan = prune(model, masks={"grouped": [0, 4, 5]}, bench_seconds=0).plan
    consumer = plan.consumers["grouped"]
    segment = plan.segments[consumer.segment]
    less = replace(consumer, read=tuple(c for c in consumer.read if c in (0, 4, 5)))
    gathered = replace(segment, lowerings={"grouped": "gather"})
    bad = replace(
        plan,
        consumers={**plan.consumers, "grouped": less},
        segments=tuple(gathered if s is segment else s for s in plan.segments),
    )
    with pytest.raises(MaskError, match="'grouped'"):
        prune(model, plan=bad, bench_seconds=0)


def test_an_order_that_two_operators_can_not_share(monkeypatch):
    def conflict(*_):
        raise LayoutConflict(("t1", 1))

    monkeypatch.setattr(checks, "segment_layouts", conflict)
    with pytest.raises(MaskError, match="the plan: segment 0: its order suits no layout: axis 1 of 't1'"):
        apply(raw_plan())


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in leaves(inner, (*path, key)))]


def test_damaged_plans_are_refused_or_right():
    """Whatever is changed in a plan, the outcome is one of our errors or a verified model: never another exception."""
    random = np.random.default_rng(0)
    raw = raw_plan(lowering="gather", ratio=0.4)
    paths = [p for p in leaves(raw) if p and p[0] in ("consumers", "segments")]
    outcomes = {"refused": 0, "right": 0}
    for _ in range(250):
        damaged = copy.deepcopy(raw)
        *path, last = paths[random.integers(len(paths))]
        holder = damaged
        for key in path:
            holder = holder[key]
        choice = random.integers(9)
        if choice < 6:
            holder[last] = [None, -1, 7, [], "x", 2**70][choice]
        elif choice == 6 or not isinstance(holder[last], list):
            del holder[last]
        elif choice == 7:
            random.shuffle(holder[last])
        else:
            holder[last] = holder[last][:-1]
        try:
            result = apply(damaged)
        except UcpeError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert result.report.verification.passed
            outcomes["right"] += 1
    assert outcomes["refused"] > 100 and outcomes["right"] > 0, outcomes
