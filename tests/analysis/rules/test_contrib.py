"""What onnxruntime's optimiser makes of layers, norms and attentions, and files that it has saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from tests.analysis.operator_cases import PLAIN
from tests.analysis.rules.cases import made_by
from tests.builders import Net, check_emission
from tests.traps.trapping import check, check_halves
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.inspect import not_followed

MS = "com.microsoft"
WIDTH, HEADS, TIME = 24, 6, 5
SIZE = WIDTH // HEADS


def linear(net: Net, x: str, width: int, name: str) -> str:
    return net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], width)), name=name)


def contributed(net: Net, op_type: str, *inputs: str, shape: tuple[int, ...], **attributes: object) -> str:
    return net.ops(op_type, *inputs, domain=MS, shapes=[shape], **attributes)[0]


def unknown_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the shapes that the test has given: the analysis has to find them."""
    del model.graph.value_info[:]
    return model


def reasons(traced: Trace, name: str) -> str:
    return "; ".join(r for s in traced.segments if name in (*s.producers, *s.consumers) for r in s.reasons)


# Layers


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
@pytest.mark.parametrize("added", [False, True])
def test_fused_convolutions(activation: str, added: bool) -> None:
    net = Net()
    x = net.conv(net.input(shape=(1, 3, 6, 6)), 16, name="first")
    other = net.conv(x, 16, name="other")
    inputs = [x, net.weight(net.normal(16, 16, 3, 3)), net.weight(net.normal(16)), *([other] if added else [])]
    parameters = {"activation_params": [0.1]} if activation == "LeakyRelu" else {}
    y = contributed(
        net, "FusedConv", *inputs, shape=(1, 16, 6, 6), name="fused", pads=[1] * 4, activation=activation, **parameters
    )
    net.output(net.conv(y, 4, name="last"), net.conv(other, 4, name="side"))
    check(net, {"last": [0, 2, 3, 9], "fused": [1, 2, 5, 7, 8], "side": [2, 4]}, PLAIN)
    traced = check_halves(unknown_inside(net.model()))
    assert {"first", "other", "fused"} <= {p for s in traced.segments if not s.frozen.any() for p in s.producers}
    together = any({"fused", "other"} <= set(s.producers) for s in traced.segments)
    assert together == added, "a sum has the channels of both"


@pytest.mark.parametrize("turned", [0, 1])
def test_fused_products_with_a_constant(turned: int) -> None:
    net = Net()
    x = linear(net, net.input(shape=(2, TIME, 4)), 16, "first")
    weight = net.normal(8, 16) if turned else net.normal(16, 8)
    y = contributed(
        net, "FusedMatMul", x, net.weight(weight), shape=(2, TIME, 8), name="fused", transB=turned, alpha=0.5
    )
    net.output(linear(net, y, 3, "last"))
    check(net, {"fused": [1, 4, 8, 15], "last": [0, 2, 5]}, PLAIN)
    check_halves(unknown_inside(net.model()))


@pytest.mark.parametrize("reader", ["columns", "rows"])
@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_fused_products_of_two_activations(turned: tuple[int, int], reader: str) -> None:
    """Rows of the left one and columns of the right one pass; what is summed over stays."""
    net = Net()
    left = linear(net, net.input("l", (2, 8, 4)), 8, "left")  # (2, 8, 8): channels last
    right = linear(net, net.input("r", (2, 8, 4)), 8, "right")
    y = contributed(net, "FusedMatMul", left, right, shape=(2, 8, 8), transA=turned[0], transB=turned[1])
    net.output(linear(net, y if reader == "columns" else net.op("Transpose", y, perm=[0, 2, 1]), 3, reader))
    traced = trace(unknown_inside(net.model()))
    passing = {p for s in traced.segments if s.consumers and not s.frozen.any() for p in s.producers}
    passes = turned[0] if reader == "rows" else not turned[1]
    assert passing == ({"left" if reader == "rows" else "right"} if passes else set())
    if passing:
        check_halves(unknown_inside(net.model()))


