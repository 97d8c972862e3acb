"""What is read from the graph that onnxruntime makes of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.offload import Offload
from ucpe_onnx.runtime.optimised import OptimisedGraph, read_optimised
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import target_for

CPU = target_for(("CPUExecutionProvider",), "all")
BLOCK = CPU.block
EXTENDED = RunOptions(opt_level="extended")

blocked = pytest.mark.skipif(not CPU.blocked, reason="onnxruntime has no blocked layout on this machine")


def found(graph: OptimisedGraph, kind: str) -> list[tuple[str, str, str]]:
    return [(finding.op, finding.name, finding.why) for finding in graph.of(kind)]


def residual() -> Net:
    """A stem, a block with a skip connection, a pooled head: all of it in blocks, all Adds and Relus fused."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 2 * BLOCK, 3, name="stem"))
    b = net.op("Relu", net.conv(a, 2 * BLOCK, 3, name="left"))
    c = net.op("Relu", net.op("Add", net.conv(b, 2 * BLOCK, 3, name="right"), a))
    return net.output(net.op("Flatten", net.op("GlobalAveragePool", c), name="flatten"))


def two(between: Callable[[Net, str], str], channels: int = 2 * BLOCK) -> Net:
    """Two convolutions, and something between."""
    net = Net()
    made = between(net, net.conv(net.input("x", (1, 3, 4, 4)), channels, name="first"))
    net.ops("GlobalAveragePool", net.conv(made, 2 * BLOCK, name="second"), outputs=["y"])
    return net.output("y")


@blocked
def test_a_model_that_runs_as_it_should():
    graph = read_optimised(residual().model())
    assert (graph.block, graph.blocked, graph.plain, graph.quantised) == (BLOCK, 3, 0, 0)
    (only,) = graph.findings
    assert (only.op, only.bytes, only.why) == ("ReorderOutput", 2 * BLOCK * 4, "for Flatten flatten")


def test_without_the_blocked_layout_nothing_is_outside_of_it():
    graph = read_optimised(residual().model(), EXTENDED)
    assert (graph.block, graph.blocked, graph.plain) == (0, 0, 3)
    assert graph.counts() | {"add": 0, "activation": 0} == dict.fromkeys(graph.counts(), 0)


def reading(channels: int) -> Net:
    return two(lambda net, x: net.op("Relu", x), channels)


def grouped(channels: int, groups: int) -> Net:
    return two(lambda net, x: net.conv(x, channels, groups=groups, name="odd"), channels)


def three_dimensional() -> Net:
    net = Net()
    return net.output(net.conv(net.input("x", (1, BLOCK, 4, 4, 4)), BLOCK, name="odd"))


def computed_weight() -> Net:
    net = Net()
    x, scale = net.input("x", (1, BLOCK, 4, 4)), net.input("scale", (BLOCK, BLOCK, 1, 1))
    return net.output(net.op("Conv", x, net.op("Sigmoid", scale), name="odd"))


def overridable() -> Net:
    net = Net()
    y = net.conv(net.input("x", (1, BLOCK, 4, 4)), BLOCK, name="odd")
    for weight in list(net.initializers):
        net.declare(weight)
    return net.output(y)


@blocked
@pytest.mark.parametrize(
    ("net", "name", "why"),
    [
        (reading(BLOCK + 1), "second", f"it reads {BLOCK + 1} channels, not a multiple of 4"),
        (grouped(BLOCK + 2, BLOCK + 2), "odd", f"it is depthwise with {BLOCK + 2} channels, not a multiple of 4"),
        (grouped(2 * BLOCK, 4), "odd", f"its groups read {BLOCK // 2} and make {BLOCK // 2} channels"),
        (three_dimensional(), "odd", "it is 3-D"),
        (computed_weight(), "odd", "its weight or bias is computed"),
        (overridable(), "odd", "its weights are inputs of the graph too"),
    ],
    ids=["reads", "depthwise", "grouped", "3-D", "computed", "overridable"],
)
def test_convolutions_outside_say_why(net, name, why):
    outside = {finding.name: finding for finding in read_optimised(net.model()).of("outside")}
    assert outside[name].why.startswith(why)
    if name == "second":
        assert list(outside) == ["second"]


