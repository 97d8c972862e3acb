"""The passes one by one: what each changes, and what it leaves alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net, check_emission, prune
from tests.passes.emitting import PLAIN, copy_of, emission, fork, stored
from ucpe_onnx import passes
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import (
    Emission,
    NameNodes,
    PassResult,
    PruneWeights,
    RemoveOrphans,
    Views,
    emission_passes,
    run_passes,
)
from ucpe_onnx.plan import Plan

# All of them


def test_passes_are_frozen_values_with_a_name_and_all_exported() -> None:
    model = fork()
    steps = emission_passes(emission(model, {"b": [1]}))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for step in steps:
        assert type(step).__name__ in passes.__all__
        assert dataclasses.is_dataclass(step) and step.__dataclass_params__.frozen
        assert step.name == type(step).name and "name" not in {field.name for field in dataclasses.fields(step)}
        assert step.name == "".join("-" + c.lower() if c.isupper() else c for c in type(step).__name__)[1:]


def test_run_passes_reports_by_name() -> None:
    model = fork()
    results = run_passes(
        copy_of(model), emission_passes(emission(model, {"b": [0, 1, 2], "c": [2, 3]}, lowering="gather"))
    )
    assert next(iter(results)) == "name-nodes"
    assert results["name-nodes"] == PassResult()
    constants = model.graph.node[0].input[1:], model.graph.node[1].input[1:2], model.graph.node[2].input[1:2]
    assert set(results["prune-weights"].changed) == {name for names in constants for name in names}
    assert results["route-channels"].changed == ("c_select", "b_select")
    assert results["remove-orphans"] == PassResult()


def test_an_empty_plan_changes_nothing_but_names() -> None:
    model = fork()
    model.graph.node[0].name = ""
    _, _, emitted = prune(model, {})
    assert [node.name for node in emitted.graph.node] == ["Conv_0", "b", "c"]
    emitted.graph.node[0].name = ""
    assert emitted == model


def test_emission_of_a_plan_read_from_json_is_the_same() -> None:
    model = fork()
    traced, plan, emitted = prune(model, {"b": [7, 1, 2], "c": [2, 3]})
    again = passes.emit(model, traced, Plan.from_dict(plan.to_dict()))
    assert again.SerializeToString() == emitted.SerializeToString()


def test_layouts_hold_what_changes_and_nothing_else() -> None:
    model = fork()
    found = emission(model, {"b": [1, 2], "c": [2, 3]})
    tensors = {axis for axis in found.layouts if isinstance(axis[0], str)}
    assert tensors == {(model.graph.node[0].output[0], 1)}
    assert sorted(found.layout((model.graph.node[0].output[0], 1)).tolist()) == [1, 2, 3]
    assert found.layout(("x", 1)).tolist() == [0, 1, 2]
    assert not emission(model, {}).layouts


def test_passes_tell_what_they_leave_and_why() -> None:
    """A weight stays for its other readers, a declaration that says too little stays as it is."""
    net = Net()
    net.weight(net.normal(6, 3, 1, 1), "w")
    y = net.conv_with(net.input("x", (1, 3, 4, 4)), "w", name="a")
    used = net.op("CumSum", "w", net.input("axis", (), TensorProto.INT64))
    model = net.output(net.conv(y, 2, name="b"), used).model()
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, None))
    results = run_passes(copy_of(model), emission_passes(emission(model, {"b": [1, 4]})))
    assert results["prune-weights"].skipped == {"w": "something else reads it whole"}
    assert results["refresh-shapes"] == PassResult((), {y: "it is declared with 0 axes"})
    assert str(results["refresh-shapes"]) == f"changed nothing and left {y} (it is declared with 0 axes)"


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        ("output", "it is an output of the graph too"),
        ("subgraph", "something else reads it whole"),
        ("convolution", "its readers need different parts of it"),
    ],
)
def test_weights_that_stay(reader: str, reason: str) -> None:
    net = Net()
    net.weight(net.normal(6, 3, 1, 1), "w")
    x, kept = net.input("x", (1, 3, 4, 4)), {"b": [1, 4]}
    net.output(net.conv(net.conv_with(x, "w", name="a"), 2, name="b"))
    if reader == "output":
        net.output("w")
    elif reader == "subgraph":
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [6, 3, 1, 1])
        body = helper.make_graph([helper.make_node("Identity", ["w"], ["inner"])], "body", [], [out])
        condition = net.input("c", (), TensorProto.BOOL)
        net.output(net.op("If", condition, shapes=[(6, 3, 1, 1)], then_branch=body, else_branch=body))
    else:
        net.output(net.conv(net.conv_with(x, "w", name="c"), 2, name="d"))
        kept["d"] = [0, 2, 3]
    model = net.model()
    found = PruneWeights(Views(emission(model, kept))).run(copy_of(model))
    assert found.skipped == {"w": reason} and all(
        name.startswith("w_pruned") for name in set(found.changed) - set(stored(model))
    )


def test_long_accounts_are_cut() -> None:
    assert str(PassResult(tuple("abcde"), {"w": "why"})) == "changed a, b, c and 2 more and left w (why)"


# Names


def test_repeated_and_missing_names() -> None:
    model = fork()
    for node in model.graph.node:
        node.name = "same"
    assert NameNodes().run(model).changed == ("Conv_0", "Conv_1", "Conv_2")
    assert [node.name for node in model.graph.node] == ["Conv_0", "Conv_1", "Conv_2"]
    assert NameNodes().run(model) == PassResult()


# Orphans


def test_what_nobody_read_before_stays() -> None:
    model = fork()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, dtype=np.float32), "unused"))
    model.graph.node.append(helper.make_node("Relu", [model.graph.node[0].output[0]], ["dead"], name="dead"))
    traced, _, emitted = prune(model, {"b": [1], "c": [2]}, target=PLAIN)
    assert "unused" in stored(emitted)
    assert [node.name for node in emitted.graph.node][-1] == "dead"
    draft = copy_of(model)
    assert RemoveOrphans(Emission(traced, prune(model, {})[1])).run(draft) == PassResult()
    assert draft == model


def test_a_node_with_another_reader_stays() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    weight = net.op("Transpose", net.weight(net.normal(6, 2, 1, 1)), perm=[1, 0, 2, 3])
    model = net.output(net.conv_with(a, weight, name="b"), weight).model()
    emitted = check_emission(model, {"b": [1, 4]}, target=PLAIN)
    assert [node.op_type for node in emitted.graph.node] == ["Conv", "Transpose", "Conv"]


def test_chains_of_orphans_go() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 6, name="a")
    weight = net.op("Mul", net.op("Identity", net.weight(net.normal(2, 6, 1, 1))), net.constant(np.float32(2)))
    model = net.output(net.conv_with(a, weight, name="b")).model()
    emitted = check_emission(model, {"b": [1, 4]}, target=PLAIN)
    assert len(emitted.graph.node) == 2 and len(emitted.graph.initializer) == 3


# Shapes


def test_value_infos_of_pruned_tensors() -> None:
    model = onnx.shape_inference.infer_shapes(fork())
    assert len(model.graph.value_info) == 1
    emitted = check_emission(model, {"b": [1, 2], "c": [2, 3]}, target=PLAIN)
    assert [d.dim_value for d in emitted.graph.value_info[0].type.tensor_type.shape.dim] == [1, 3, 4, 4]


def test_value_infos_without_a_shape() -> None:
    model = fork()
    model.graph.value_info.append(helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, None))
    emitted = check_emission(model, {"b": [1, 2], "c": [2, 3]}, target=PLAIN)
    assert emitted.graph.value_info == model.graph.value_info


# New names


def test_new_names_avoid_every_name_that_there_is() -> None:
    """Also those of declared values, and of tensors inside of subgraphs, which may not be shadowed."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    kept = f"{a}_kept_by_b"
    net.input(f"{kept}_indices", (1,))
    out = helper.make_tensor_value_info(kept, TensorProto.FLOAT, [1])
    body = helper.make_graph([helper.make_node("Relu", [f"{kept}_indices"], [kept])], "body", [], [out])
    (z,) = net.ops("If", net.input("cond", (), TensorProto.BOOL), shapes=[(1,)], then_branch=body, else_branch=body)
    model = net.output(net.conv(a, 2, name="b"), net.conv(a, 2, name="c"), net.op("Relu", z, name="b_select")).model()
    emitted = check_emission(model, {"b": [0, 3], "c": [0, 1, 2, 4]}, target=PLAIN, lowering="gather")
    names = [name for node in emitted.graph.node for name in node.output]
    assert f"{kept}_1" in names and kept not in names
    assert len({node.name for node in emitted.graph.node}) == len(emitted.graph.node)