def test_fused_gemm() -> None:
    net = Net()
    x = net.gemm(net.input(shape=(2, 4)), 16, name="first")
    inputs = [x, net.weight(net.normal(12, 16)), net.weight(net.normal(12))]
    y = contributed(net, "FusedGemm", *inputs, shape=(2, 12), name="fused", transB=1, activation="Relu")
    net.output(net.gemm(y, 3, name="last"))
    check(net, {"fused": [0, 5, 6], "last": [1, 2, 11]}, PLAIN)
    check_halves(unknown_inside(net.model()))


# Norms


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("whole", [False, True])
def test_norms_with_a_shortcut(op: str, whole: bool) -> None:
    """The width stays, and what the feed-forward makes inside may go."""
    net = Net()
    x = linear(net, net.input(shape=(2, TIME, 4)), WIDTH, "before")
    y = linear(net, net.op("Relu", linear(net, x, 32, "up")), WIDTH, "down")
    parameters = [net.weight(net.normal(WIDTH)) for _ in range(2 if op == "SkipLayerNormalization" else 1)]
    outputs = ["norm", "", "", "sum"] if whole else ["norm"]
    net.ops(op, x, y, *parameters, domain=MS, outputs=outputs, shapes=[(2, TIME, WIDTH)] * len(outputs))
    made = net.op("Add", "norm", "sum") if whole else "norm"
    net.output(linear(net, made, 3, "last"))
    model = unknown_inside(net.model())
    traced = check_halves(model)
    assert traced.consumers["down"].prunable.all() and not traced.consumers["last"].prunable.any()
    assert f"channel-mixing op {op}" in reasons(traced, "down") or f"{op}" in reasons(traced, "last")
    assert GraphView(model).shape(made) == (2, TIME, WIDTH)
    assert made_by(check_emission(model, {"down": list(range(8))}, target=PLAIN), "up", 1) == 8


def test_embeddings_and_the_norm_behind_them() -> None:
    net = Net()
    ids = net.input("ids", (2, TIME), TensorProto.INT32)
    tables = [net.weight(net.normal(16, WIDTH)), net.weight(net.normal(TIME, WIDTH)), net.weight(net.normal(2, WIDTH))]
    norm = [net.weight(net.normal(WIDTH)), net.weight(net.normal(WIDTH))]
    x = contributed(net, "EmbedLayerNormalization", ids, ids, *tables, *norm, shape=(2, TIME, WIDTH))
    net.output(linear(net, net.op("Relu", linear(net, x, 32, "up")), 3, "down"))
    model = unknown_inside(net.model())
    view = GraphView(model)
    assert view.shape(x) == (2, TIME, WIDTH) and view.types[x] == TensorProto.FLOAT
    traced = trace(model)
    assert traced.consumers["down"].prunable.all() and "EmbedLayerNormalization" in reasons(traced, "up")


# Attention


