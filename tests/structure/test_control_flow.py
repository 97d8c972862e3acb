"""If, Loop and Scan: channels go in and out of bodies, and layers in them are layers like others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net
from tests.structure.checking import check
from ucpe_onnx.model.bodies import fold, unfold
from ucpe_onnx.model.bodies.markers import has_bodies

SHAPE = (1, 6, 4, 4)


def value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name: str, *nodes: onnx.NodeProto, shape: Sequence[int] = SHAPE) -> onnx.GraphProto:
    """A body without inputs whose last node makes its output."""
    return helper.make_graph(list(nodes), name, [], [value(nodes[-1].output[0], shape)])


def condition(net: Net) -> str:
    total = net.op("ReduceSum", net.input("z", (3,)), keepdims=0)
    return net.op("Cast", net.op("Relu", total), to=TensorProto.BOOL)


def chosen(net: Net, then: onnx.GraphProto, other: onnx.GraphProto, shape: Sequence[int] = SHAPE) -> str:
    return net.ops("If", condition(net), shapes=[shape], then_branch=then, else_branch=other)[0]


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


def start(net: Net) -> tuple[str, str]:
    """x -> a (6 channels) and, from it, b (6 channels)."""
    a = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    return a, net.conv(net.op("Relu", a), 6, name="b")


@pytest.mark.parametrize("captured", ["a", "b"])
def test_if_captures_what_a_layer_makes(captured: str) -> None:
    net = Net()
    a, b = start(net)
    held = a if captured == "a" else b
    out = chosen(net, branch("then", node("Neg", held, "t")), branch("else", node("Abs", held, "e")))
    c = net.conv(b, 5, name="c")
    model = net.output(net.conv(out, 2, name="d"), net.conv(c, 2, name="e")).model()
    check(model, pruned=["a", "b", "c"], feeds=both_ways())


def both_ways() -> list[dict[str, np.ndarray]]:
    """Feeds for which the condition is true, and false."""
    x = np.random.default_rng(3).standard_normal((1, 3, 4, 4)).astype(np.float32)
    return [{"x": x, "z": np.full(3, sign, np.float32)} for sign in (1, -1)]


def test_branches_that_make_a_segment_s_tensor() -> None:
    """The layer in one branch makes the channels that the other branch hands on, and that an outer layer adds to."""
    net = Net()
    a, b = start(net)
    weight = net.weight(net.normal(6, 6, 1, 1), "inner_weight")
    out = chosen(net, branch("then", node("Conv", f"{a} {weight}", "t")), branch("else", node("Identity", a, "e")))
    total = net.op("Add", out, net.conv(b, 6, name="c"))
    model = net.output(net.conv(total, 2, name="d")).model()
    traced = check(model, pruned=["a", "b", "c"], feeds=both_ways())
    (inner,) = set(traced.consumers) - {"a", "b", "c", "d"}
    assert inner.endswith("/then_branch/Conv_0")


def test_a_body_reads_the_weight_of_an_outer_layer() -> None:
    """The outer layer shrinks, the body's layer needs the weight as it was."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    weight = net.weight(net.normal(6, 3, 1, 1), "shared")
    a = net.conv_with(x, weight, name="a")
    out = chosen(net, branch("then", node("Conv", "x shared", "t")), branch("else", node("Conv", "x shared", "e")))
    model = net.output(net.conv(a, 2, name="b"), out).model()
    check(model, pruned=["a"], feeds=both_ways())


def test_a_body_within_a_body() -> None:
    net = Net()
    a, b = start(net)
    inner = node(
        "If",
        "deeper",
        "i",
        then_branch=branch("x1", node("Neg", a, "p")),
        else_branch=branch("x2", node("Abs", a, "q")),
    )
    net.weight(np.array(True), "deeper")
    out = chosen(
        net, branch("then", inner), branch("else", node("Identity", "x", "e"), shape=(1, 3, 4, 4)), (1, "c", 4, 4)
    )
    model = net.output(net.conv(b, 2, name="c"), out).model()
    check(model, pruned=["b"], whole=["a"], feeds=both_ways())


def test_loop_captures_and_carries() -> None:
    """The body adds an outer tensor to the one that it carries along: all of them have the same channels."""
    net = Net()
    a, b = start(net)
    kinds = [("i", [], TensorProto.INT64), ("go", [], TensorProto.BOOL), ("state", SHAPE, TensorProto.FLOAT)]
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Add", f"state {a}", "sum")],
        "body",
        [value(name, shape, kind) for name, shape, kind in kinds],
        [value("go_on", [], TensorProto.BOOL), value("sum", SHAPE)],
    )
    trips = net.weight(np.array(3, dtype=np.int64), "trips")
    (out,) = net.ops("Loop", trips, "", net.conv(b, 6, name="c"), shapes=[SHAPE], body=body)
    model = net.output(net.conv(out, 2, name="d")).model()
    check(model, pruned=["a", "b", "c"])


