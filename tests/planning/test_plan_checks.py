"""Plans from outside: what fits is applied, everything else is refused with a reason."""

from __future__ import annotations

import copy
from typing import Any

import onnx
import pytest

from tests.builders import Masked, Net, prune
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import MaskError
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.checks import check_plan
from ucpe_onnx.runtime.target import Target


def small() -> onnx.ModelProto:
    """x (3) -> a (8) -> b and c; d reads the input and has two groups."""
    net = Net()
    x = net.input("x", (1, 4, 4, 4))
    a = net.conv(x, 8, name="a")
    return net.output(net.conv(a, 2, name="b"), net.conv(a, 2, name="c"), net.conv(x, 2, groups=2, name="d")).model()


MODEL = small()
TRACE, PLAN, EMITTED = prune(
    MODEL, {"b": [0, 3, 5], "c": [3, 5, 7], "d": [0, 1, 2]}, lowering="slice", target=Target(blocked=False)
)
SEGMENT = TRACE.consumers["b"].segment


def changed(**edits: Any) -> Plan:
    """The plan with values replaced: ``consumers__b__read=[...]``."""
    raw = copy.deepcopy(PLAN.to_dict())
    for path, value in edits.items():
        at: Any = raw
        *steps, last = path.split("__")
        for step in steps:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[last] = value
    return Plan.from_dict(raw)


def test_a_plan_passes_and_repeats_bit_for_bit() -> None:
    again = check_plan(Plan.from_dict(PLAN.to_dict()), TRACE, "")
    assert again == PLAN
    assert emit(MODEL, TRACE, again).SerializeToString() == EMITTED.SerializeToString()


@pytest.mark.parametrize("kind, read", [("union", (0, 3, 5, 7)), ("gather", (0, 3, 5)), ("slice", (0, 3, 5))])
def test_read_may_be_left_out(kind: str, read: tuple[int, ...]) -> None:
    raw = PLAN.to_dict()
    for consumer in raw["consumers"].values():
        del consumer["read"]
    raw["segments"][SEGMENT]["lowerings"]["b"] = kind
    plan = check_plan(Plan.from_dict(raw), TRACE, "")
    assert set(plan.consumers["b"].read) == set(read)
    emitted = emit(MODEL, TRACE, plan)
    Masked(MODEL, plan.masks()).check(emitted)


def test_slice_without_read_takes_what_lies_between() -> None:
    order = PLAN.segments[SEGMENT].order
    raw = changed(consumers__b__keep=sorted([order[0], order[2]])).to_dict()
    del raw["consumers"]["b"]["read"]
    raw["segments"][SEGMENT]["lowerings"]["b"] = "slice"
    assert check_plan(Plan.from_dict(raw), TRACE, "").consumers["b"].read == order[:3]


def test_consumers_come_back_in_graph_order() -> None:
    raw = PLAN.to_dict()
    raw["consumers"] = dict(reversed(raw["consumers"].items()))
    assert list(check_plan(Plan.from_dict(raw), TRACE, "").consumers) == ["a", "b", "c", "d"]


def test_source_hash() -> None:
    plan = changed(source_sha256="a" * 64)
    assert check_plan(plan, TRACE, "a" * 64)
    with pytest.raises(MaskError, match=r"made for another model \(sha256 aaaaaaaaaaaa.*this one is bbbbbbbbbbbb"):
        check_plan(plan, TRACE, "b" * 64)


ORDER = list(PLAN.segments[SEGMENT].order)


def order(segment: int, *slots: int) -> dict[str, Any]:
    return {f"segments__{segment}__order": list(slots), f"segments__{segment}__blocks": [list(slots)]}


def split(**lowerings: str) -> dict[str, Any]:
    """Every slot a block of its own, and consumers that read so."""
    at = f"segments__{SEGMENT}__"
    kinds = {f"{at}lowerings__{name}": kind for name, kind in lowerings.items()}
    return {f"{at}split": True, f"{at}blocks": [[slot] for slot in ORDER], **kinds}


