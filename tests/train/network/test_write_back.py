"""What was trained goes back into the file, and nothing else of the file changes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data, uses_external_data
from torch import nn
from torch.nn.utils import parametrize

from models import build
from tests.builders import Net, run
from tests.train.network.running import classifier, error, outputs_of, projected, tensors, uniform_feeds
from ucpe_onnx import load_model
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.offload import Offload, has_offloaded
from ucpe_onnx.train.network import Network, with_trained


def blanked(model: onnx.ModelProto, names: set[str]) -> bytes:
    """The model without the values of some initializers."""
    blank = copy.deepcopy(model)
    for tensor in blank.graph.initializer:
        if tensor.name in names:
            for field in ("raw_data", "float_data", "double_data", "int32_data", "external_data", "data_location"):
                tensor.ClearField(field)
    return blank.SerializeToString(deterministic=True)


def trained_once(network: Network, feeds: dict[str, np.ndarray]) -> None:
    """One step of training, which changes everything that has a gradient, and the statistics."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    projected(network.train()(tensors(feeds))).backward()
    optimiser.step()


def check_round_trip(model: onnx.ModelProto, feeds: dict[str, np.ndarray], limit: float = 1e-5) -> onnx.ModelProto:
    """Train a step, write back, compare; returns what was written."""
    stored = model.SerializeToString(deterministic=True)
    network = Network(model)
    before = network.trained()
    trained_once(network, feeds)
    values = network.trained()
    assert all(not np.array_equal(values[name], before[name]) for name in before)
    written = with_trained(model, values)
    assert model.SerializeToString(deterministic=True) == stored
    assert blanked(written, set(values)) == blanked(model, set(values))
    onnx.checker.check_model(written, full_check=True)
    wanted = run(written, feeds, optimise=False)
    got = outputs_of(network, feeds)
    untrained = run(model, feeds, optimise=False)
    assert all(error(*pair) <= limit for pair in zip(got, wanted, strict=True))
    assert any(error(*pair) > 100 * limit for pair in zip(got, untrained, strict=True))
    again = Network(written).trained()
    assert all(np.array_equal(again[name], value) for name, value in values.items())
    return written


@pytest.mark.parametrize("batch_norm", [False, True])
def test_round_trip(batch_norm: bool) -> None:
    model = classifier(batch_norm=batch_norm)
    model.producer_name, model.doc_string = "somebody", "a model"
    model.metadata_props.add(key="k", value="v")
    model.graph.initializer[0].doc_string = "a weight"
    written = check_round_trip(model, uniform_feeds(model))
    assert written.metadata_props[0].value == "v"


def test_round_trip_of_an_architecture() -> None:
    model = build("resnet20_cifar", image=16, batch=4)
    check_round_trip(model, uniform_feeds(model, 0, 1), limit=1e-4)


def test_float_data_and_graph_inputs() -> None:
    net = Net(ir_version=3, opset=8)
    x = net.input("x", (2, 3, 4, 4))
    model = net.output(net.batch_norm(net.conv(x, 4, 3, bias=False))).model()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1).tolist()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values)
    written = check_round_trip(model, uniform_feeds(model))
    assert all(tensor.raw_data and not tensor.float_data for tensor in written.graph.initializer)


