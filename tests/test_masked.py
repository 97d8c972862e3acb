"""The reference, by hand: what the masked model computes is what onnxruntime says of weights written down here."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builders import Net, feeds_for, run
from ucpe_onnx.errors import MaskError
from ucpe_onnx.masked import masked_model

KEEP = np.array([True, False, True, False])


def weight_of(model: onnx.ModelProto, node: str, index: int = 1) -> np.ndarray:
    (name,) = [n.input[index] for n in model.graph.node if n.name == node]
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    return numpy_helper.to_array(tensor)


def without_channels(value: np.ndarray, axis: int) -> np.ndarray:
    """A copy with slices 1 and 3 of an axis set to zero."""
    value = value.copy()
    value[(slice(None),) * axis + ([1, 3],)] = 0
    return value


def assert_ignores_dropped_channels(model: onnx.ModelProto, masked: onnx.ModelProto, axis: int) -> None:
    """The masked model gives what the model gives for an input whose dropped channels are zero."""
    feeds = feeds_for(model)
    zeroed = {name: without_channels(value, axis) for name, value in feeds.items()}
    for got, wanted, before in zip(run(masked, feeds), run(model, zeroed), run(model, feeds), strict=True):
        assert np.allclose(got, wanted, atol=1e-6)
        assert not np.allclose(got, before, atol=1e-3)


def test_conv() -> None:
    net = Net()
    weight = net.normal(3, 4, 3, 3)
    model = net.output(net.conv_with(net.input("x", (1, 4, 5, 5)), net.weight(weight), bias=True, name="c")).model()
    masked = masked_model(model, {"c": KEEP})
    assert np.array_equal(weight_of(masked, "c"), without_channels(weight, 1))
    assert_ignores_dropped_channels(model, masked, 1)


def test_conv_in_one_and_three_dimensions() -> None:
    for space in ((5,), (3, 3, 3)):
        net = Net()
        model = net.output(net.conv(net.input("x", (1, 4, *space)), 3, 3, name="c")).model()
        assert_ignores_dropped_channels(model, masked_model(model, {"c": KEEP}), 1)


def test_grouped_conv() -> None:
    """Channel 1 is the second of group 0, channel 3 the second of group 1."""
    net = Net()
    weight = net.normal(6, 2, 1, 1)
    model = net.output(net.conv_with(net.input("x", (1, 4, 3, 3)), net.weight(weight), groups=2, name="c")).model()
    masked = masked_model(model, {"c": np.array([True, False, True, True])})
    edited = weight_of(masked, "c")
    assert (edited[:3, 1] == 0).all()
    assert np.array_equal(edited[3:], weight[3:]) and np.array_equal(edited[:, 0], weight[:, 0])
    assert_ignores_dropped_channels(model, masked_model(model, {"c": KEEP}), 1)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose(groups: int) -> None:
    net = Net()
    weight = net.normal(4, 3, 2, 2)
    x = net.input("x", (1, 4, 3, 3))
    model = net.output(net.op("ConvTranspose", x, net.weight(weight), group=groups, name="t")).model()
    masked = masked_model(model, {"t": KEEP})
    assert np.array_equal(weight_of(masked, "t"), without_channels(weight, 0))
    assert_ignores_dropped_channels(model, masked, 1)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_a: int, trans_b: int) -> None:
    net = Net()
    x = net.input("x", (4, 2) if trans_a else (2, 4))
    weight = net.normal(*((3, 4) if trans_b else (4, 3)))
    model = net.output(net.op("Gemm", x, net.weight(weight), name="g", transA=trans_a, transB=trans_b)).model()
    masked = masked_model(model, {"g": KEEP})
    assert np.array_equal(weight_of(masked, "g"), without_channels(weight, 1 if trans_b else 0))
    assert_ignores_dropped_channels(model, masked, 0 if trans_a else 1)


def test_matmul_from_the_right_and_from_the_left() -> None:
    net = Net()
    weight = net.normal(4, 3)
    model = net.output(net.op("MatMul", net.input("x", (2, 5, 4)), net.weight(weight), name="m")).model()
    masked = masked_model(model, {"m": KEEP})
    assert np.array_equal(weight_of(masked, "m"), without_channels(weight, 0))
    assert_ignores_dropped_channels(model, masked, 2)
    net = Net()
    model = net.output(net.op("MatMul", net.weight(weight.T), net.input("x", (2, 4, 5)), name="m")).model()
    masked = masked_model(model, {"m": KEEP})
    assert np.array_equal(weight_of(masked, "m", 0), without_channels(weight.T, 1))
    assert_ignores_dropped_channels(model, masked, 1)


def test_a_shared_weight_is_edited_for_one_node_only() -> None:
    net = Net()
    x = net.input("x", (1, 4, 3, 3))
    weight = net.weight(net.normal(4, 4, 1, 1), "shared")
    model = net.output(*[net.conv_with(x, weight, name=name) for name in "ab"]).model()
    masked = masked_model(model, {"b": KEEP})
    before, after = (run(m, feeds_for(model)) for m in (model, masked))
    assert np.array_equal(before[0], after[0]) and not np.allclose(before[1], after[1])
    assert np.array_equal(weight_of(masked, "a"), weight_of(model, "a"))
    both = masked_model(model, {"a": ~KEEP, "b": KEEP})
    assert np.array_equal(weight_of(both, "a") + weight_of(both, "b"), weight_of(model, "a"))


def test_a_weight_that_a_subgraph_or_an_output_reads_stays() -> None:
    net = Net()
    net.weight(net.normal(2, 4, 1, 1), "w")
    y = net.conv_with(net.input("x", (1, 4, 3, 3)), "w", name="c")
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 4, 1, 1])
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["inner"])], "body", [], [out])
    (z,) = net.ops("If", net.weight(np.bool_(True)), shapes=[(2, 4, 1, 1)], then_branch=body, else_branch=body)
    model = net.output(y, z).model()
    before, after = (run(m, feeds_for(model)) for m in (model, masked_model(model, {"c": KEEP})))
    assert np.array_equal(before[1], after[1]) and not np.allclose(before[0], after[0])


@pytest.mark.parametrize("kind", ["Constant", "Identity", "Transpose"])
def test_weights_behind_nodes(kind: str) -> None:
    net = Net()
    weight = net.normal(4, 3)
    if kind == "Constant":
        name = net.constant(weight)
    elif kind == "Identity":
        name = net.op("Identity", net.weight(weight))
    else:
        name = net.op("Transpose", net.weight(weight.T))
    model = net.output(net.op("MatMul", net.input("x", (2, 4)), name, name="m")).model()
    masked = masked_model(model, {"m": KEEP})
    assert np.allclose(weight_of(masked, "m"), without_channels(weight, 0))
    assert_ignores_dropped_channels(model, masked, 1)


def test_the_model_is_not_changed_and_full_masks_change_nothing() -> None:
    net = Net()
    model = net.output(net.conv(net.input("x", (1, 4, 3, 3)), 2, name="c")).model()
    before = model.SerializeToString(deterministic=True)
    masked_model(model, {"c": KEEP})
    assert model.SerializeToString(deterministic=True) == before
    for masks in ({}, {"c": np.ones(4, dtype=bool)}):
        assert masked_model(model, masks).SerializeToString(deterministic=True) == before


def test_nodes_without_names_go_by_their_index() -> None:
    net = Net()
    model = net.output(net.conv(net.op("Relu", net.input("x", (1, 4, 3, 3))), 2)).model()
    masked = masked_model(model, {"Conv_1": KEEP})
    assert (numpy_helper.to_array(masked.graph.initializer[0])[:, 1] == 0).all()


def test_only_initializers_and_the_names_of_weights_change() -> None:
    net = Net()
    x = net.input("x", (1, 4, 3, 3))
    shared = net.weight(net.normal(4, 4, 1, 1))
    model = net.output(net.conv_with(net.conv_with(x, shared, name="a"), shared, name="b")).model()
    masked = masked_model(model, {"b": KEEP})
    assert len(masked.graph.initializer) == 2
    del masked.graph.initializer[:]
    masked.graph.node[1].input[1] = shared
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    assert masked == bare


def chain() -> onnx.ModelProto:
    net = Net()
    x = net.depthwise(net.input("x", (1, 4, 3, 3)), name="depthwise")
    net.op("Relu", net.conv(x, 2, name="c"), name="relu")
    computed = net.op("Add", net.input("v", (2, 2, 1, 1)), net.constant(np.float32(1)))
    return net.output(net.op("Conv", net.nodes[-3].output[0], computed, name="computed")).model()


@pytest.mark.parametrize(
    "masks, message",
    [
        ({"nobody": KEEP}, "mask for 'nobody': the model has no such consumer"),
        ({"relu": KEEP}, "mask for 'relu': the model has no such consumer"),
        ({"depthwise": KEEP}, "mask for 'depthwise': the model has no such consumer"),
        ({"computed": KEEP[:2]}, "mask for 'computed': the model has no such consumer"),
        ({"c": KEEP[:3]}, r"mask for 'c' has shape \(3,\), the consumer reads 4 input channels"),
        ({"c": np.zeros(4, dtype=bool)}, "mask for 'c' keeps nothing"),
        ({"c": np.ones(4)}, "mask for 'c': expected a boolean array"),
    ],
)
def test_errors(masks: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(MaskError, match=message):
        masked_model(chain(), masks)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_recurrent_layer_is_two_consumers(direction: str) -> None:
    net = Net()
    count = 1 + (direction == "bidirectional")
    weight, recurrence = net.normal(count, 12, 4), net.normal(count, 12, 4)
    x = net.input("x", (5, 2, 4))
    y = net.op("GRU", x, net.weight(weight), net.weight(recurrence), hidden_size=4, direction=direction, name="r")
    model = net.output(y).model()
    features, units = masked_model(model, {"r": KEEP}), masked_model(model, {"r/recurrence": KEEP})
    assert np.array_equal(weight_of(features, "r"), without_channels(weight, 2))
    assert np.array_equal(weight_of(features, "r", 2), recurrence)
    assert np.array_equal(weight_of(units, "r"), weight)
    assert np.array_equal(weight_of(units, "r", 2), without_channels(recurrence, 2))
    assert_ignores_dropped_channels(model, features, 2)


def test_what_the_recurrence_drops_is_still_made() -> None:
    """By hand, for a plain layer: units that are dropped go on following what is read, and nobody follows them."""
    net = Net()
    weight, recurrence = net.normal(1, 4, 3), net.normal(1, 4, 4)
    x = net.input("x", (2, 1, 3))
    model = net.output(net.op("RNN", x, net.weight(weight), net.weight(recurrence), hidden_size=4, name="r")).model()
    feeds = feeds_for(model)
    state = np.zeros(4)
    for step, got in zip(feeds["x"][:, 0], run(masked_model(model, {"r/recurrence": KEEP}), feeds)[0], strict=True):
        state = np.tanh(weight[0] @ step + recurrence[0][:, KEEP] @ state[KEEP])
        assert np.allclose(got[0, 0], state, atol=1e-6)