@blocked
def test_a_convolution_outside_costs_a_reorder():
    graph = read_optimised(reading(BLOCK + 1).model())
    (reorder,) = graph.of("reorder")
    assert (reorder.op, reorder.bytes, reorder.why) == ("ReorderOutput", (BLOCK + 1) * 16 * 4, "for Conv second")
    assert (graph.blocked, graph.plain) == (1, 1)


@blocked
def test_a_selection_costs_a_copy_and_two_reorders():
    kept = np.arange(0, 2 * BLOCK, 2)
    net = two(lambda net, x: net.op("Gather", x, net.weight(kept), axis=1, name="selection"))
    graph = read_optimised(net.model())
    (copy,) = graph.of("copy")
    assert (copy.op, copy.name, copy.bytes) == ("Gather", "selection", BLOCK * 16 * 4)
    assert copy.tensor == net.nodes[0].output[0]
    reorders = {finding.op: finding for finding in graph.of("reorder") if "selection" in finding.why}
    assert reorders["ReorderOutput"].bytes == 2 * BLOCK * 16 * 4 and reorders["ReorderInput"].bytes == BLOCK * 16 * 4
    assert reorders["ReorderInput"].tensor == net.nodes[1].output[0]


def test_what_moves_lengths_and_constants_is_no_copy():
    net = Net()
    x = net.input("x", ("N", 4, 4, 4))
    batch = net.op("Gather", net.op("Shape", x), net.ints(0), axis=0)
    shape = net.op("Concat", batch, net.ints(-1), axis=0)
    flat = net.op("Reshape", net.op("Relu", x), shape)
    table = net.weight(net.normal(5, 64))
    picked = net.op("Gather", table, net.input("ids", ("N",), TensorProto.INT64), axis=0)
    model = net.output(net.op("Transpose", net.op("Add", flat, picked), perm=[1, 0])).model()
    graph = read_optimised(model, EXTENDED, {"x": (2, 4, 4, 4), "ids": (2,)})
    assert [(f.op, f.bytes) for f in graph.of("copy")] == [("Transpose", 2 * 64 * 4)]
    assert [f.bytes for f in read_optimised(model, EXTENDED).of("copy")] == [None]


def test_adds_and_activations_that_could_be_part_of_a_convolution():
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    first = net.conv(x, 2 * BLOCK, name="first")
    shared = net.op("Add", first, net.op("Relu", net.conv(x, 2 * BLOCK)), name="shared")
    relu = net.op("Relu", net.slice(net.conv(x, 2 * BLOCK), [1], [0], [BLOCK]), name="late")
    constant = net.op("Add", net.op("MaxPool", shared, kernel_shape=[1, 1]), net.weight(net.normal(1, 1, 1, 4)))
    graph = read_optimised(net.output(first, relu, constant).model())
    assert [(op, name) for op, name, _ in found(graph, "add")] == [("Add", "shared")]
    assert [(op, name) for op, name, _ in found(graph, "activation")] == [("Relu", "late")]
    if CPU.blocked:
        assert graph.of("add")[0].why == "the convolution's output is one of the model's"
        assert graph.of("activation")[0].why.startswith("behind Slice")


@blocked
@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda net, x: net.op("GlobalAveragePool", net.conv(x, 2 * BLOCK)), "onnxruntime can't prove that"),
        (lambda net, x: net.op("GlobalAveragePool", net.op("Concat", *[x] * BLOCK, axis=1)), "the operands differ in"),
        (lambda net, x: net.op("Erf", net.op("Concat", *[x] * BLOCK, axis=1)), "it adds what Erf"),
    ],
)
def test_adds_say_why_they_are_not_fused(other, why):
    net = Net()
    x = net.input("x", (1, 2, 4, 4))
    net.ops("Add", net.conv(x, 2 * BLOCK), other(net, x), name="sum", outputs=["y"])
    (add,) = read_optimised(net.output("y").model()).of("add")
    assert add.name == "sum" and add.why.startswith(why)


