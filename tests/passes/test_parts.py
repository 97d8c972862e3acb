"""Blocks as tensors of their own: producers in pieces, consumers as sums, and nothing in between that joins or cuts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.builders import Net
from tests.passes.routed import named, nodes, routed, shape, split_plan, written
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import MaskError

COPIES = ("Concat", "Gather", "Slice", "Split", "Pad")

KEPT = {"b": [0, 1, 2], "c": [2, 5]}
BLOCKS = [[0, 1], [2], [5]]


def fork() -> onnx.ModelProto:
    """x -> a (8) -> BatchNormalization -> Relu -> b (BatchNormalization behind it) and c."""
    net = Net()
    y = net.op("Relu", net.batch_norm(net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")), name="relu")
    return net.output(net.batch_norm(net.conv(y, 4, name="b")), net.conv(y, 4, name="c")).model()


def values(model: onnx.ModelProto, *names: str) -> list[np.ndarray]:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [stored[name] for name in names]


def test_producers_in_pieces_and_consumers_as_sums() -> None:
    emitted = routed(fork(), KEPT, {"b": "partial", "c": "partial"}, BLOCKS)
    assert sorted(written(emitted)) == [
        "BatchNormalization_1_block0: t3_block0 -> t8_block0",
        "BatchNormalization_1_block1: t3_block1 -> t8_block1",
        "BatchNormalization_1_block2: t3_block2 -> t8_block2",
        "a_block0: x -> t3_block0",
        "a_block1: x -> t3_block1",
        "a_block2: x -> t3_block2",
        "b: t9_block0 -> t17_term0",  # the first term keeps the consumer's name
        "b_1: t9_block1 -> t17_term1",
        "c: t9_block1 -> t20_term0",
        "c_1: t9_block2 -> t20_term1",
        "relu_block0: t8_block0 -> t9_block0",
        "relu_block1: t8_block1 -> t9_block1",
        "relu_block2: t8_block2 -> t9_block2",
        "t17_add: t17_term0 t17_term1 -> t17",  # what the normalisation made: the terms have taken it in
        "t20_add: t20_term0 t20_term1 -> t20",
    ]
    assert [len(named(emitted, name).input) for name in ("b", "b_1", "c", "c_1")] == [3, 2, 3, 2], "one bias each"
    assert [shape(emitted, named(emitted, f"a_block{i}").input[1]) for i in range(3)] == [
        [2, 3, 1, 1],
        [1, 3, 1, 1],
        [1, 3, 1, 1],
    ]
    assert [shape(emitted, named(emitted, name).input[1])[1] for name in ("b", "b_1", "c", "c_1")] == [2, 1, 1, 1]


def test_what_a_term_reads_and_does_not_keep_has_zero_weights() -> None:
    emitted = routed(fork(), {"b": [0, 1, 5], "c": [2, 5]}, {"b": "partial", "c": "partial"}, [[0, 1], [2, 5]])
    (weight,) = values(emitted, named(emitted, "b_1").input[1])
    assert not weight[:, 0].any() and weight[:, 1].all()


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_every_kind_of_sum(kind: str) -> None:
    """The bias is added once, whatever the operator, and beta goes with it."""
    net = Net()
    y = net.conv(net.input("x", (2, 3, 4, 4)), 6, name="a")
    if kind in ("Gemm", "MatMul"):
        y = net.op("GlobalAveragePool", y)
        y = net.reshape(y, 2, 6)
    weights = {"Conv": (4, 6, 1, 1), "ConvTranspose": (6, 4, 1, 1), "Gemm": (6, 4), "MatMul": (6, 4)}[kind]
    bias = [] if kind == "MatMul" else [net.weight(net.normal(4))]
    more = {"alpha": 0.5, "beta": 3.0} if kind == "Gemm" else {}
    net.output(net.op(kind, y, net.weight(net.normal(*weights)), *bias, name="b", **more))
    emitted = routed(net.model(), {"b": [0, 1, 4]}, {"b": "partial"}, [[0, 1], [4]])
    assert len(nodes(emitted, "Add")) == 1 and [node.name for node in nodes(emitted, kind)][-2:] == ["b", "b_1"]


def test_gemm_of_an_opset_that_asks_for_a_bias_is_no_sum() -> None:
    net = Net(opset=10)
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(net.input("x", (2, 3, 4, 4)), 6, name="a")))
    model = net.output(net.gemm(y, 4, name="b"), net.gemm(y, 4, name="c")).model()
    with pytest.raises(MaskError, match="'b': can't be a sum over blocks"):
        split_plan(trace(model), {"b": [0, 1, 4]}, {"b": "partial"}, [[0, 1], [4], [2, 3, 5]])
    emitted = routed(model, {"b": [0, 1, 4]}, {"b": "concat"}, [[0, 1], [4], [2, 3, 5]])
    assert all(len(node.input) == 3 for node in nodes(emitted, "Gemm"))


def test_copies_of_a_node_say_what_it_said() -> None:
    model = fork()
    for node in model.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="scope", value=f"module.{node.name}")
    emitted = routed(model, KEPT, {"b": "partial", "c": "partial"}, BLOCKS)
    for name, source in {"a_block0": "a", "a_block2": "a", "relu_block1": "relu", "b": "b", "b_1": "b"}.items():
        node = named(emitted, name)
        assert node.doc_string == f"doc of {source}"
        assert [(entry.key, entry.value) for entry in node.metadata_props] == [("scope", f"module.{source}")]


def test_blocks_are_joined_once_for_those_who_read_the_same() -> None:
    emitted = routed(fork(), {"b": [0, 1, 2], "c": [1, 2]}, {"b": "concat", "c": "concat"}, [[0, 1], [2]])
    (joined,) = nodes(emitted, "Concat")
    assert list(joined.input) == ["t9_block0", "t9_block1"]
    assert named(emitted, "b").input[0] == named(emitted, "c").input[0] == joined.output[0]


def test_one_block_is_read_as_it_is() -> None:
    emitted = routed(fork(), {"b": [0, 1], "c": [2, 5]}, {"b": "concat", "c": "partial"}, [[0, 1], [2, 5]])
    assert not nodes(emitted, "Add", *COPIES)
    assert [named(emitted, name).input[0] for name in "bc"] == ["t9_block0", "t9_block1"]


def test_own_producers_leave_what_others_share_alone() -> None:
    model = fork()
    emitted = routed(model, KEPT, {"b": "duplicate"})
    assert [line for line in written(emitted) if "_for_b" in line] == [
        "a_for_b: x -> t3_for_b",
        "BatchNormalization_1_for_b: t3_for_b -> t8_for_b",
        "relu_for_b: t8_for_b -> t9_for_b",
        "b: t9_for_b -> t12",
    ]
    everybody = ["a: x -> t3", "BatchNormalization_1: t3 -> t8", "relu: t8 -> t9"]
    assert [line for line in written(emitted) if "_for_b" not in line and "b: t12" not in line] == [
        *everybody,
        "BatchNormalization_4: t12 -> t17",
        "c: t9 -> t20",
    ]
    assert shape(emitted, named(emitted, "a").input[1]) == [4, 3, 1, 1], "what b and c keep; a plan may say less"


def test_nobody_shares_a_producer_any_more() -> None:
    """If every consumer has its own, the common one goes."""
    emitted = routed(fork(), KEPT, {"b": "duplicate", "c": "duplicate"})
    assert {node.name for node in nodes(emitted, "Conv")} == {"a_for_b", "a_for_c", "b", "c"}


def trunk() -> onnx.ModelProto:
    """A residual trunk of 8 channels through Add, BatchNormalization, Relu, a pool and a depthwise layer."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="stem"))
    for i in range(2):
        inner = net.op("Relu", net.conv(y, 4, name=f"in{i}"))
        y = net.op("Relu", net.op("Add", net.batch_norm(net.conv(inner, 8, 3, name=f"out{i}")), y))
    y = net.op("Clip", net.depthwise(net.op("MaxPool", y, kernel_shape=[2, 2]), name="dw"))
    return net.output(net.conv(y, 4, name="head")).model()


