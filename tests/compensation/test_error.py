"""How far outputs are from another network's."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.builders import Net
from ucpe_onnx.compensation.error import output_errors
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.samples.dataset import Dataset, load_data
from ucpe_onnx.samples.inputs import input_specs

OPTIONS = RunOptions(threads=1)


def scaled(factor: float, batch: int | str = "n", offset: float = 0.0) -> onnx.ModelProto:
    net = Net()
    y = net.op("Mul", net.input("x", (batch, 3)), net.weight(np.float32(factor)))
    return net.output(net.op("Add", y, net.weight(np.float32(offset)))).model()


def dataset(model: onnx.ModelProto, x: np.ndarray) -> Dataset:
    return load_data({"x": x.astype(np.float32)}, input_specs(model))


def test_zero_is_equal_and_one_is_the_mean():
    x = np.random.default_rng(0).standard_normal((70, 3)) + 2
    model = scaled(1.0)
    found = output_errors(
        model, {"same": model, "mean": scaled(0.0, offset=x.mean()), "half": scaled(0.5)}, dataset(model, x), OPTIONS
    )
    assert found["same"] == 0 and found["mean"] == pytest.approx(1, rel=1e-4)
    assert found["half"] == pytest.approx(np.square(0.5 * x).mean() / x.var(), rel=1e-4)


def test_padding_does_not_count():
    x = np.random.default_rng(0).standard_normal((9, 3))
    wanted = output_errors(scaled(1.0), {"a": scaled(0.5)}, dataset(scaled(1.0), x), OPTIONS)
    model = scaled(1.0, 8)
    found = output_errors(model, {"a": scaled(0.5, 8)}, dataset(model, x), OPTIONS)
    assert found["a"] == pytest.approx(wanted["a"], rel=1e-5)


def test_what_is_not_finite():
    x = np.ones((4, 3))
    x[:, 1] = [1, 2, 3, 4]
    x[2, 0] = np.inf
    model = scaled(1.0)
    data = dataset(model, x)
    found = output_errors(model, {"same": model, "not": scaled(np.inf)}, data, OPTIONS)
    assert found == {"same": 0, "not": math.inf}
    data = dataset(model, np.full((4, 3), np.nan))
    assert math.isnan(output_errors(model, {"same": model}, data, OPTIONS)["same"])


def test_classes_are_compared_one_by_one():
    def classes(factor: float) -> onnx.ModelProto:
        net = Net()
        y = net.op("Mul", net.input("x", ("n", 3)), net.weight(np.float32(factor)))
        return net.output(
            *net.ops("ArgMax", y, axis=1, keepdims=0, elem_type=TensorProto.INT64, shapes=[("n",)])
        ).model()

    x = np.random.default_rng(0).standard_normal((40, 3))
    model = classes(1.0)
    found = output_errors(model, {"same": classes(2.0), "other": classes(-1.0)}, dataset(model, x), OPTIONS)
    assert found == {"same": 0, "other": 1}


def test_outputs_whose_shapes_follow_from_values():
    def found_places(offset: float) -> onnx.ModelProto:
        net = Net()
        y = net.op("Add", net.input("x", ("n", 3)), net.weight(np.float32(offset)))
        (places,) = net.ops("NonZero", net.op("Relu", y), elem_type=TensorProto.INT64, shapes=[(2, "m")])
        return net.output(net.op("Cast", places, to=TensorProto.FLOAT), places).model()

    model = found_places(0.0)
    x = np.random.default_rng(0).standard_normal((8, 3))
    found = output_errors(model, {"same": model, "other": found_places(0.5)}, dataset(model, x), OPTIONS)
    assert found["same"] == 0 and found["other"] == pytest.approx(1, rel=1e-4)


def test_strings_tell_nothing():
    net = Net()
    net.ops("Cast", net.input("x", ("n", 3)), to=TensorProto.STRING, outputs=["y"])
    model = net.output("y").model()
    assert math.isnan(output_errors(model, {"a": model}, dataset(model, np.ones((2, 3))), OPTIONS)["a"])