def test_constant_nodes() -> None:
    """In a file without initializers, even scales and biases are Constant nodes."""
    net = Net()
    x = net.input("x", (2, 3, 6, 6))
    y = net.op("Conv", x, net.constant(net.normal(4, 3, 3, 3)))
    y = net.op("Add", net.op("Mul", y, net.constant(net.normal(4, 1, 1))), net.constant(net.normal(4, 1, 1)))
    floats = net.ops("Constant", value_floats=[0.5, 1.5, -1.0, 2.0], shapes=[(4,)])[0]
    y = net.op("PRelu", y, net.unsqueeze(floats, [1, 2]))
    model = net.output(y).model()
    network = Network(model)
    assert len(network.attribute_of) == 4
    trained_once(network, uniform_feeds(model))
    values = network.trained()
    written = with_trained(model, values)
    held = {node.output[0]: node.attribute[0] for node in written.graph.node if node.op_type == "Constant"}
    assert np.allclose(held[floats].floats, values[floats])
    assert error(run(written, uniform_feeds(model))[0], outputs_of(network, uniform_feeds(model))[0]) < 1e-5
    for node in (*model.graph.node, *written.graph.node):
        if node.op_type == "Constant" and node.output[0] in values:
            node.ClearField("attribute")
    assert written.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_weights_behind_nodes() -> None:
    """Gradients reach initializers through nodes that read constants alone, which stay in the file."""
    net = Net()
    x = net.input("x", (2, 3, 6, 6))
    w = net.op("Transpose", net.weight(net.normal(3, 3, 3, 4), "hwio"), perm=[3, 2, 0, 1])
    y = net.op("Conv", x, net.op("Identity", w))
    half = net.op("Cast", net.weight(net.normal(4).astype(np.float16), "half"), to=1)
    y = net.op("Add", y, net.reshape(half, 4, 1, 1))
    gain = net.op("Mul", net.weight(net.normal(4, 5), "matrix"), net.weight(np.float32(0.5), "gain"))
    y = net.op("MatMul", net.op("Transpose", y, perm=[0, 2, 3, 1]), gain)
    model = net.output(y).model()
    network = Network(model)
    assert set(network.attribute_of) == {"hwio", "half", "matrix"}
    check_round_trip(model, uniform_feeds(model), limit=2e-4)  # half precision is rounded


def test_parametrized_values_are_written() -> None:
    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    model = classifier()
    network = Network(model)
    before = network.trained()
    name = next(iter(network.attribute_of))
    parametrize.register_parametrization(network.weights, network.attribute_of[name], Halved())
    after = network.trained()
    assert np.array_equal(after[name], before[name] / 2)
    assert all(np.array_equal(after[other], before[other]) for other in before if other != name)
    written = with_trained(model, after)
    wanted = outputs_of(network, uniform_feeds(model))
    assert error(run(written, uniform_feeds(model))[0], wanted[0]) < 1e-5


def test_external_and_parked_weights(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", (2, 64, 3, 3))
    model = net.output(net.op("GlobalAveragePool", net.conv(net.conv(x, 512, 3), 64, 3))).model()
    onnx.save_model(
        copy.deepcopy(model), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=1000
    )
    loaded = load_model(tmp_path / "a.onnx")
    feeds = uniform_feeds(model)
    written = check_round_trip(loaded, feeds)
    assert not any(uses_external_data(tensor) for tensor in written.graph.initializer)
    with pytest.MonkeyPatch.context() as patch, Offload() as offload:
        patch.setattr("ucpe_onnx.model.offload.LEAST_MODEL", 1)
        patch.setattr("ucpe_onnx.model.offload.LEAST_TENSOR", 1000)
        offloaded = offload.store(model)
        assert has_offloaded(offloaded)
        network = Network(offloaded)
        trained_once(network, feeds)
        written = with_trained(offloaded, network.trained())
        assert not has_offloaded(written)
    assert error(run(written, feeds)[0], outputs_of(network, feeds)[0]) < 1e-5


def test_functions_stay() -> None:
    """A network runs the nodes of local functions; weights that the graph holds go back beside the calls."""
    body = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.full((4, 1, 1), 2, np.float32))),
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("PRelu", ["c", "k"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Block", ["a", "w"], ["b"], body, opsets[:1])
    values = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3, 4, 4)), ("y", (1, 4, 4, 4)))]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32), "w")
    graph = helper.make_graph([helper.make_node("Block", ["x", "w"], ["y"], domain="own")], "g", values[:1], values[1:])
    graph.initializer.append(weight)
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    network = Network(model)
    assert set(network.attribute_of) == {"w"}
    written = check_round_trip(model, uniform_feeds(model))
    assert [node.op_type for node in written.graph.node] == ["Block"]


@pytest.mark.parametrize(("name", "shape"), [("nothing", (4,)), ("w0", (4,)), ("shape", (2,)), ("constant", (3,))])
def test_values_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    model = classifier()
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "shape"))
    with pytest.raises(ModelError, match=rf"^trained values of shape \[{shape[0]}\] for '{name}' don't fit"):
        with_trained(model, {name: np.zeros(shape, np.float32)})


def test_external_data_that_is_not_loaded() -> None:
    model = classifier()
    set_external_data(model.graph.initializer[0], "elsewhere.data")
    model.graph.initializer[0].ClearField("raw_data")
    with pytest.raises(ModelError, match="does not fit its shape"):
        Network(model)
