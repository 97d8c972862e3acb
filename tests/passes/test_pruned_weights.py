"""Weights as the passes write them: in place, shared as long as they may be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.builders import Masked, Net, check_emission, prune
from tests.passes.emitting import PLAIN, copy_of, fork, stored


def test_weights_keep_their_names_and_places() -> None:
    model = fork()
    emitted = check_emission(model, {"b": [1, 2], "c": [2, 3]}, target=PLAIN)
    assert [t.name for t in emitted.graph.initializer] == [t.name for t in model.graph.initializer]
    weight, bias = model.graph.node[0].input[1:]
    assert np.array_equal(stored(emitted)[weight], stored(model)[weight][[1, 2, 3]])
    assert np.array_equal(stored(emitted)[bias], stored(model)[bias][[1, 2, 3]])


def test_dropped_channels_that_must_be_read_get_zero_weights() -> None:
    model = fork()
    emitted = check_emission(model, {"b": [1, 2], "c": [2, 3]}, target=PLAIN, lowering="union")
    order = {1: 0, 2: 1, 3: 2}
    b = stored(emitted)[model.graph.node[1].input[1]]
    assert (b[:, order[3]] == 0).all()
    assert np.array_equal(b[:, :2], stored(model)[model.graph.node[1].input[1]][:, [1, 2]])


def test_a_grouped_weight_gets_zeros_in_its_group() -> None:
    for op_type, shape, axis in (("Conv", (6, 2, 1, 1), 1), ("ConvTranspose", (4, 3, 1, 1), 0)):
        net = Net()
        y = net.op(op_type, net.input("x", (1, 4, 3, 3)), net.weight(net.normal(*shape), "w"), group=2, name="g")
        model = net.output(y).model()
        emitted = check_emission(model, {"g": [0, 2, 3]}, lowering="gather", target=PLAIN)
        weight = stored(emitted)["w"]
        assert weight.shape == shape
        assert (weight[1] == 0).all() if axis == 0 else (weight[:3, 1] == 0).all() and (weight[3:] != 0).all()


def shared(masks_differ: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Two convolutions with one weight, behind producers with one weight."""
    net = Net()
    x, z = net.input("x", (1, 3, 4, 4)), net.input("z", (1, 3, 4, 4))
    first, second = net.weight(net.normal(6, 3, 1, 1), "first"), net.weight(net.normal(2, 6, 1, 1), "second")
    outputs = [net.conv_with(net.conv_with(v, first, name=f"p{i}"), second, name=f"c{i}") for i, v in enumerate((x, z))]
    model = net.output(*outputs).model()
    kept = {"c0": [0, 3, 4], "c1": [1, 3] if masks_differ else [0, 3, 4]}
    return model, check_emission(model, kept, target=PLAIN)


def test_shared_initializers_that_need_the_same_stay_shared() -> None:
    model, emitted = shared(masks_differ=False)
    assert {name: value.shape[:2] for name, value in stored(emitted).items()} == {"first": (3, 3), "second": (2, 3)}
    assert [list(n.input) for n in emitted.graph.node] == [list(n.input) for n in model.graph.node]


def test_shared_initializers_that_need_different_things_get_copies() -> None:
    _, emitted = shared(masks_differ=True)
    found = stored(emitted)
    assert sorted(value.shape[:2] for value in found.values()) == [(2, 2), (2, 3), (2, 3), (3, 3)]
    assert not {"first", "second"} & set(found)  # nobody reads the originals any more
    assert len({name for node in emitted.graph.node for name in node.input[1:]}) == 4


def test_an_initializer_that_something_else_reads_stays_for_that() -> None:
    net = Net()
    net.weight(net.normal(6, 3, 1, 1), "w")
    y = net.conv_with(net.input("x", (1, 3, 4, 4)), "w", name="a")
    used = net.op("CumSum", "w", net.input("axis", (), TensorProto.INT64))
    model = net.output(net.conv(y, 2, name="b"), used).model()
    before = copy_of(model)
    _, _, emitted = prune(model, {"b": [1, 4]}, target=PLAIN)
    onnx.checker.check_model(emitted, full_check=True)
    assert np.array_equal(stored(emitted)["w"], stored(before)["w"])
    assert stored(emitted)["w_pruned"].shape == (2, 3, 1, 1)
    assert [n.input[0] for n in emitted.graph.node if n.op_type == "CumSum"] == ["w"]


