"""Operators along other axes than the channels', contractions: what stays of the producer."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.analysis.operator_cases import PLAIN
from tests.analysis.rules.cases import OTHER_AXES, checked, made_by
from tests.builders import Net, check_emission
from ucpe_onnx.analysis.trace import trace


@pytest.mark.parametrize("case", OTHER_AXES)
def test_operators_along_other_axes_pass_channels(case: str) -> None:
    assert made_by(checked(OTHER_AXES[case], {"b": [6, 3, 4]}), "a") == 3


def test_mean_variance_normalization_of_space_passes_channels() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    (y,) = net.ops("MeanVarianceNormalization", a, shapes=[(1, 8, 4, 4)], axes=[2, 3])
    model = net.output(net.op("GlobalMaxPool", y)).model()
    (segment,) = [segment for segment in trace(model).segments if "a" in segment.producers]
    assert segment.reasons == (f"graph output {model.graph.output[0].name}",)


def test_operators_of_the_first_years() -> None:
    """Affine, Crop and others pass channels; ImageScaler keeps them, for its biases. onnx no longer knows these."""
    net = Net(opset=7, ir_version=3)
    a = net.conv(net.input("x", (1, 3, 6, 6)), 8, name="a")
    model = net.output(net.conv(a, 4, name="b")).model()
    (first, last) = model.graph.node
    cropped = helper.make_node("Crop", [first.output[0]], ["cropped"], border=[1, 1, 1, 1])
    scaled = helper.make_node("Affine", ["cropped"], ["scaled"], alpha=0.5, beta=0.1)
    activations = [
        helper.make_node(op_type, [name], [op_type], **attributes)
        for name, (op_type, attributes) in {
            "scaled": ("ParametricSoftplus", {"alpha": 0.5, "beta": 2.0}),
            "ParametricSoftplus": ("ScaledTanh", {"alpha": 0.5, "beta": 2.0}),
            "ScaledTanh": ("Scale", {"scale": 3.0}),
        }.items()
    ]
    last.input[0] = "Scale"
    del model.graph.node[:]
    model.graph.node.extend([first, cropped, scaled, *activations, last])
    for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 4
    assert made_by(check_emission(model, {"b": [1, 5]}, target=PLAIN), "a") == 2
    model.graph.node[1].CopyFrom(
        helper.make_node("ImageScaler", [first.output[0]], ["cropped"], scale=1.0, bias=[0.1] * 8)
    )
    assert not trace(model).consumers["b"].prunable.any()


@pytest.mark.parametrize("op_type", ["Gelu", "QuickGelu", "BiasGelu", "FastGelu", "ScaledSiLU"])
def test_contributed_activations(op_type: str) -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 8)), name="a")
    bias = [net.weight(net.normal(8))] if op_type in ("BiasGelu", "FastGelu") else []
    (y,) = net.ops(op_type, a, *bias, domain="com.microsoft", shapes=[(1, 4, 8)])
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="b")).model()
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4, 8]))
    assert made_by(check_emission(model, {"b": [6, 3, 4]}, target=PLAIN), "a", 1) == 3


def test_what_the_optimiser_makes_of_a_norm_without_a_mean() -> None:
    """SimplifiedLayerNormalization: onnxruntime writes it into the domain of onnx, which does not know it."""
    net = Net()
    a = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 8)), name="a")
    c = net.op("MatMul", net.op("Relu", a), net.weight(net.normal(8, 6)), name="c")
    y = net.op("LayerNormalization", c, net.weight(net.normal(6)), axis=-1)
    model = net.output(net.op("MatMul", y, net.weight(net.normal(6, 2)), name="b")).model()
    model.graph.node[3].op_type = "SimplifiedLayerNormalization"
    del model.graph.value_info[:]
    traced = trace(model)
    assert traced.consumers["c"].prunable.all() and not traced.consumers["b"].prunable.any()
    (segment,) = [segment for segment in traced.segments if "c" in segment.producers]
    assert list(segment.frozen_by) == [
        "channel-mixing op SimplifiedLayerNormalization at SimplifiedLayerNormalization_3"
    ]


def test_rms_normalization_freezes_its_axes() -> None:
    net = Net(opset=23, ir_version=11)
    a = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 8)), name="a")
    y = net.op("RMSNormalization", a, net.weight(net.normal(8)))
    traced = trace(net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="b")).model())
    assert not traced.consumers["b"].prunable.any()
    assert any("RMSNormalization" in reason for s in traced.segments for reason in s.reasons)


# Contractions


@pytest.mark.parametrize(
    "equation, weight, kept",
    [
        ("bij,jk->bik", (8, 5), [1, 6]),
        ("bij,kj->bki", (5, 8), [1, 6]),
        ("bij,jk", (8, 5), [0]),
        ("bij,ij->bj", (4, 8), None),
    ],
)
def test_einsum_with_a_constant(equation: str, weight: tuple[int, int], kept: list[int] | None) -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 8)), name="a")
    y = net.op("Einsum", a, net.weight(net.normal(*weight)), equation=equation, name="e")
    rows = net.shapes[y][-1]
    model = net.output(net.op("MatMul", y, net.weight(net.normal(rows, 2)), name="b")).model()
    masks = {"e": kept} if kept else {"b": [2, 5]}
    emitted = check_emission(model, masks, target=PLAIN)
    assert made_by(emitted, "a", 1) == (len(kept) if kept else 2)


def test_einsum_of_two_activations() -> None:
    net = Net()
    x = net.input("x", (1, 4, 3))
    a, c = (net.op("MatMul", x, net.weight(net.normal(3, 8)), name=name) for name in "ac")
    y = net.op("Einsum", net.op("Softmax", a, axis=1), c, equation="bnd,bnd->bnd")
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="b")).model()
    emitted = check_emission(model, {"b": [1, 2]}, target=PLAIN)
    assert made_by(emitted, "a", 1) == made_by(emitted, "c", 1) == 2


def test_embedding_table_makes_channels() -> None:
    net = Net()
    table = net.weight(net.normal(11, 8), "table")
    x = net.op("Gather", table, net.input("ids", (2, 5), TensorProto.INT64))
    model = net.output(net.op("MatMul", net.op("Tanh", x), net.weight(net.normal(8, 2)), name="b")).model()
    emitted = check_emission(model, {"b": [1, 5]}, target=PLAIN)
    assert {t.name: list(t.dims) for t in emitted.graph.initializer}["table"] == [11, 2]


# Sizes


@pytest.mark.parametrize("axes, prunable", [([2, 3], True), ([1, 2, 3], False), ([-3, -1, -2], False)])
def test_resize_to_sizes_of_chosen_axes(axes: list[int], prunable: bool) -> None:
    net = Net(opset=18)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    sizes = net.ints(*[8 if axis % 4 == 1 else 6 for axis in axes])
    (y,) = net.ops("Resize", a, "", "", sizes, axes=axes, shapes=[(1, 8, 6, 6)])
    model = net.output(net.conv(y, 4, name="b")).model()
    assert trace(model).consumers["b"].prunable.all() == prunable
    check_emission(model, {"b": [1, 5]}, target=PLAIN)


def test_resize_to_a_size_that_is_computed_at_run_time() -> None:
    """PyTorch's interpolate: the first two sizes are the tensor's own, the others a skip connection's."""
    net = Net()
    x = net.conv(net.input("x", (1, 3, "H", "W")), 8, name="a")
    skip = net.input("skip", (1, 2, "H2", "W2"))
    own = net.slice(net.op("Shape", x), [0], [0], [2])
    other = net.slice(net.op("Shape", skip), [0], [2], [4])
    sizes = net.op("Concat", own, other, axis=0)
    (y,) = net.ops("Resize", x, "", "", sizes, shapes=[(1, 8, "H2", "W2")], mode="linear")
    model = net.output(net.conv(y, 4, name="b")).model()
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 8, "H2", "W2"]))
    emitted = check_emission(model, {"b": [1, 5]}, target=PLAIN)
    assert made_by(emitted, "a") == 2
    assert [node.op_type for node in emitted.graph.node].count("Where") == 1


