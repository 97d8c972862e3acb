"""Whatever a model carries besides nodes and weights is in the emitted one, field by field."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net, assert_equal_outputs, feeds_for, masks_for
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.masked import masked_model
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import Target, make_plan
from ucpe_onnx.planning.make import Settings

KEPT = {"b": [0, 2, 5], "c": [1, 2]}


def plain() -> onnx.ModelProto:
    """x -> a -> Relu -> b and c, the batch has a name."""
    net = Net(opset=17, ir_version=10)
    a = net.op("Relu", net.conv(net.input("x", ("batch", 3, 4, 4)), 8, name="a"), name="relu")
    return net.output(net.conv(a, 2, name="b"), net.conv(a, 2, name="c")).model()


def entry(key: str, value: str) -> onnx.StringStringEntryProto:
    return onnx.StringStringEntryProto(key=key, value=value)


def has(message: object, field: str) -> bool:
    return field in {f.name for f in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]


def decorated() -> onnx.ModelProto:
    """The plain model with everything that onnx lets one say about a model."""
    model = plain()
    graph = model.graph
    model.producer_name, model.producer_version, model.domain = "exporter", "1.2.3", "com.example.net"
    model.model_version, model.doc_string = 42, "what it is for"
    model.metadata_props.append(entry("author", "somebody"))
    graph.doc_string = "the graph"
    graph.input[0].doc_string, graph.output[0].doc_string = "an image", "scores"
    for message in (graph, *graph.node, graph.input[0], *graph.initializer):
        if has(message, "metadata_props"):
            message.metadata_props.append(entry("namespace", f"of {message.name}"))
    for node in graph.node:
        node.doc_string = f"{node.name} at line 7"
    # a function, its call and a node that no runtime knows, off the path that is pruned
    function = helper.make_function(
        "com.example",
        "Twice",
        ["v"],
        ["w"],
        [helper.make_node("Add", ["v", "v"], ["w"])],
        [helper.make_opsetid("", 17)],
    )
    function.doc_string = "v + v"
    if has(function, "metadata_props"):
        function.metadata_props.append(entry("kind", "test"))
    model.functions.append(function)
    model.opset_import.extend([helper.make_opsetid("com.example", 1), helper.make_opsetid("unused.domain", 3)])
    graph.node.append(helper.make_node("Twice", [graph.output[0].name], ["twice"], name="call", domain="com.example"))
    graph.node.append(
        helper.make_node("Mystery", ["twice"], ["mystery"], name="m", domain="com.example", level=3, tags=["a", "b"])
    )
    graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", 2, 4, 4]))
    graph.value_info.extend(
        [
            helper.make_tensor_value_info(graph.node[0].output[0], TensorProto.FLOAT, ["batch", 8, 4, 4]),
            helper.make_tensor_value_info("mystery", TensorProto.FLOAT, ["batch", "anything"]),
            helper.make_tensor_value_info(graph.node[0].input[1], TensorProto.FLOAT, [8, 3, 1, 1]),
        ]
    )
    graph.value_info[0].doc_string = "before the activation"
    # initializers that nothing reads, a sparse one, quantisation parameters
    graph.initializer.append(numpy_helper.from_array(np.arange(3.0), "unused"))
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0]),
            helper.make_tensor("at", TensorProto.INT64, [1], [1]),
            [4],
        )
    )
    annotation = graph.quantization_annotation.add(tensor_name=graph.node[1].output[0])
    annotation.quant_parameter_tensor_names.append(entry("SCALE_TENSOR", "unused"))
    if has(model, "training_info"):
        training = model.training_info.add()
        training.initialization.name = "init"
        training.update_binding.append(entry("w", "w_new"))
    if has(model, "configuration"):
        model.configuration.add(name="two devices", num_devices=2)
    if has(graph.node[0], "overload"):
        graph.node[-1].overload = "v2"
    return model


def emitted(model: onnx.ModelProto) -> onnx.ModelProto:
    traced = trace(model)
    plan = make_plan(traced, masks_for(traced, KEPT), Settings(lowering="gather", target=Target(blocked=False)))
    return emit(model, traced, plan)


def test_every_field_of_the_model_stays() -> None:
    before = decorated()
    after = emitted(before)
    names = {field.name for field, _ in before.ListFields()}
    assert {"functions", "metadata_props", "opset_import", "training_info", "domain", "model_version"} <= names
    for name in names - {"graph"}:
        assert getattr(after, name) == getattr(before, name), name
    assert {field.name for field, _ in after.ListFields()} == names


def test_every_field_of_the_graph_stays() -> None:
    before = decorated().graph
    after = emitted(decorated()).graph
    names = {field.name for field, _ in before.ListFields()}
    edited = {"node", "initializer", "value_info"}
    assert {"sparse_initializer", "quantization_annotation", "doc_string", "metadata_props"} <= names
    for name in names - edited:
        assert getattr(after, name) == getattr(before, name), name
    assert {field.name for field, _ in after.ListFields()} == names


def test_every_node_stays_but_for_what_it_reads() -> None:
    before, after = decorated().graph, emitted(decorated()).graph
    nodes = {node.name: node for node in after.node}
    new = set(nodes) - {node.name for node in before.node}
    assert new == {"b_select", "c_select"}
    for node in before.node:
        kept = onnx.NodeProto()
        kept.CopyFrom(nodes[node.name])
        if node.name in ("b", "c"):
            kept.input[0] = node.input[0]
        assert kept == node, node.name
    assert [node.name for node in after.node if node.name not in new] == [node.name for node in before.node]


def test_initializers_and_declarations() -> None:
    before, after = decorated().graph, emitted(decorated()).graph
    stored = {tensor.name: tensor for tensor in after.initializer}
    assert stored["unused"] == {t.name: t for t in before.initializer}["unused"]
    declared = {value.name: value for value in after.value_info}
    for value in before.value_info:
        kept = declared[value.name]
        dims = [d.dim_value or d.dim_param for d in kept.type.tensor_type.shape.dim]
        if value.name == before.node[0].output[0]:
            assert dims == ["batch", 4, 4, 4] and kept.doc_string == "before the activation"
        elif value.name == before.node[0].input[1]:
            assert dims == [4, 3, 1, 1]
        else:
            assert kept == value


def test_tensor_metadata_stays_with_a_pruned_weight() -> None:
    model = decorated()
    if not has(model.graph.initializer[0], "metadata_props"):
        pytest.skip("this version of onnx has no metadata on tensors")
    model.graph.initializer[0].doc_string = "the first weight"
    after = {tensor.name: tensor for tensor in emitted(model).graph.initializer}
    for tensor in model.graph.initializer:
        kept = after[tensor.name]
        assert (kept.doc_string, list(kept.metadata_props)) == (tensor.doc_string, list(tensor.metadata_props))


def test_the_emitted_model_runs() -> None:
    """Without what onnxruntime itself refuses: the unknown node, training, sparse weights that nothing reads."""
    model = decorated()
    (mystery,) = [node for node in model.graph.node if node.op_type == "Mystery"]
    model.graph.node.remove(mystery)
    del model.graph.sparse_initializer[:]
    model.ClearField("training_info")
    model.ClearField("configuration")
    del model.graph.value_info[1]
    after = emitted(model)
    onnx.checker.check_model(after, full_check=True)
    traced = trace(model)
    reference = masked_model(model, masks_for(traced, KEPT))
    assert_equal_outputs(after, reference, feeds_for(model, dynamic=3))


def test_inputs_and_outputs_keep_symbolic_dimensions() -> None:
    model = plain()
    after = emitted(model)
    assert after.graph.input == model.graph.input
    assert after.graph.output == model.graph.output
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_external_data_locations_are_resolved_before(tmp_path) -> None:
    """A model loaded with its external data has it inside; the emitted one does too."""
    path = tmp_path / "m.onnx"
    onnx.save_model(plain(), str(path), save_as_external_data=True, size_threshold=0, location="m.data")
    from ucpe_onnx.io import load_model

    after = emitted(load_model(path))
    assert all(t.data_location == TensorProto.DEFAULT and not t.external_data for t in after.graph.initializer)
    wanted = emitted(plain()).graph.initializer
    assert [numpy_helper.to_array(t).tolist() for t in after.graph.initializer] == [
        numpy_helper.to_array(t).tolist() for t in wanted
    ]
