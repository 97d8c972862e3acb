"""New values of initializers."""

from __future__ import annotations

import base64

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net
from ucpe_onnx.errors import MaskError
from ucpe_onnx.model.new_weights import NewWeight, with_weights


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, min_side=0), elements=st.floats(-9, 9, width=32)))
def test_there_and_back(value):
    found = NewWeight.from_dict(NewWeight.of(value).to_dict())
    assert found == NewWeight.of(value) and found.value.dtype == np.float32
    np.testing.assert_array_equal(found.value, value)


def raw(value: object = np.ones((2, 3)), **changes: object) -> dict[str, object]:
    return {**NewWeight.of(np.asarray(value)).to_dict(), **changes}


@pytest.mark.parametrize(
    "damaged",
    [
        raw(shape=[2, 2]),
        raw(shape=[-2, -3]),
        raw(shape=[2**40, 2**40]),
        raw(float32="%%%"),
        raw(float32="äöü"),
        raw(float32=base64.b64encode(b"123").decode()),
        raw([1.0, np.nan]),
        raw([1.0, np.inf]),
        raw(shape=["two"]),
    ],
)
def test_damage_is_seen(damaged):
    with pytest.raises(ValueError, match=r".+"):
        NewWeight.from_dict(damaged)


def test_only_what_is_named_changes():
    net = Net()
    model = net.output(net.conv(net.conv(net.input(), 4, name="a"), 2, name="b")).model()
    name = model.graph.node[1].input[1]
    before = model.SerializeToString()
    changed = with_weights(model, {name: NewWeight.of(np.ones((2, 4, 1, 1)))})
    assert model.SerializeToString() == before and with_weights(model, {}) is model
    for old, new in zip(model.graph.initializer, changed.graph.initializer, strict=True):
        if old.name == name:
            np.testing.assert_array_equal(numpy_helper.to_array(new), np.ones((2, 4, 1, 1)))
        else:
            assert old == new
    onnx.checker.check_model(changed, full_check=True)


def test_values_in_other_fields_of_the_tensor_go():
    net = Net()
    model = net.output(net.op("MatMul", net.input("x", (1, 2)), net.weight(np.ones((2, 2)), name="w"))).model()
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, (2, 2), [1.0, 2.0, 3.0, 4.0]))
    changed = with_weights(model, {"w": NewWeight.of(np.zeros((2, 2)))})
    onnx.checker.check_model(changed, full_check=True)
    assert not changed.graph.initializer[0].float_data
    assert not numpy_helper.to_array(changed.graph.initializer[0]).any()


@pytest.mark.parametrize(
    ("name", "shape"), [("w", (3, 2)), ("w", (6,)), ("other", (2, 3)), ("x", (1, 2)), ("n", (1,)), ("y", (1, 3))]
)
def test_what_does_not_fit(name, shape):
    net = Net()
    weight = net.weight(net.normal(2, 3), name="w")
    net.ops("MatMul", net.input("x", (1, 2)), weight, outputs=["y"])
    model = net.output(net.op("Unsqueeze", "y", net.weight(np.int64([0]), name="n"))).model()
    with pytest.raises(MaskError, match=f"{name}.*don't fit: .*make a new plan"):
        with_weights(model, {name: NewWeight.of(np.zeros(shape))})