def test_a_trunk_stays_in_blocks() -> None:
    kept = {"in0": [0, 1, 2], "in1": [2, 3, 4], "head": [0, 4]}
    emitted = routed(trunk(), kept, dict.fromkeys(kept, "partial"), [[0, 1], [2, 3], [4]])
    assert not nodes(emitted, *COPIES)
    adds = [node for node in nodes(emitted, "Add") if node.name.startswith("Add_")]
    assert [node.name for node in adds] == [
        "Add_6_block0",
        "Add_6_block2",
        "Add_6_block1",
        "Add_12_block0",
        "Add_12_block2",
    ]
    assert {node.name for node in nodes(emitted, "Conv") if node.name.startswith("out1")} == {
        "out1_block0",
        "out1_block2",
    }, "the second block of the last sum is read by nobody, so that nobody makes it"
    groups = {node.name: node.attribute for node in nodes(emitted, "Conv") if node.name.startswith("dw")}
    assert {name: [a.i for a in attributes if a.name == "group"] for name, attributes in groups.items()} == {
        "dw_block0": [2],
        "dw_block2": [1],
    }


def test_a_concat_vanishes() -> None:
    """DenseNet: what is appended stays where it is, and every layer sums over what it reads."""
    net = Net()
    features = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="stem")
    for i in range(2):
        grown = net.conv(net.op("Relu", net.batch_norm(features)), 4, name=f"layer{i}")
        features = net.op("Concat", features, grown, axis=1)
    model = net.output(net.conv(net.op("Relu", net.batch_norm(features)), 4, name="head")).model()
    kept = {"layer0": [0, 1], "layer1": [1, 2, 6, 7], "head": [0, 6, 8, 9, 10]}
    blocks = [[0, 1], [2], [6], [7], [8, 9], [10]]
    emitted = routed(model, kept, dict.fromkeys(kept, "partial"), blocks)
    assert not nodes(emitted, *COPIES)
    reads = {node.name: node.input[0] for node in nodes(emitted, "Relu")}
    assert len(reads) == 1 + 4 + 4, "one for each block that a layer reads"
    assert not any(name.endswith("_block3") and name.startswith("Relu_10") for name in reads)


