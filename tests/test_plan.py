"""Plans as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ucpe_onnx.errors import MaskError
from ucpe_onnx.model.new_weights import NewWeight
from ucpe_onnx.plan import FORMAT, ConsumerPlan, Plan, SegmentPlan

indices = st.lists(st.integers(0, 20), max_size=5).map(tuple)
numbers = st.floats(0, 1e6, allow_nan=False)
names = st.text(max_size=6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    consumers = draw(
        st.dictionaries(
            names, st.builds(ConsumerPlan, st.integers(21, 30), indices, indices, st.integers(0, 3), indices)
        )
    )
    segment = st.builds(
        SegmentPlan,
        st.integers(0, 9),
        indices,
        st.lists(indices, max_size=3).map(tuple),
        st.dictionaries(names, st.sampled_from(["union", "gather"])),
        numbers,
        numbers,
        st.sampled_from(["OPTIMAL", "FEASIBLE"]),
        numbers,
    )
    options = draw(st.dictionaries(names, st.integers() | names | st.none() | st.lists(st.integers())))
    values = arrays(np.float32, array_shapes(min_dims=0, max_side=3), elements=st.floats(-1, 1, width=32))
    weights = draw(st.dictionaries(names, st.builds(NewWeight.of, values), max_size=2))
    return Plan(draw(names), draw(names), options, consumers, tuple(draw(st.lists(segment, max_size=3))), weights)


@given(plans())
def test_json_round_trip(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_file_round_trip(tmp_path: Path) -> None:
    plan = Plan("ab", "0.1", {"ratio": 0.5}, {"/a/Cönv": ConsumerPlan(3, (0, 2), (2, 0), 0, (0, 1, 2))})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_public_format() -> None:
    consumer = ConsumerPlan(3, (0, 2), (2, 0), 0, (0, 1, 2))
    segment = SegmentPlan(0, (2, 0), ((2, 0),), {"b": "gather"}, 1.0, 2.0, "FEASIBLE", 0.5)
    assert Plan("ab", "0.1", {"ratio": 0.5}, {"b": consumer}, (segment,)).to_dict() == {
        "format": "ucpe-plan/1",
        "source_sha256": "ab",
        "tool_version": "0.1",
        "options": {"ratio": 0.5},
        "consumers": {"b": {"channels": 3, "keep": [0, 2], "read": [2, 0], "segment": 0, "slots": [0, 1, 2]}},
        "segments": [
            {
                "id": 0,
                "order": [2, 0],
                "blocks": [[2, 0]],
                "lowerings": {"b": "gather"},
                "objective": 1.0,
                "bound": 2.0,
                "status": "FEASIBLE",
                "seconds": 0.5,
                "split": False,
            }
        ],
    }


def hand_written() -> dict[str, Any]:
    """The least that a plan must say."""
    return {
        "format": FORMAT,
        "source_sha256": "",
        "tool_version": "by hand",
        "consumers": {"b": {"channels": 3, "keep": [0, 2], "segment": 0, "slots": [0, 1, 2]}},
        "segments": [{"id": 0, "order": [0, 2], "blocks": [[0, 2]], "lowerings": {"b": "union"}}],
    }


def test_hand_written_plan() -> None:
    plan = Plan.from_dict(hand_written())
    assert plan.consumers["b"].read == ()
    assert (plan.options, plan.segments[0].status) == ({}, "FEASIBLE")


def test_masks() -> None:
    plan = Plan.from_dict(hand_written() | {"consumers": {
        "b": {"channels": 3, "keep": [0, 2], "segment": 0, "slots": [0, 1, 2]},
        "c": {"channels": 2, "keep": [0, 1], "segment": 0, "slots": [0, 1]},
    }})  # fmt: skip
    assert {name: mask.tolist() for name, mask in plan.masks().items()} == {"b": [True, False, True]}
    assert plan.consumers["c"].mask().dtype == np.bool_


def without(*path: str) -> dict[str, Any]:
    raw = hand_written()
    at: Any = raw
    for step in path[:-1]:
        at = at[step] if isinstance(at, dict) else at[int(step)]
    del at[path[-1]]
    return raw


@pytest.mark.parametrize(
    "raw, message",
    [
        ([], "not a plan"),
        (None, "not a plan"),
        ({"format": "ucpe-plan/2"}, 'not a plan: expected an object with "format": "ucpe-plan/1"'),
        (without("consumers"), "'consumers' is missing"),
        (without("segments"), "'segments' is missing"),
        (without("consumers", "b", "keep"), "'keep' is missing"),
        (without("segments", "0", "order"), "'order' is missing"),
        (hand_written() | {"consumers": []}, "not a valid plan"),
        (hand_written() | {"consumers": {"b": None}}, "not a valid plan"),
        (hand_written() | {"segments": 3}, "not a valid plan"),
        (hand_written() | {"segments": [7]}, "not a valid plan"),
        (hand_written() | {"options": 3}, "not a valid plan"),
    ],
)
def test_refusals(raw: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        Plan.from_dict(raw)


@pytest.mark.parametrize(
    "content, message", [("{", "not a plan"), ("{}", "not a plan"), (json.dumps(without("segments")), "is missing")]
)
def test_messages_name_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(MaskError, match=rf"p\.json: .*{message}"):
        Plan.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"none\.json: no such file; give a plan"):
        Plan.load(tmp_path / "none.json")
