"""Attention, however it is written, loses whole heads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.operator_cases import PLAIN
from tests.analysis.rules.cases import made_by
from tests.builders import Net, check_emission
from ucpe_onnx.analysis.trace import trace


def heads(net: Net, x: str, count: int, size: int) -> str:
    """(n, t, heads * size) as (n, heads, t, size)."""
    n, t, _ = net.shapes[x]
    return net.op("Transpose", net.reshape(x, n, t, count, size), perm=[0, 2, 1, 3])


def project(net: Net, x: str, width: int, name: str) -> str:
    y = net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], width)), name=name)
    return net.op("Add", y, net.weight(net.normal(width)))


def attention(net: Net, q: str, k: str, v: str) -> str:
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", net.op("Mul", scores, net.constant(0.3)), axis=-1), v)
    n, _, t, _ = net.shapes[mixed]
    return net.reshape(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), n, t, -1)


def test_attention_loses_whole_heads() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    q, k, v = (heads(net, project(net, x, 12, name), 4, 3) for name in "qkv")
    model = net.output(project(net, attention(net, q, k, v), 8, "o")).model()
    traced = trace(model)
    assert traced.consumers["o"].prunable.all()
    assert traced.consumers["o"].slots.tolist() == np.repeat(np.arange(4), 3).tolist()
    emitted = check_emission(model, {"o": [0, 7, 8]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 6, 6]
    assert made_by(emitted, "o") == 6


def test_fused_attention_loses_whole_heads() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    qkv = net.reshape(project(net, x, 36, "qkv"), 1, 5, 3, 4, 3)
    parts = net.split(net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]), [1, 1, 1], axis=0)
    q, k, v = (net.squeeze(part, [0]) for part in parts)
    model = net.output(project(net, attention(net, q, k, v), 8, "o")).model()
    emitted = check_emission(model, {"o": [0, 4]}, target=PLAIN)
    assert (made_by(emitted, "qkv", 1), made_by(emitted, "o")) == (18, 6)


def test_grouped_query_attention_ties_heads_that_share_keys() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    q = heads(net, project(net, x, 12, "q"), 4, 3)
    shared = [net.unsqueeze(heads(net, project(net, x, 6, name), 2, 3), [2]) for name in "kv"]
    k, v = (net.reshape(net.op("Expand", y, net.ints(1, 2, 2, 5, 3)), 1, 4, 5, 3) for y in shared)
    model = net.output(project(net, attention(net, q, k, v), 8, "o")).model()
    emitted = check_emission(model, {"o": [2]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 3, 3]


def attention_operator(net: Net, x: str, heads: tuple[int, int], *, side_by_side: bool, rotate: bool) -> str:
    """Opset 23: projections, rotated queries and keys, Attention with a mask where it has an axis of heads."""
    count, shared = heads
    parts = [project(net, x, n * 4, name) for n, name in zip((count, shared, shared), "qkv", strict=True)]
    if not side_by_side:
        parts = [
            net.op("Transpose", net.reshape(y, 1, 5, n, 4), perm=[0, 2, 1, 3])
            for y, n in zip(parts, (count, shared, shared), strict=True)
        ]
    if rotate:
        angles = net.random.uniform(-1, 1, (1, 5, 2)).astype(np.float32)
        caches = [net.weight(f(angles)) for f in (np.cos, np.sin)]
        for i, n in ((0, count), (1, shared)):
            options = {"num_heads": n} if side_by_side else {}
            (parts[i],) = net.ops("RotaryEmbedding", parts[i], *caches, shapes=[net.shapes[parts[i]]], **options)
    shapes = [net.shapes[parts[0]]]
    if side_by_side:
        return net.ops("Attention", *parts, q_num_heads=count, kv_num_heads=shared, shapes=shapes)[0]
    mask = net.weight(net.normal(1, count, 5, 5))
    (y,) = net.ops("Attention", *parts, mask, shapes=shapes)
    return net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 1, 5, -1)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("side_by_side, heads", [(False, (4, 4)), (False, (4, 2)), (True, (4, 4))])
def test_attention_as_one_operator(side_by_side: bool, heads: tuple[int, int], rotate: bool) -> None:
    net = Net(opset=23, ir_version=11)
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    y = attention_operator(net, x, heads, side_by_side=side_by_side, rotate=rotate)
    model = net.output(project(net, y, 8, "o")).model()
    assert trace(model).consumers["o"].prunable.all()
    emitted = check_emission(model, {"o": [0, 3, 6]}, target=PLAIN)
    queries, keys, values = (made_by(emitted, name, 1) // 4 for name in "qkv")
    assert (queries, keys, values, made_by(emitted, "o")) == (2, heads[1] // 2, heads[1] // 2, 8)


@pytest.mark.parametrize("symbols", ["BT", None])
def test_attention_over_dynamic_batch_and_time(symbols: str | None) -> None:
    """Targets as PyTorch computes them: Concat(batch, time, heads, size). Two lengths are unknown."""
    net = Net()
    net.input("x", (*(symbols or [None, None]), 8))
    lengths = net.op("Shape", "x")
    batch, time = (net.unsqueeze(net.op("Gather", lengths, net.weight(np.int64(i))), [0]) for i in (0, 1))

    def regrouped(y: str, *rest: int) -> str:
        target = net.op("Concat", batch, time, net.ints(*rest), axis=0)
        dims = (*(symbols or [None, None]), *rest)
        return net.ops("Reshape", y, target, shapes=[dims])[0]

    q, k, v = (
        net.op("Transpose", regrouped(net.op("MatMul", "x", net.weight(net.normal(8, 12)), name=name), 4, 3), perm=perm)
        for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v)
    y = regrouped(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), 12)
    model = net.output(net.op("MatMul", y, net.weight(net.normal(12, 8)), name="o")).model()
    emitted = check_emission(model, {"o": [0, 7, 8]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 6, 6]


def test_keys_transposed_through_merged_batch_and_heads() -> None:
    """scaled_dot_product_attention of a dynamic batch, as PyTorch's newer exporter writes it."""
    net = Net()
    x = net.input("x", ("B", 5, 8))

    def heads_of(name: str) -> str:
        y = net.op("MatMul", x, net.weight(net.normal(8, 12)), name=name)
        (y,) = net.ops("Reshape", y, net.ints(-1, 5, 4, 3), shapes=[("B", 5, 4, 3)])
        return net.op("Transpose", y, perm=[0, 2, 1, 3])

    q, k, v = (heads_of(name) for name in "qkv")
    (flat,) = net.ops("Reshape", k, net.ints(-1, 5, 3), shapes=[("BH", 5, 3)])
    turned = net.op("Transpose", flat, perm=[0, 2, 1])
    (keys,) = net.ops("Reshape", turned, net.ints(-1, 4, 3, 5), shapes=[("B", 4, 3, 5)])
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, keys), axis=-1), v)
    (y,) = net.ops("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(-1, 5, 12), shapes=[("B", 5, 12)])
    model = net.output(net.op("MatMul", y, net.weight(net.normal(12, 8)), name="o")).model()
    emitted = check_emission(model, {"o": [0, 7]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 6, 6]
    assert [node.op_type for node in emitted.graph.node].count("Reshape") == 4