# IR version 3


@pytest.mark.parametrize("opset", [8, 9])
def test_initializers_that_are_declared_as_inputs(opset: int) -> None:
    """IR version 3 wants that of all; the caller's inputs stay what they were, shapes of pruned weights follow."""
    net = Net(opset=opset, ir_version=3)
    x = net.input("x", (1, 3, 4, 4))
    weight = net.weight(net.normal(8, 3, 1, 1), "shared")
    a, b = net.conv_with(x, weight, name="a"), net.conv_with(x, weight, name="b")
    flat = net.op("Flatten", net.op("GlobalAveragePool", b))
    outputs = [net.conv(a, 2, name="c"), net.conv(a, 2, name="d"), net.gemm(flat, 3, name="g")]
    model = net.output(*outputs).model()
    emitted = check_emission(model, {"c": [0, 2], "d": [1, 2, 5], "g": [4, 5, 6]}, target=PLAIN, lowering="gather")
    assert next(value.name for value in emitted.graph.input) == "x"
    assert {v.name for v in emitted.graph.input} == {v.name for v in model.graph.input}
    assert {v.name for v in emitted.graph.input} == {"x"} | set(stored(emitted))
    for value in emitted.graph.input[1:]:
        assert [d.dim_value for d in value.type.tensor_type.shape.dim] == list(stored(emitted)[value.name].shape)


def test_a_plan_that_prunes_nothing_edits_no_weight() -> None:
    model = fork()
    assert PruneWeights(Views(emission(model, {}))).run(copy_of(model)) == PassResult()


def test_trace_of_the_emitted_model_agrees() -> None:
    """Emitting is idempotent: the emitted model has the same consumers, with fewer channels."""
    model = fork()
    _, plan, emitted = prune(model, {"b": [1, 2], "c": [2, 3]}, target=PLAIN)
    again = trace(emitted)
    assert list(again.consumers) == list(trace(model).consumers)
    assert {name: c.channels for name, c in again.consumers.items()} == {
        name: len(c.read) for name, c in plan.consumers.items()
    }


def test_constants_go_with_the_nodes_that_computed_them() -> None:
    """Also if those nodes have made something that nothing ever read."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    half, _ = net.split(net.weight(net.normal(6, 8, 1, 1), "whole"), [4, 2], axis=0)
    model = net.output(net.op("Conv", a, half, name="b")).model()
    emitted = check_emission(model, {"b": [0, 3]}, target=PLAIN)
    assert [node.op_type for node in emitted.graph.node] == ["Conv", "Conv"]
    assert "whole" not in stored(emitted)
    assert "Split" in {node.op_type for node in check_emission(model, {"b": list(range(8))}).graph.node}