def test_scan_runs_over_channels() -> None:
    """A body sees one channel at a time: the channels' order and number matter to it."""
    net = Net()
    a, b = start(net)
    body = helper.make_graph(
        [node("Add", "state one", "next"), node("Mul", "next factor", "scaled")],
        "body",
        [value("state", (1, 4, 4)), value("one", (1, 4, 4))],
        [value("next", (1, 4, 4)), value("scaled", (1, 4, 4))],
    )
    net.weight(np.array([2.0], np.float32), "factor")
    first = net.weight(np.zeros((1, 4, 4), np.float32), "first")
    c = net.conv(b, 6, name="c")
    _, out = net.ops(
        "Scan",
        first,
        c,
        outputs=2,
        shapes=[(1, 4, 4), SHAPE],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    model = net.output(net.conv(out, 2, name="d"), net.conv(a, 2, name="e")).model()
    check(model, pruned=["a", "b"], whole=["c"])


def test_a_body_uses_the_names_that_an_emitted_model_would() -> None:
    """Names of new tensors must be new inside of bodies too, and nodes of a body may be called like outer ones."""
    net = Net()
    a, b = start(net)
    half = numpy_helper.from_array(np.ones(SHAPE, np.float32), "b_select")
    nodes = [
        node("Add", "b_select x2", f"{a}_gathered", name="b"),
        node("Relu", f"{a}_gathered", f"{b}_select", name="a"),
    ]
    then = helper.make_graph(nodes, "then", [], [value(f"{b}_select", SHAPE)], [half])
    net.weight(net.normal(*SHAPE), "x2")
    out = chosen(net, then, branch("else", node("Identity", "x2", f"{a}_select")))
    model = net.output(net.conv(b, 2, name="c"), net.conv(b, 3, name="d"), out).model()
    check(model, pruned=["a", "b"], feeds=both_ways())


def test_layers_inside_of_a_body() -> None:
    """They are called by the node, the body and their own names, and pruned with those around them."""
    net = Net()
    _, b = start(net)
    weights = {n: numpy_helper.from_array(net.normal(6, 6, 1, 1), n) for n in ("u", "v")}
    body = helper.make_graph(
        [node("Conv", f"{b} u", "m", name="inner"), node("Conv", "m v", "t", name="inner2")],
        "then",
        [],
        [value("t", SHAPE)],
        list(weights.values()),
    )
    out = chosen(net, body, branch("else", node("Identity", b, "e")))
    traced = check(net.output(net.conv(out, 2, name="c")).model(), pruned=["a", "b"], feeds=both_ways())
    (control,) = (name for name in traced.graph.unfolding.controls)
    inner = {f"{control}/then_branch/{name}" for name in ("inner", "inner2")}
    assert set(traced.consumers) == {"a", "b", "c", *inner}


def recurrence(net: Net, x: str, width: int, *, scan: bool = False) -> str:
    """A recurrent cell with weights in its body, over axis 0 of a sequence (time, 1, width)."""
    nodes = [
        node("Gather", f"{x} i", "step", axis=0),
        node("MatMul", "step wx", "from_step", name="from_step"),
        node("MatMul", "state wh", "from_state", name="from_state"),
        node("Add", "from_step from_state", "sum"),
        node("Tanh", "sum", "next"),
        node("Identity", "next", "told"),
        node("Identity", "go", "go_on"),
    ]
    stored = [
        numpy_helper.from_array(net.normal(width, 6), "wx"),
        numpy_helper.from_array(net.normal(6, 6), "wh"),
    ]
    zero = net.weight(np.zeros((1, 6), np.float32), "zero")
    outputs = [value("next", (1, 6)), value("told", (1, 6))]
    if scan:
        inputs = [value("state", (1, 6)), value("step", (1, width))]
        body = helper.make_graph(nodes[1:6], "body", inputs, outputs, stored)
        more = {"num_scan_inputs": 1}
        return net.ops("Scan", zero, x, outputs=2, shapes=[(1, 6), (4, 1, 6)], body=body, **more)[1]
    inputs = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", (1, 6))]
    body = helper.make_graph(nodes, "body", inputs, [value("go_on", [], TensorProto.BOOL), *outputs], stored)
    trips = net.weight(np.array(4, dtype=np.int64), "trips")
    return net.ops("Loop", trips, "", zero, outputs=2, shapes=[(1, 6), (4, 1, 6)], body=body)[1]


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
def test_a_recurrent_cell_that_is_written_out(scan: bool) -> None:
    """Its hidden units go, with the state that a step hands to the next, where what reads them drops them."""
    net = Net()
    x = net.op("MatMul", net.input("x", (4, 1, 3)), net.weight(net.normal(3, 5)), name="a")
    told = recurrence(net, x, 5, scan=scan)
    model = net.output(net.op("MatMul", told, net.weight(net.normal(6, 2)), name="b")).model()
    traced = check(model, pruned=["a"])
    (control,) = traced.graph.unfolding.controls
    step, state = (traced.consumers[f"{control}/body/{name}"] for name in ("from_step", "from_state"))
    assert step.prunable.all() and state.prunable.all()
    assert state.segment == traced.consumers["b"].segment


def test_what_is_not_touched_comes_back_byte_by_byte() -> None:
    net = Net()
    a, b = start(net)
    out = chosen(net, branch("then", node("Neg", a, "t")), branch("else", node("Abs", a, "e")))
    model = net.output(net.conv(out, 2, name="c"), net.conv(b, 3, name="d")).model()
    unfolding = unfold(model)
    assert unfolding.bodies and not any(has_bodies(inner) for inner in unfolding.model.graph.node)
    draft = onnx.ModelProto()
    draft.CopyFrom(unfolding.model)
    fold(draft, unfolding)
    for given, found in zip(model.graph.node, draft.graph.node, strict=True):
        given.name = found.name
    assert draft.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