# Exports that were left in training mode


@pytest.mark.parametrize("read", [False, True])
def test_averages_of_batch_normalisation_in_training_follow_the_channels(read: bool) -> None:
    net = Net()
    a = net.conv(net.input("x", (2, 3, 4, 4)), 8, name="a")
    parameters = [net.weight(np.abs(net.normal(8)) + np.float32(0.5)) for _ in range(4)]
    y, mean, _ = net.ops("BatchNormalization", a, *parameters, outputs=3, training_mode=1)
    net.output(net.conv(y, 4, name="b"), *([mean] if read else []))
    if read:
        assert not trace(net.model()).consumers["b"].prunable.any()
    else:
        assert made_by(check_emission(net.model(), {"b": [1, 5, 6]}, target=PLAIN), "a") == 3


@pytest.mark.parametrize("training", [False, True])
def test_dropout_in_training_draws_for_every_element(training: bool) -> None:
    net = Net()
    a = net.conv(net.input("x", (2, 3, 4, 4)), 8, name="a")
    y = net.op("Dropout", a, net.weight(np.float32(0.5)), net.weight(np.bool_(training)))
    traced = trace(net.output(net.conv(y, 4, name="b")).model())
    assert traced.consumers["b"].prunable.all() != training
    assert any("Dropout in training" in reason for s in traced.segments for reason in s.reasons) == training
