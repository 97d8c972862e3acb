"""Names of nodes and tensors."""

from __future__ import annotations

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ucpe_onnx.model.naming import fresh_name, node_names, recurrence_names, tensor_names


def nodes(*pairs: tuple[str, str]) -> list[onnx.NodeProto]:
    return [helper.make_node(op_type, ["x"], ["y"], name=name) for op_type, name in pairs]


def test_unique_names_stay() -> None:
    assert node_names(nodes(("Conv", "a"), ("Relu", "/b/Relu"))) == ["a", "/b/Relu"]


def test_missing_and_repeated_names() -> None:
    given_nodes = nodes(("Conv", ""), ("Conv", "a"), ("Relu", "a"), ("Conv", "b"))
    assert node_names(given_nodes) == ["Conv_0", "Conv_1", "Relu_2", "b"]


def test_a_name_that_another_node_bears() -> None:
    assert node_names(nodes(("Conv", ""), ("Relu", "Conv_0"), ("Relu", "Conv_0_1"))) == [
        "Conv_0_2",
        "Conv_0",
        "Conv_0_1",
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["Conv", "Gemm"]), st.sampled_from(["", "a", "Conv_0", "Gemm_1", "Conv_0_1"])))
)
def test_names_are_unique_and_stable(pairs: list[tuple[str, str]]) -> None:
    names = node_names(nodes(*pairs))
    assert len(set(names)) == len(pairs)
    assert node_names(nodes(*[(op, name) for (op, _), name in zip(pairs, names, strict=True)])) == names
    given_names = [name for _, name in pairs]
    for name, found in zip(given_names, names, strict=True):
        if name and given_names.count(name) == 1:
            assert found == name


def test_fresh_name_takes_what_it_returns() -> None:
    taken = {"w", "w_1"}
    assert [fresh_name("w", taken), fresh_name("w", taken), fresh_name("v", taken)] == ["w_2", "w_3", "v"]
    assert taken == {"w", "w_1", "w_2", "w_3", "v"}


def test_tensor_names_of_a_graph_and_its_bodies() -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    inner = helper.make_graph([helper.make_node("Relu", ["captured"], ["inner"])], "i", [], [value("inner")])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    inner.initializer.append(weight)
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)],
        "o",
        [value("c"), value("unread")],
        [value("out")],
        value_info=[value("declared")],
    )
    outer.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("sparse", TensorProto.FLOAT, [0], []),
            helper.make_tensor("at", TensorProto.INT64, [0], []),
            [2],
        )
    )
    assert tensor_names(outer) - {""} == {"captured", "inner", "w", "c", "unread", "out", "declared", "sparse"}


def test_recurrences_are_named_after_their_layers() -> None:
    pairs = [("LSTM", "a"), ("GRU", ""), ("Conv", "a/recurrence"), ("RNN", "b"), ("Conv", "c")]
    nodes = [helper.make_node(op_type, [], [], name=name) for op_type, name in pairs]
    nodes.append(helper.make_node("LSTM", [], [], name="d", domain="custom"))
    assert recurrence_names(nodes) == {0: "a/recurrence_1", 1: "GRU_1/recurrence", 3: "b/recurrence"}
