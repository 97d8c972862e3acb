"""Which constants have gradients, how they are called, and what can't be trained."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.builders import Net
from tests.train.network.running import classifier, tensors, uniform_feeds
from ucpe_onnx.errors import DataError, ModelError
from ucpe_onnx.train.network import Network


def trainable(net: Net, *outputs: str) -> set[str]:
    return set(Network(net.output(*outputs).model()).attribute_of)


def test_scalars_bounds_and_masks_have_none() -> None:
    net = Net()
    x = net.input("x", (2, 4, 6, 6))
    y = net.op("Clip", x, net.weight(np.float32(-1), "low"), net.weight(np.float32(1), "high"))
    y = net.op("Pow", y, net.weight(np.full((4, 1, 1), 2, np.float32), "exponents"))
    y = net.op("Mul", y, net.weight(np.float32(0.5), "half"))
    y = net.op("Mul", y, net.weight(np.ones((1, 1, 1), np.float32), "one"))
    y = net.op("Sub", y, net.weight(net.normal(4, 1, 1), "pixel mean"))
    y = net.op("Add", y, net.constant(net.normal(6, 6)))
    y = net.op("Div", y, net.op("Add", net.weight(net.normal(6), "grid"), net.weight(net.normal(6), "offsets")))
    y = net.op("Resize", y, "", net.weight(np.array([1, 1, 2, 2], np.float32), "scales"))
    y = net.op("Concat", y, net.weight(np.zeros((2, 1, 12, 12), np.float32), "padding"), axis=1)
    y = net.op("Add", net.op("Mul", y, net.weight(net.normal(5, 1, 1), "scale")), net.weight(net.normal(12), "bias"))
    assert trainable(net, y) == {"scale", "bias"}


def test_one_element_is_enough_for_a_weight() -> None:
    net = Net()
    x = net.input("x", (2, 4, 6, 6))
    y = net.op("Conv", x, net.weight(net.normal(1, 4, 1, 1), "weight"), net.weight(np.ones(1), "bias"))
    assert trainable(net, net.op("PRelu", y, net.weight(np.full(1, 0.2), "slope"))) == {"weight", "bias", "slope"}


def test_class_tokens_and_tables() -> None:
    net = Net()
    ids = net.input("ids", (2, 3), 7)
    y = net.op("Gather", net.weight(net.normal(9, 4), "table"), ids)
    token = net.op("Expand", net.weight(net.normal(1, 1, 4), "token"), net.ints(2, 1, 4))
    y = net.op("Concat", token, y, axis=1)
    places = net.op("Gather", net.weight(net.normal(20, 4), "places"), net.constant(np.arange(4)))
    y = net.op("Add", y, places)
    picked = net.op("Gather", net.weight(net.normal(4), "vector"), net.constant(np.array([0, 1, 2, 3])))
    assert trainable(net, net.op("Div", y, picked)) == {"table", "token", "places"}


def test_recurrent_layers_and_norms() -> None:
    net = Net()
    x = net.input("x", (3, 2, 4))
    names = {"W": (1, 12, 4), "R": (1, 12, 3), "B": (1, 24), "h": (1, 2, 3), "c": (1, 2, 3), "P": (1, 9)}
    w, r, b, h, c, p = (net.weight(net.normal(*shape), name) for name, shape in names.items())
    y = net.op("LSTM", x, w, r, b, "", h, c, p, hidden_size=3, shapes=[(3, 1, 2, 3)])
    y = net.op("LayerNormalization", y, net.weight(net.normal(3), "gamma"), net.weight(net.normal(3), "beta"))
    y = net.op("InstanceNormalization", y, net.weight(net.normal(1), "s"), net.weight(net.normal(1), "o"))
    assert trainable(net, y) == {"W", "R", "B", "P", "gamma", "beta", "s", "o"}


def test_frozen_by_name() -> None:
    model = classifier()
    everything = Network(model)
    name = next(iter(everything.attribute_of))
    network = Network(model, frozen=[name])
    assert set(network.attribute_of) == set(everything.attribute_of) - {name}
    network(tensors(uniform_feeds(model)))
    with pytest.raises(ModelError, match=r"^no constant is called 'nonsense', which is to be frozen"):
        Network(model, frozen=["nonsense", name])


def test_attribute_names() -> None:
    net = Net()
    x = net.input("x", (2, 4, 6, 6))
    names = ["layer.1/weight:0", "layer_1_weight_0", "training", "größe", "1"]
    for name in names:
        x = net.op("Conv", x, net.weight(net.normal(4, 4, 1, 1), name))
    network = Network(net.output(x).model())
    attributes = [network.attribute_of[name] for name in names]
    assert attributes == ["w_layer_1_weight_0", "w_layer_1_weight_0_1", "w_training", "w_gr__e", "w_1"]
    assert [name for name, _ in network.weights.named_parameters()] == attributes
    assert set(network.state_dict()) == {f"weights.{attribute}" for attribute in attributes}


def test_a_copy_is_of_its_own() -> None:
    model = classifier()
    network = Network(model)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(value.any() for name, value in network.trained().items() if name in network.attribute_of)
    other.load_state_dict(network.state_dict())
    assert all(np.array_equal(other.trained()[name], value) for name, value in network.trained().items())
    before = model.SerializeToString()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert model.SerializeToString() == before


def chain(*op_types: str, domain: str = "") -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, 1, (2, 3)) for name in ("x", "y")]
    tensor_names = ["x", *(f"t{i}" for i in range(len(op_types) - 1)), "y"]
    nodes = [
        helper.make_node(op_type, [tensor_names[i]], [tensor_names[i + 1]], name=f"n{i}", domain=domain)
        for i, op_type in enumerate(op_types)
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_unknown_operators() -> None:
    advice = "can't be trained through yet: prune without training (python -m ucpe_onnx)"
    with pytest.raises(ModelError) as refusal:
        Network(chain("Relu", "Foo", "Relu", "Foo"), label="model.onnx")
    assert str(refusal.value) == f"model.onnx: node 'n1' is a Foo, which {advice}"
    with pytest.raises(ModelError) as refusal:
        Network(chain("FusedConv", domain="com.microsoft"), label="model.onnx")
    assert str(refusal.value) == f"model.onnx: node 'n0' is a com.microsoft::FusedConv, which {advice}"
    with pytest.raises(ModelError) as refusal:
        Network(chain("A", "B", "C", "D", "E", "F", "A", "QuantizeLinear"), label="model.onnx")
    named = ", ".join(f"node 'n{i}' is a {kind}" for i, kind in enumerate("ABCDE"))
    assert str(refusal.value) == (
        f"model.onnx: {named}, and 2 more are unknown, which {advice}, or train the float model before it is quantised"
    )


def test_control_flow() -> None:
    values = [helper.make_tensor_value_info(name, 1, (2, 3)) for name in ("x", "y")]
    bodies = [
        helper.make_graph([helper.make_node(op_type, ["x"], ["z"])], op_type, [], [onnx.ValueInfoProto(name="z")])
        for op_type in ("Relu", "Abs")
    ]
    node = helper.make_node("If", ["condition"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    constants = [numpy_helper.from_array(np.array(True), "condition")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], constants)
    with pytest.raises(ModelError, match=r"^the model: node 'If_0' is a If, which can't be trained through yet"):
        Network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_other_refusals() -> None:
    model = chain("Relu")
    model.opset_import[0].version = 6
    with pytest.raises(ModelError, match=r"^a\.onnx: opset 6 is too old to train; convert it .* to 13 or later$"):
        Network(model, label="a.onnx")
    model = chain("Relu")
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "few"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.ones(1, np.int64), ""))
    sparse.dims.append(4)
    with pytest.raises(ModelError, match=r"^a\.onnx: constant 'few' is sparse or holds strings"):
        Network(model, label="a.onnx")


def test_feeds() -> None:
    network = Network(classifier(), label="a.onnx")
    with pytest.raises(DataError, match=r"^a\.onnx: no value for its input 'x'; feed x$"):
        network({"y": torch.ones(2)})
    with pytest.raises(
        ModelError, match=r"^a\.onnx: torch can't compute node 'Conv_0' \(Conv of \[2, 4, 8, 8\], .*\n?"
    ):
        network({"x": torch.ones(2, 4, 8, 8)})
    doubled = network.eval()({"x": torch.ones(2, 3, 8, 8, dtype=torch.float64)})
    assert all(torch.equal(doubled[name], y) for name, y in network({"x": torch.ones(2, 3, 8, 8)}).items())