@pytest.mark.parametrize("lowering", ["partial", "concat"])
def test_the_whole_keeps_its_name_for_those_who_need_it(lowering: str) -> None:
    """A Flatten of maps mixes channels and positions: it gets all blocks, joined."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    net.output(net.conv(y, 4, name="b"), net.conv(y, 4, name="c"), net.gemm(net.op("Flatten", y), 4, name="f"))
    emitted = routed(net.model(), KEPT, {"b": lowering, "c": lowering}, [*BLOCKS, [3, 4, 6, 7]])
    (whole,) = [node for node in nodes(emitted, "Concat") if len(node.input) == 4]
    assert list(whole.output) == [y] and [n.input[0] for n in nodes(emitted, "Flatten")] == [y]


def test_a_frozen_tensor_is_not_split() -> None:
    """A graph output: its channels stay, and the producer makes them in one go."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a"))
    emitted = routed(net.output(y, net.conv(y, 4, name="b")).model(), {"b": [0, 3]}, {"b": "gather"}, None)
    assert [node.name for node in nodes(emitted, "Conv")] == ["a", "b"]


def test_parts_of_a_tensor_that_is_joined_from_a_frozen_one() -> None:
    """The graph's input stays whole; what a producer appends to it comes in blocks."""
    net = Net()
    x = net.input("x", (1, 2, 4, 4))
    y = net.op("Concat", x, net.conv(x, 6, name="a"), axis=1)
    model = net.output(net.conv(y, 4, name="b"), net.conv(y, 4, name="c")).model()
    traced = trace(model)
    ((own, grown),) = [s.groups for s in traced.segments if "b" in s.consumers]
    kept = {"b": [*own, grown[0]], "c": [own[0], grown[1], grown[2]]}
    blocks = [own, grown[:1], grown[1:3]]
    emitted = routed(model, kept, {"b": "partial", "c": "partial"}, blocks)
    assert not nodes(emitted, *COPIES)
    assert {named(emitted, name).input[0] for name in ("b", "c")} == {"x"}


