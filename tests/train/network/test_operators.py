"""Every operator computes what it does in onnxruntime, in every form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net
from tests.train.network import drawn
from tests.train.network.operator_cases import CASES, cast
from tests.train.network.running import check_equal, error, outputs_of, tensors, uniform_feeds
from ucpe_onnx.errors import ModelError
from ucpe_onnx.train.network import Network
from ucpe_onnx.train.network.operators import OPERATORS, TABLES, merged

many = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", CASES)
def test_equals_onnxruntime(name: str) -> None:
    case = CASES[name]
    model = case.model()
    check_equal(model, uniform_feeds(model, case.low, case.high), limit=2e-5)


def test_every_operator_has_a_case() -> None:
    built = {node.op_type for case in CASES.values() for node in case.model().graph.node}
    assert built | set(drawn.DRAWN) == set(OPERATORS) | {"Constant"}


def test_no_operator_is_in_two_tables() -> None:
    assert len(OPERATORS) == sum(map(len, TABLES))
    with pytest.raises(ValueError, match=r"^operators in two tables: Conv$"):
        merged([*TABLES, {"Conv": OPERATORS["Relu"]}])


@pytest.mark.parametrize("kind", drawn.DRAWN)
@given(data=st.data())
@many
def test_drawn_attributes(kind: str, data: st.DataObject) -> None:
    model = data.draw(drawn.DRAWN[kind])
    check_equal(model, uniform_feeds(model), limit=2e-5)


def test_batch_first_recurrence() -> None:
    """The layout that onnxruntime does not know is the other one, transposed."""
    results = []
    for layout in (0, 1):
        net = Net()
        x = net.input("x", (3, 5, 2))
        x = net.op("Transpose", x, perm=[1, 0, 2]) if layout else x
        weights = [net.weight(net.normal(2, 16, 2)), net.weight(net.normal(2, 16, 4)), net.weight(net.normal(2, 32))]
        state = net.weight(net.normal(2, 5, 4))
        state = net.op("Transpose", state, perm=[1, 0, 2]) if layout else state
        options = {"hidden_size": 4, "direction": "bidirectional", "layout": layout}
        shapes = [(5, 3, 2, 4), (5, 2, 4)] if layout else [(3, 2, 5, 4), (2, 5, 4)]
        y, h = net.ops("LSTM", x, *weights, "", state, outputs=2, shapes=shapes, **options)
        if layout:
            y, h = net.op("Transpose", y, perm=[1, 2, 0, 3]), net.op("Transpose", h, perm=[1, 0, 2])
        model = net.output(y, h).model()
        results.append(outputs_of(Network(model), uniform_feeds(model)))
    for first, second in zip(*results, strict=True):
        assert error(second, first) < 1e-6


def one_node(op_type: str, opset: int, weights: dict[str, list[float]], **attributes: object) -> onnx.ModelProto:
    """A node that onnx's checker or onnxruntime does not take."""
    values = [helper.make_tensor_value_info(name, 1, (2, 4, 5, 6)) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in weights.items()]
    nodes = [helper.make_node(op_type, ["x", *weights], ["y"], **attributes)]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_group_normalization_before_opset_21() -> None:
    model = one_node("GroupNormalization", 18, {"scale": [0.7, 1.5], "bias": [0.2, -0.3]}, num_groups=2)
    check_equal(model, uniform_feeds(model), limit=2e-5)


def test_lrn_over_an_even_number_of_channels() -> None:
    model = one_node("LRN", 17, {}, size=2, alpha=0.1)
    x = uniform_feeds(model)["x"]
    squares = np.concatenate([x**2, np.zeros((2, 1, 5, 6))], 1)
    wanted = x / (1 + 0.05 * (squares[:, :-1] + squares[:, 1:])) ** 0.75
    assert error(outputs_of(Network(model), {"x": x})[0], wanted) < 1e-6


def test_mean_and_variance_of_the_usual_axes() -> None:
    model = one_node("MeanVarianceNormalization", 13, {})
    check_equal(model, uniform_feeds(model), limit=2e-5)


def typed_model(elem_type: int) -> onnx.ModelProto:
    """A linear layer and a scale, in a precision, and a look at it in another."""
    random = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    weights = {"w": random.standard_normal((3, 4)), "b": random.standard_normal(4), "s": np.linspace(0.5, 1, 4)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["m"]),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["f"], ["y"], to=elem_type),
    ]
    values = [helper.make_tensor_value_info(name, elem_type, shape) for name, shape in (("x", (2, 3)), ("y", (2, 4)))]
    initializers = [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "typed", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("elem_type", "limit", "computed"),
    [(TensorProto.DOUBLE, 1e-7, torch.float64), (TensorProto.FLOAT16, 2e-3, torch.float32)],
)
def test_other_precisions(elem_type: int, limit: float, computed: torch.dtype) -> None:
    model = typed_model(elem_type)
    check_equal(model, uniform_feeds(model), limit)
    network = Network(model)
    assert {parameter.dtype for parameter in network.parameters()} == {computed}
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, value in network.trained().items():
        assert value.dtype == stored[name].dtype and np.array_equal(value, stored[name])
    assert network.double()(tensors(uniform_feeds(model)))["y"].dtype == torch.float64


