"""GroupQueryAttention of onnxruntime's own domain: heads of keys and values that several heads of queries share."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.analysis.rules.cases import made_by
from tests.builders import Net
from tests.traps.trapping import PLAIN, check, check_halves
from ucpe_onnx.analysis.trace import trace

HEADS, SHARED, SIZE, TIME = 6, 3, 16, 5


def linear(net: Net, x: str, width: int, name: str) -> str:
    return net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], width)), name=name)


def attention(*, caches: bool = False, rotary: bool = False, sink: bool = False, packed: bool = False) -> Net:
    net = Net()
    x = net.input("x", (1, TIME, 8))
    q = linear(net, x, (HEADS + 2 * SHARED * packed) * SIZE, "q")
    k, v = ("", "") if packed else (linear(net, x, SHARED * SIZE, name) for name in "kv")
    lengths = [net.weight(np.array([TIME - 1], np.int32)), net.weight(np.array([TIME], np.int32))]
    angles = net.normal(TIME, SIZE // 2)
    tables = [net.weight(table) for table in (np.cos(angles), np.sin(angles))] if rotary else ["", ""]
    more = ["", "", net.weight(net.normal(HEADS))] if sink else []
    shapes = [(1, TIME, HEADS * SIZE), *[(1, SHARED, TIME, SIZE)] * (2 * caches)]
    y, *presents = net.ops(
        "GroupQueryAttention",
        *(q, k, v, "", "", *lengths, *tables, *more),
        domain="com.microsoft",
        outputs=len(shapes),
        shapes=shapes,
        name="attend",
        num_heads=HEADS,
        kv_num_heads=SHARED,
        do_rotary=int(rotary),
    )
    return net.output(linear(net, y, 3, "o"), *presents)


def head_counts(model: onnx.ModelProto) -> tuple[int, int]:
    (node,) = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    found = {a.name: a.i for a in node.attribute}
    return found["num_heads"], found["kv_num_heads"]


def channels(*heads: int) -> list[int]:
    return [head * SIZE + i for head in heads for i in range(SIZE)]


@pytest.mark.parametrize("rotary", [False, True])
def test_without_caches_shared_heads_go_with_their_queries(rotary: bool) -> None:
    net = attention(rotary=rotary)
    for emitted in check(net, {"o": channels(0, 1, 4, 5)}, PLAIN).values():
        assert head_counts(emitted) == (4, 2)
        assert [made_by(emitted, name, 1) for name in "qkv"] == [4 * SIZE, 2 * SIZE, 2 * SIZE]
    traced = check_halves(net.model())
    assert len(set(traced.consumers["o"].slots.tolist())) == SHARED


def test_with_caches_queries_go_alone_and_as_many_from_each_group() -> None:
    net = attention(caches=True)
    for emitted in check(net, {"o": channels(0, 3, 4)}, PLAIN).values():
        assert head_counts(emitted) == (3, 3)
        assert [made_by(emitted, name, 1) for name in "qkv"] == [3 * SIZE, 3 * SIZE, 3 * SIZE]
    assert len(set(trace(net.model()).consumers["o"].slots.tolist())) == HEADS


@pytest.mark.parametrize("kind", ["sink", "packed"])
def test_other_forms_are_told(kind: str) -> None:
    traced = trace(attention(**{kind: True}).model())
    assert not traced.consumers["o"].prunable.any()
    reasons = {reason for segment in traced.segments for reason in segment.reasons}
    assert any("form that is not followed: GroupQueryAttention" in reason for reason in reasons)


def test_caches_that_come_in_are_as_they_were() -> None:
    net = Net()
    x = net.input("x", (1, 1, 8))
    parts = [linear(net, x, width * SIZE, name) for name, width in zip("qkv", (HEADS, SHARED, SHARED), strict=True)]
    past = [net.input(name, (1, SHARED, 2, SIZE)) for name in ("past_k", "past_v")]
    lengths = [net.weight(np.array([2], np.int32)), net.weight(np.array([3], np.int32))]
    y, *presents = net.ops(
        "GroupQueryAttention",
        *(*parts, *past, *lengths),
        domain="com.microsoft",
        outputs=3,
        shapes=[(1, 1, HEADS * SIZE), *[(1, SHARED, 3, SIZE)] * 2],
        elem_type=TensorProto.FLOAT,
        num_heads=HEADS,
        kv_num_heads=SHARED,
    )
    net.output(linear(net, y, 3, "o"), *presents)
    for emitted in check(net, {"o": channels(1, 2, 5)}, PLAIN).values():
        assert head_counts(emitted) == (3, 3)