def attended(kind: str, *, bias: bool = False) -> Net:
    net = Net()
    x = net.input(shape=(2, TIME, 8))
    parts = [linear(net, x, WIDTH, name) for name in ("query", "key", "value")]
    more = [net.weight(net.normal(3 * WIDTH))] if bias else []
    if kind == "rotated":
        places = net.weight(np.tile(np.arange(TIME), (2, 1)))
        table = [net.weight(np.random.default_rng(i).random((16, SIZE // 2)).astype(np.float32)) for i in range(2)]
        shape = (2, TIME, WIDTH)
        parts[:2] = [contributed(net, "RotaryEmbedding", p, places, *table, shape=shape) for p in parts[:2]]
    y = contributed(net, "MultiHeadAttention", *parts, *more, shape=(2, TIME, WIDTH), num_heads=HEADS)
    return net.output(linear(net, y, 4, "out"))


@pytest.mark.parametrize(("kind", "bias"), [("plain", False), ("plain", True), ("rotated", False)])
def test_whole_heads_of_multi_head_attention(kind: str, bias: bool) -> None:
    net = attended(kind, bias=bias)
    model = unknown_inside(net.model())
    kept = [channel for channel in range(WIDTH) if channel // SIZE not in (1, 4)]
    emitted = check_emission(model, {"out": kept}, target=PLAIN, lowering="gather")
    assert made_by(emitted, "query", 1) == made_by(emitted, "value", 1) == 4 * SIZE
    (node,) = (node for node in emitted.graph.node if node.op_type == "MultiHeadAttention")
    assert [a.i for a in node.attribute if a.name == "num_heads"] == [4]
    check_halves(model)


def test_attention_with_its_projections() -> None:
    """What it reads may go where that is made alone; its heads stay."""
    net = Net()
    x = linear(net, net.input(shape=(2, TIME, 4)), 16, "before")
    weights = [net.weight(net.normal(16, 3 * WIDTH)), net.weight(net.normal(3 * WIDTH))]
    y = contributed(net, "Attention", x, *weights, shape=(2, TIME, WIDTH), num_heads=HEADS, name="attention")
    net.output(linear(net, y, 4, "out"))
    model = unknown_inside(net.model())
    assert GraphView(model).shape(y) == (2, TIME, WIDTH)
    emitted = check_emission(model, {"attention": [0, 3, 7, 8]}, target=PLAIN)
    assert made_by(emitted, "before", 1) == 4
    traced = check_halves(model)
    assert "heads of Attention at attention" in reasons(traced, "out")


@pytest.mark.parametrize("op", ["GroupQueryAttention", "MatMulNBits", "DynamicQuantizeMatMul"])
def test_what_stays_says_why(op: str) -> None:
    net = Net()
    x = linear(net, net.input(shape=(2, TIME, 4)), WIDTH, "before")
    y = contributed(net, op, x, *[net.weight(net.normal(3))] * 2, shape=(2, TIME, WIDTH))
    traced = trace(net.output(linear(net, y, 4, "after")).model())
    assert f"{op} at" in reasons(traced, "before") and "without a rule" not in reasons(traced, "before")


# Files that onnxruntime has saved


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED", "ALL"])
def test_a_network_saved_by_onnxruntime(tmp_path: Path, level: str) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(shape=(1, 3, 8, 8)), 16, k=3, name="first"))
    x = net.op("Relu", net.op("Add", x, net.conv(x, 16, k=3, name="second")))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.output(net.gemm(net.op("Relu", net.gemm(x, 32, name="up")), 4, name="down"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(net.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "saved.onnx")
    traced = check_halves(model)
    assert traced.consumers["down"].prunable.all()
    told = not_followed(traced)
    if any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        assert any("saved in onnxruntime's blocked layout" in reason for reason in told)
    else:
        assert traced.consumers["second"].prunable.all()


def test_a_quantised_recurrent_layer_says_why_its_units_stay() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 2, 3)), net.weight(net.normal(3, 8)), name="a")
    weights = [net.weight(net.random.integers(-9, 9, (2, size, 20)).astype(np.int8)) for size in (8, 5)]
    scale, zero = net.weight(np.full(2, 0.1, np.float32)), net.weight(np.zeros(2, np.int8))
    given = [a, *weights, "", "", "", "", "", scale, zero, scale, zero]
    shapes = [(4, 2, 2, 5), (2, 2, 5), (2, 2, 5)]
    attributes = {"hidden_size": 5, "direction": "bidirectional", "name": "q"}
    every, last, _ = net.ops("DynamicQuantizeLSTM", *given, domain=MS, outputs=3, shapes=shapes, **attributes)
    model = unknown_inside(net.output(linear(net, every, 2, "b"), linear(net, last, 2, "c")).model())
    graph = GraphView(model)
    assert [graph.shape(name) for name in model.graph.node[1].output] == shapes
    traced = trace(model)
    for name in ("b", "c"):
        assert "scales taken from all channels, or given with them: com.microsoft::DynamicQuantizeLSTM at q" in reasons(
            traced, name
        )
    check_emission(model, {"b": [0, 1, 4], "c": [3]}, target=PLAIN)