def test_a_convolution_that_several_read_keeps_its_activations_to_itself():
    net = Net()
    made = net.conv(net.input("x", (1, 3, 4, 4)), 2 * BLOCK)
    net.ops("Sum", net.op("Relu", made, name="one"), net.op("Tanh", made, name="two"), made, name="sum", outputs=["y"])
    graph = read_optimised(net.output("y").model())
    shared = "3 nodes read the convolution"
    assert sorted(found(graph, "activation")) == [("Relu", "one", shared), ("Tanh", "two", shared)]
    (add,) = graph.of("add")
    assert add.op == "Sum" and add.why == ("it adds 3 tensors" if CPU.blocked else add.why)


def test_activations_that_come_first_are_nobodys_fault():
    """Both operands are activated: the Add has to come after, whoever lays out the graph."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    total = net.op("Add", *(net.op("Relu", net.conv(x, 2 * BLOCK)) for _ in range(2)))
    assert read_optimised(net.output(total).model()).of("add") == ()


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with QuantizeLinear and DequantizeLinear before all convolutions, and int8 weights."""
    nodes, graph = [], model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, value in (("s", np.float32(0.05)), ("z", np.uint8(128)), ("wz", np.int8(0))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in graph.node:
        if node.op_type == "Conv":
            small = np.clip(np.round(weights[node.input[1]] / 0.05), -127, 127).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(small, f"{node.name}_w"))
            nodes.append(helper.make_node("QuantizeLinear", [node.input[0], "s", "z"], [f"{node.name}_q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{node.name}_q", "s", "z"], [f"{node.name}_in"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{node.name}_w", "s", "wz"], [f"{node.name}_wf"]))
            node.input[:] = [f"{node.name}_in", f"{node.name}_wf"]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_quantised_models_show_what_stayed_in_float():
    """A convolution runs in int8 only if what it makes is quantised, too, as it is."""
    net = Net()
    x = net.conv(net.input("x", (1, 4, 4, 4)), 2 * BLOCK, name="first")
    x = net.op("Erf", net.conv(x, 2 * BLOCK, name="second"))
    x = net.conv(net.conv(x, 2 * BLOCK, name="third"), 2 * BLOCK, name="last")
    graph = read_optimised(quantised(net.output(x).model()))
    assert graph.quantised == 2 and graph.of("outside") == ()
    assert [name for _, name, _ in found(graph, "float")] == ["second", "last"]


def test_counts_and_bytes_agree_with_a_run(tmp_path):
    """Reorders and copies are those that onnxruntime's profiler sees, and write as much."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (2, 3, 6, 6)), 3 * BLOCK - 2, 3))
    b, c = net.split(net.conv(a, 2 * BLOCK + 4, name="odd"), [BLOCK + 3, BLOCK + 1])
    d = net.op("Concat", net.conv(c, BLOCK), net.op("Relu", b), a, axis=1)
    model = net.output(net.op("Transpose", net.conv(d, 8, 3), perm=[0, 2, 3, 1])).model()
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros((2, 3, 6, 6), np.float32)})
    events = [event["args"] for event in json.loads(Path(session.end_profiling()).read_text()) if "args" in event]
    ran = [(event["op_name"], int(event["output_size"])) for event in events if "output_size" in event]
    graph = read_optimised(model)
    assert graph.nodes == len(ran)
    for kind in ("reorder", "copy"):
        expected = Counter((op, size) for op, size in ran if op in {finding.op for finding in graph.of(kind)})
        assert Counter((finding.op, finding.bytes) for finding in graph.of(kind)) == expected
    assert len(graph.of("copy")) >= 2 and bool(graph.of("reorder")) == CPU.blocked


def test_half_precision_is_counted_as_it_runs():
    """Without kernels for it onnxruntime casts, and tensors are twice as large as the model says."""
    net = Net()
    net.input("x", (1, 2 * BLOCK, 4, 4), TensorProto.FLOAT16)
    weight = net.weight(net.normal(2 * BLOCK, 2 * BLOCK, 1, 1).astype(np.float16))
    model = net.output(net.slice(net.conv_with("x", weight, name="conv"), [1], [0], [BLOCK])).model()
    graph = read_optimised(model)
    types = {finding.op: finding.bytes for finding in graph.of("copy")}
    assert types["Slice"] in (BLOCK * 16 * 2, BLOCK * 16 * 4)
    assert all(finding.tensor for finding in graph.findings)


def test_a_parked_model_reads_like_any_other(monkeypatch):
    monkeypatch.setattr("ucpe_onnx.model.offload.LEAST_MODEL", 1)
    monkeypatch.setattr("ucpe_onnx.model.offload.LEAST_TENSOR", 1024)
    model = residual().model()
    expected = read_optimised(model)
    with Offload() as offload:
        light = offload.store(model)
        assert light.ByteSize() < model.ByteSize()
        assert read_optimised(light) == expected


def test_a_graph_that_cannot_be_saved_is_an_error(monkeypatch):
    """As with providers that compile it."""

    def refuse(*arguments: object, **options: object) -> None:
        raise ModelError("net: onnxruntime can't load it: unable to serialize compiled nodes")

    monkeypatch.setattr("ucpe_onnx.runtime.optimised.make_session", refuse)
    with pytest.raises(ModelError, match="compiled nodes"):
        read_optimised(residual().model())
    monkeypatch.setattr("ucpe_onnx.runtime.optimised.make_session", lambda *arguments, **options: None)
    with pytest.raises(ModelError, match="can't be read back"):
        read_optimised(residual().model())


@blocked
def test_a_normalisation_in_blocks_is_no_convolution():
    """onnxruntime makes a depthwise convolution of one that it can't fold; a name that looks alike doesn't deceive."""
    net = Net()
    first = net.conv(net.input("x", (1, 3, 4, 4)), 2 * BLOCK)
    folded = net.batch_norm(net.op("Concat", first, first, axis=1))
    weight, y = net.weight(net.normal(2 * BLOCK, 4 * BLOCK, 1, 1)), "made_bn"
    net.ops("Conv", net.op("Relu", folded), weight, name="last", outputs=[y])
    graph = read_optimised(net.output(net.op("GlobalAveragePool", y)).model())
    assert (graph.blocked, graph.plain) == (2, 0) and [f.op for f in graph.of("copy")] == ["Concat"]


def test_subgraphs_are_looked_at():
    """A convolution in a branch counts, and a copy in it; the bytes are not known."""
    net = Net()
    x = net.input("x", (1, BLOCK + 1, 4, 4))
    net.input("choose", (), TensorProto.BOOL)
    net.weight(net.normal(BLOCK, BLOCK + 1, 1, 1), "w")
    shape = [1, 4, 4, BLOCK]
    bodies = []
    for name, read in (("then", x), ("else", "turned")):
        nodes = [] if read == x else [helper.make_node("Sin", [x], ["turned"], "sin")]
        nodes.append(helper.make_node("Conv", [read, "w"], [f"{name}_made"], f"{name}_conv"))
        nodes.append(helper.make_node("Transpose", [f"{name}_made"], [name], f"{name}_turn", perm=[0, 2, 3, 1]))
        bodies.append(helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, shape)]))
    net.ops("If", "choose", then_branch=bodies[0], else_branch=bodies[1], shapes=[shape], outputs=["y"])
    graph = read_optimised(net.output("y").model())
    assert graph.blocked + graph.plain == 2
    assert {finding.name for finding in graph.of("copy")} == {"then_turn", "else_turn"}
    if CPU.blocked:
        assert {finding.name for finding in graph.of("outside")} == {"then_conv", "else_conv"}