_BAD = {
    "unknown consumer": ({"consumers__z": PLAN.to_dict()["consumers"]["b"]}, "consumer 'z'"),
    "index out of range": ({"consumers__b__keep": [0, 8]}, "index 8 is outside of its 8 input channels"),
    "keeps nothing": ({"consumers__b__keep": []}, "mask for 'b' keeps nothing"),
    "fewer segments": ({"segments": PLAN.to_dict()["segments"][:-1]}, "the segments"),
    "repeated slot": (order(SEGMENT, *ORDER, ORDER[0]), "repeats a slot"),
    "unknown slot": (order(SEGMENT, *ORDER, 8), "names one that does not exist"),
    "frozen slot left out": (order(0, 0, 1, 2), "slot 3 is frozen"),
    "frozen slots reordered": (order(0, 1, 0, 2, 3), "must keep their order"),
    "empty group": (order(SEGMENT), "keeps none of the slots 0"),
    "blocks that differ": ({f"segments__{SEGMENT}__blocks": [ORDER[::-1]]}, "blocks and order differ"),
    "unknown lowering": ({f"segments__{SEGMENT}__lowerings__b": "scatter"}, "unknown lowering 'scatter' for 'b'"),
    "lowering of another segment's": ({f"segments__{SEGMENT}__lowerings__d": "union"}, "'d', which does not read"),
    "other channels": ({"consumers__b__channels": 9}, "consumer 'b'.*differ from the model's"),
    "other slots": ({"consumers__b__slots": [1, 0, *range(2, 8)]}, "consumer 'b'.*differ from the model's"),
    "other segment": ({"consumers__b__segment": 0}, "consumer 'b'.*differ from the model's"),
    "repeated channel": ({"consumers__b__keep": [0, 0, 3, 5]}, "ascending channels"),
    "keeps what is not made": ({"consumers__b__keep": [0, 1]}, "keeps channel 1, which the segment's order leaves out"),
    "reads what is not made": ({"consumers__b__read": [*ORDER, 1]}, "in emitted order"),
    "reads out of order": ({"consumers__b__read": ORDER[::-1]}, "in emitted order"),
    "reads twice": ({"consumers__b__read": [ORDER[0], *ORDER]}, "in emitted order"),
    "does not read what it keeps": ({"consumers__b__read": [7]}, "must hold the kept channels"),
    "reads an unknown channel": ({"consumers__b__read": [*ORDER, 99]}, "in emitted order"),
    "reads a negative channel": ({"consumers__b__read": [-1, *ORDER]}, "in emitted order"),
    "slice of channels apart": (
        {
            "consumers__b__keep": sorted([ORDER[0], ORDER[2]]),
            "consumers__b__read": [ORDER[0], ORDER[2]],
            f"segments__{SEGMENT}__lowerings__b": "slice",
        },
        "not contiguous",
    ),
    "union that reads a part": (
        {"consumers__b__read": list(PLAN.consumers["b"].read), f"segments__{SEGMENT}__lowerings__b": "union"},
        "contradicts the 3 of 4 channels",
    ),
    "blocks that are not split": (
        {f"segments__{SEGMENT}__lowerings__b": "partial"},
        "'partial', but the blocks of segment",
    ),
    "concat of no blocks": ({f"segments__{SEGMENT}__lowerings__b": "concat"}, "'concat', but the blocks of segment"),
    "a block too many": ({**split(b="partial"), "consumers__b__read": ORDER}, "'partial' contradicts the 4 of 4"),
    "a block too few": ({**split(b="concat"), "consumers__b__read": [0]}, "'concat' contradicts the 1 of 4"),
    "a block that is not made": (
        {**split(b="partial"), "consumers__b__keep": [0, 1], "consumers__b__read": []},
        "keeps channel 1, which the segment's order leaves out",
    ),
    "own producers of more": (
        {"consumers__b__read": ORDER, f"segments__{SEGMENT}__lowerings__b": "duplicate"},
        "'duplicate' contradicts the 4 of 4 channels that it reads; leave read out",
    ),
    "own producers of a graph input": (
        {"consumers__a__read": [], "segments__0__lowerings__a": "duplicate"},
        "consumer 'a': can't have producers of its own",
    ),
    "groups that read blocks": (
        {"segments__0__split": True, "segments__0__lowerings__d": "partial"},
        "bound to convolution groups",
    ),
    "groups that read a part": (
        {"consumers__d__read": [0, 1, 2], f"segments__{TRACE.consumers['d'].segment}__lowerings__d": "gather"},
        "bound to convolution groups",
    ),
}


@pytest.mark.parametrize("case", _BAD)
def test_refusals(case: str) -> None:
    edits, message = _BAD[case]
    with pytest.raises(MaskError, match=message):
        check_plan(changed(**edits), TRACE, "")


def test_a_missing_consumer() -> None:
    raw = PLAN.to_dict()
    del raw["consumers"]["c"]
    with pytest.raises(MaskError, match="consumer 'c'"):
        check_plan(Plan.from_dict(raw), TRACE, "")


def test_a_plan_for_another_graph() -> None:
    net = Net()
    model = net.output(net.conv(net.input("x", (1, 3, 4, 4)), 2, name="a")).model()
    with pytest.raises(MaskError, match="consumer 'b'"):
        check_plan(PLAN, trace(model), "")


def test_split_is_true_or_false() -> None:
    with pytest.raises(MaskError, match="not a valid plan: 'split' of segment 1 is 'no'; expected true or false"):
        changed(segments__1__split="no")


@pytest.mark.parametrize("kinds", [("partial", "concat"), ("concat", "gather"), ("duplicate", "partial")])
def test_blocks_by_hand(kinds: tuple[str, str]) -> None:
    """What is read follows from the blocks."""
    plan = changed(**split(b=kinds[0], c=kinds[1]), consumers__b__read=[], consumers__c__read=[])
    checked = check_plan(plan, TRACE, "")
    assert [set(checked.consumers[name].read) for name in "bc"] == [{0, 3, 5}, {3, 5, 7}]
    emitted = emit(MODEL, TRACE, checked)
    Masked(MODEL, checked.masks()).check(emitted)


def test_groups_of_a_convolution_stay_equally_wide() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    model = net.output(net.conv(a, 4, groups=2, name="b"), net.conv(a, 2, name="c")).model()
    traced, plan, _ = prune(model, {"b": [0, 4], "c": [0, 5]}, target=Target(blocked=False), lowering="union")
    raw = plan.to_dict()
    number = traced.consumers["b"].segment
    raw["segments"][number].update(order=[0, 4, 5], blocks=[[0], [4, 5]])
    with pytest.raises(MaskError, match=f"segment {number}: its order leaves the 2 parts of axis 1 of .* unequal"):
        check_plan(Plan.from_dict(raw), traced, "")