def test_cuts_hand_on_the_blocks_of_what_they_cut() -> None:
    """Neither a Split nor a Slice is left: their outputs are some of the blocks."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    left, right = net.split(y, [4, 4])
    middle = net.slice(y, [1], [2], [6])
    net.output(net.conv(left, 4, name="b"), net.conv(right, 4, name="c"), net.conv(middle, 4, name="d"))
    kept = {"b": [0, 1], "c": [0, 1, 2], "d": [0, 3]}
    emitted = routed(net.model(), kept, dict.fromkeys(kept, "partial"), [[0, 1], [2], [3], [4, 5], [6]])
    assert not nodes(emitted, *COPIES)
    read = {node.name: node.input[0] for node in nodes(emitted, "Conv") if node.name[0] in "bcd"}
    assert read == {"b": "t4_block0", "c": "t4_block3", "c_1": "t4_block4", "d": "t4_block1", "d_1": "t4_block3"}


def test_blocks_that_no_joining_brings_into_order() -> None:
    """A block that holds channels from both ends of a Concat: who needs the whole gets it from the operands."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    y = net.op("Concat", *[net.conv(x, 2, name=name) for name in "pqr"], axis=1)
    net.output(net.conv(y, 4, name="b"), net.gemm(net.op("Flatten", y), 4, name="f"))
    emitted = routed(net.model(), {"b": [0, 4, 5]}, {"b": "partial"}, [[0, 4], [1, 2, 3, 5]])
    whole = [node for node in nodes(emitted, "Concat") if node.output[0] == y]
    assert [list(node.input) for node in whole] == [list(nodes(net.model(), "Concat")[0].input)]


def test_groups_in_another_order_than_on_some_axis() -> None:
    """Two Concats of the same tensors the other way round: each reads the blocks in its own order."""
    net = Net()
    x = net.input("x", (1, 3, 4, 4))
    a, b = net.conv(x, 4, name="a"), net.conv(x, 4, name="b")
    net.output(
        net.conv(net.op("Concat", a, b, axis=1), 4, name="c"), net.conv(net.op("Concat", b, a, axis=1), 4, name="d")
    )
    kept = {"c": [0, 1, 4], "d": [0, 4, 5]}
    emitted = routed(net.model(), kept, {"c": "concat", "d": "partial"}, [[0, 1], [4, 5]])
    (joined,) = nodes(emitted, "Concat")
    assert list(joined.input) == [a, b]
    assert [named(emitted, name).input[0] for name in ("c", "d", "d_1")] == [joined.output[0], b, a]


@pytest.mark.parametrize("opset", [10, 17])
def test_a_slice_of_another_axis_is_no_cut(opset: int) -> None:
    """It works on every block: one that turns an axis round leaves no trace in any shape."""
    net = Net(opset=opset)
    y = net.op("MatMul", net.input("x", (1, 5, 3)), net.weight(net.normal(8, 3).T), name="a")
    y = net.slice(y, [1], [-1], [-9], [-1])
    net.output(*[net.op("MatMul", y, net.weight(net.normal(8, 4)), name=name) for name in "bc"])
    emitted = routed(net.model(), KEPT, {"b": "partial", "c": "partial"}, BLOCKS)
    assert len(nodes(emitted, "Slice")) == 3 and not nodes(emitted, "Concat")