@pytest.mark.parametrize("is_output", [False, True])
def test_an_initializer_that_is_an_output_or_captured_stays(is_output: bool) -> None:
    net = Net()
    net.weight(net.normal(6, 3, 1, 1), "w")
    y = net.conv_with(net.input("x", (1, 3, 4, 4)), "w", name="a")
    if is_output:
        net.output("w")
    else:
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [6, 3, 1, 1])
        body = helper.make_graph([helper.make_node("Identity", ["w"], ["inner"])], "body", [], [out])
        condition = net.input("c", (), TensorProto.BOOL)
        net.output(net.op("If", condition, shapes=[(6, 3, 1, 1)], then_branch=body, else_branch=body))
    model = net.output(net.conv(y, 2, name="b")).model()
    _, plan, emitted = prune(model, {"b": [1, 4]}, target=PLAIN)
    Masked(model, plan.masks()).check(emitted)
    assert stored(emitted)["w"].shape == (6, 3, 1, 1)


def test_one_constant_used_as_weight_and_as_operand() -> None:
    """The same initializer is a convolution's bias and a scale elsewhere, and these lose different channels."""
    net = Net()
    vector = net.weight(net.normal(6), "v")
    x = net.input("x", (1, 3, 4, 4))
    a = net.op("Conv", x, net.weight(net.normal(6, 3, 1, 1)), vector, name="a")
    b = net.batch_norm(net.conv(a, 6, name="b"))
    net.nodes[-1].input[1] = vector
    model = net.output(net.conv(b, 2, name="c")).model()
    emitted = check_emission(model, {"b": [0, 5], "c": [1, 2, 3]}, target=PLAIN)
    assert sorted(value.size for name, value in stored(emitted).items() if name.startswith("v")) == [2, 3]


@pytest.mark.parametrize("kind", ["Constant", "Identity", "Transpose"])
def test_weights_behind_nodes_become_initializers_and_the_nodes_go(kind: str) -> None:
    net = Net()
    weight = net.normal(2, 6, 1, 1)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    if kind == "Constant":
        name = net.constant(weight)
    elif kind == "Identity":
        name = net.op("Identity", net.weight(weight, "w"))
    else:
        name = net.op("Transpose", net.weight(weight.transpose(1, 0, 2, 3), "w"), perm=[1, 0, 2, 3])
    model = net.output(net.conv_with(a, name, name="b")).model()
    emitted = check_emission(model, {"b": [1, 4]}, target=PLAIN)
    assert [node.op_type for node in emitted.graph.node] == ["Conv", "Conv"]
    assert "w" not in stored(emitted)


def test_other_element_types() -> None:
    net = Net()
    x = net.op("Cast", net.input("x", (1, 3, 4, 4)), to=TensorProto.DOUBLE)
    a = net.op("MatMul", x, net.weight(net.normal(4, 6).astype(np.float64), double=True), name="a")
    model = net.output(
        net.op("MatMul", a, net.weight(net.normal(6, 2).astype(np.float64), double=True), name="b")
    ).model()
    emitted = check_emission(model, {"b": [1, 4]}, target=PLAIN)
    assert {value.dtype for value in stored(emitted).values()} == {np.dtype(np.float64)}


def test_equal_copies_of_one_constant_are_written_once() -> None:
    """Each reader has an Identity of its own in front of the weight; one of them needs another part of it."""
    net = Net()
    shared = net.weight(net.normal(4, 8, 3, 3), "shared")
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 5, 5)), 8, name="a"))
    z = net.op("Relu", net.conv(net.input("z", (1, 3, 5, 5)), 8, name="b"))
    net.output(*[net.conv_with(y, net.op("Identity", shared), name=name) for name in ("c", "d")])
    net.output(net.conv_with(z, net.op("Identity", shared), name="e"))
    emitted = check_emission(net.model(), {"c": [0, 1, 2], "d": [0, 1, 2], "e": [4, 5]}, target=PLAIN)
    read = {node.name: node.input[1] for node in emitted.graph.node if node.name in "cde"}
    assert read["c"] == read["d"] != read["e"]
    shapes = sorted(value.shape for value in stored(emitted).values() if value.ndim == 4 and value.shape[0] == 4)
    assert shapes == [(4, 2, 3, 3), (4, 3, 3, 3)]


def test_equal_parts_of_different_constants_stay_apart() -> None:
    """A fresh normalisation's biases and means are all zero: who trains the model on needs all of them."""
    net = Net()
    y = net.batch_norm(net.conv(net.input("x", (1, 3, 5, 5)), 8, name="a"), np.ones(8))
    zeros = [net.weight(np.zeros(8), name) for name in ("bias", "mean")]
    y = net.op("BatchNormalization", y, net.weight(np.ones(8)), *zeros, net.weight(np.ones(8), "variance"))
    model = net.output(net.conv(y, 2, name="b")).model()
    emitted = check_emission(model, {"b": [1, 2]}, target=PLAIN)
    assert {"bias", "mean", "variance"} <= stored(emitted).keys()