READS_VALUES = {"Dropout", "NonZero", "Range, ConstantOfShape", "Resize 10", "Upsample"}
"""What asks an accelerator for the elements of a tensor, which the device "meta" does not keep."""


@pytest.mark.parametrize("name", sorted(set(CASES) - READS_VALUES))
def test_activations_and_weights_lie_on_one_device(name: str) -> None:
    model = CASES[name].model()
    network, feeds = Network(model), tensors(uniform_feeds(model, CASES[name].low, CASES[name].high))
    shapes = {key: tensor.shape for key, tensor in network(feeds).items()}
    elsewhere = network.to("meta")(feeds)
    assert {key: tensor.shape for key, tensor in elsewhere.items()} == shapes
    assert all(tensor.device.type == "meta" for tensor in elsewhere.values() if tensor.ndim > 1)


def test_shapes_are_computed_on_the_cpu() -> None:
    network = Network(CASES["shapes"].model()).to("meta")
    devices = [tensor.device.type for tensor in network({"x": torch.ones(2, 4, 5, 6)}).values()]
    assert devices == ["meta", "cpu", "cpu"]


def test_operands_that_come_from_a_shape_are_moved() -> None:
    net = Net()
    x = net.input("x", (2, 4, 5, 6))
    sizes = net.op("Cast", net.op("Shape", x, start=3), to=TensorProto.FLOAT)
    wide = net.ops("Range", *[net.constant(np.int64(v)) for v in (0, 6, 1)], shapes=[(6,)], elem_type=7)[0]
    y = net.op("Div", net.op("Mul", x, net.op("Cast", wide, to=TensorProto.FLOAT)), sizes)
    model = net.output(y).model()
    check_equal(model, uniform_feeds(model))
    assert Network(model).to("meta")({"x": torch.ones(2, 4, 5, 6)})[y].device.type == "meta"


REFUSED = {
    "a second output": lambda net: net.ops("MaxPool", "x", outputs=2, kernel_shape=[2, 2])[0],
    "antialias or keep_aspect_ratio_policy": lambda net: net.op(
        "Resize", "x", "", "", net.ints(2, 4, 3, 3), antialias=1, mode="linear"
    ),
    "coordinates as in tf_crop_and_resize": lambda net: net.op(
        "Resize", "x", net.weight(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)), "", net.ints(2, 4, 3, 3),
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
    "training_mode, more than one output, or statistics for each place": lambda net: net.ops(
        "BatchNormalization", "x", *[net.weight(np.ones(4)) for _ in range(4)], outputs=3, training_mode=1
    )[0],
    "tensors of type string": lambda net: cast(net, cast(net, "x", TensorProto.STRING)),
    "the reduction max": lambda net: net.op(
        "ScatterElements", "x", net.weight(np.zeros((1, 1, 1, 4), np.int64)), net.weight(net.normal(1, 1, 1, 4)),
        reduction="max",
    ),
    "the reduction mul": lambda net: net.op(
        "ScatterND", "x", net.weight(np.array([[0]])), net.weight(net.normal(4, 5, 6)), reduction="mul"
    ),
    "the activation scaledtanh": lambda net: net.op(
        "RNN", net.reshape("x", 5, 6, 8), net.weight(net.normal(1, 3, 8)), net.weight(net.normal(1, 3, 3)),
        hidden_size=3, activations=["ScaledTanh"], shapes=[(5, 1, 6, 3)],
    ),
    "parameters of its activations": lambda net: net.op(
        "RNN", net.reshape("x", 5, 6, 8), net.weight(net.normal(1, 3, 8)), net.weight(net.normal(1, 3, 3)),
        hidden_size=3, activations=["LeakyRelu"], activation_alpha=[0.3], shapes=[(5, 1, 6, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_forms_that_are_refused(what: str) -> None:
    net = Net(opset=18, ir_version=10)
    net.input("x", (2, 4, 5, 6))
    network = Network(net.output(REFUSED[what](net)).model(), label="a.onnx")
    with pytest.raises(ModelError, match=rf"^a\.onnx: node '\w+' is a \w+ with {what}, which can't be .* -m ucpe_onnx"):
        network({"x": torch.ones(2, 4, 5, 6)})
