"""Operators that regroup, repeat, pick, quantise or contract channels: what stays of the producer, and exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.analysis.operator_cases import PLAIN
from tests.builders import Net, assert_equal_outputs, check_emission, prune
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.masked import masked_model

Step = Callable[[Net, str], str]


def made_by(model: onnx.ModelProto, name: str, axis: int = 0) -> int:
    """Length of an axis of a node's weight."""
    (node,) = [node for node in model.graph.node if node.name == name]
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return dims[node.input[1]][axis]


def checked(step: Step, kept: dict[str, list[int]], opset: int = 18) -> onnx.ModelProto:
    """x -> conv ``a`` of eight channels -> step -> conv ``b``, emitted with every lowering."""
    net = Net(opset=opset, ir_version=10 if opset > 18 else 8)
    y = step(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    model = net.output(net.conv(y, 4, name="b")).model()
    for lowering in ("gather", "slice", "union"):
        emitted = check_emission(model, kept, target=PLAIN, lowering=lowering)
    return emitted


# Grouped convolutions


def test_grouped_conv_keeps_its_groups_equally_long() -> None:
    emitted = checked(lambda net, x: net.conv(x, 8, groups=2, name="g"), {"g": [0, 4, 5], "b": [0, 1, 6]})
    assert (made_by(emitted, "a"), made_by(emitted, "g"), made_by(emitted, "g", 1)) == (4, 4, 2)
    assert made_by(emitted, "b", 1) == 4


@pytest.mark.parametrize("kept", [{"g": [0, 4, 5]}, {"b": [0, 1, 7]}, {"g": [7], "b": [3]}])
def test_grouped_conv_transpose(kept: dict[str, list[int]]) -> None:
    def step(net: Net, x: str) -> str:
        weight, bias = net.weight(net.normal(8, 4, 2, 2)), net.weight(net.normal(8))
        return net.op("ConvTranspose", x, weight, bias, group=2, name="g")

    emitted = checked(step, kept)
    assert made_by(emitted, "g") == made_by(emitted, "a")
    assert 2 * made_by(emitted, "g", 1) == made_by(emitted, "b", 1)


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_depthwise_multiplier(op_type: str) -> None:
    def step(net: Net, x: str) -> str:
        weight = net.normal(16, 1, 3, 3) if op_type == "Conv" else net.normal(8, 2, 3, 3)
        return net.op(op_type, x, net.weight(weight), net.weight(net.normal(16)), group=8)

    assert made_by(checked(step, {"b": [2, 3, 8]}), "a") == 2


def test_groups_that_two_convolutions_cut_differently() -> None:
    def step(net: Net, x: str) -> str:
        return net.op("Add", net.conv(x, 8, groups=2, name="g"), net.conv(x, 8, groups=4, name="h"))

    emitted = checked(step, {"g": [0, 1, 2], "h": [7], "b": [5]})
    assert made_by(emitted, "a") % 4 == 0


# Rearranged channels


def shuffled(net: Net, x: str, groups: int = 2) -> str:
    n, c, h, w = net.shapes[x]
    y = net.op("Transpose", net.reshape(x, n, groups, c // groups, h, w), perm=[0, 2, 1, 3, 4])
    return net.reshape(y, n, -1, h, w)


def test_channel_shuffle_becomes_a_gather_of_what_is_left() -> None:
    emitted = checked(shuffled, {"b": [0, 2, 5]})
    assert made_by(emitted, "a") == 3
    assert {node.op_type for node in emitted.graph.node} <= {"Conv", "Gather"}


def test_channel_shuffle_that_loses_nothing_stays() -> None:
    emitted = checked(lambda net, x: net.op("Add", shuffled(net, x), net.conv(x, 8, name="c")), {"c": [0, 1]})
    assert [node.op_type for node in emitted.graph.node].count("Transpose") == 1


def test_shuffle_into_a_tensor_of_unknown_shape_is_none() -> None:
    """The target shape allows for one batch size only, which nothing else says."""
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 4, 4)), 8, name="a")
    y = net.op("Transpose", net.reshape(a, 2, 2, 4, 4, 4), perm=[0, 2, 1, 3, 4])
    (y,) = net.ops("Reshape", y, net.input("target", (4,), TensorProto.INT64), shapes=[("n", "c", "h", "w")])
    traced = trace(net.output(y).model())
    assert all(segment.frozen.all() for segment in traced.segments)


def test_shuffle_between_grouped_convolutions() -> None:
    def step(net: Net, x: str) -> str:
        return net.conv(shuffled(net, net.conv(x, 8, groups=2, name="g")), 8, groups=2, name="h")

    emitted = checked(step, {"g": [0, 1, 4, 5], "h": [0, 5], "b": [0, 1, 4, 5]})
    assert made_by(emitted, "h", 1) * 2 == made_by(emitted, "g")


def test_shuffle_that_hands_its_halves_out() -> None:
    """ShuffleNet v2 as it was first published: reshape to (n*c/2, 2, hw), transpose, index."""

    def step(net: Net, x: str) -> str:
        y = net.reshape(net.op("Transpose", net.reshape(x, 4, 2, 16), perm=[1, 0, 2]), 2, -1, 4, 4, 4)
        halves = [net.op("Gather", y, net.weight(np.int64(i)), axis=0) for i in (0, 1)]
        return net.op("Concat", halves[0], net.conv(halves[1], 4, name="c"), axis=1)

    emitted = checked(step, {"c": [1, 2], "b": [0, 3, 5]})
    assert made_by(emitted, "a") == 4


@pytest.mark.parametrize(
    "indices, kept, left", [([5, 0, 3], [0, 2], 2), ([7, 6, 5, 4, 3, 2, 1, -8], [1, 7], 2), ([2, 2, 1], [2], 1)]
)
def test_gather_of_channels(indices: list[int], kept: list[int], left: int) -> None:
    """What no consumer reads goes as well, once something goes."""
    emitted = checked(lambda net, x: net.op("Gather", x, net.ints(*indices), axis=1), {"b": kept})
    assert made_by(emitted, "a") == left


@pytest.mark.parametrize("bounds", [([0], [8], [2]), ([-1], [-(2**31)], [-1]), ([1], [7], [3])])
def test_slice_with_a_step(bounds: tuple[list[int], list[int], list[int]]) -> None:
    emitted = checked(lambda net, x: net.slice(x, [1], bounds[0], bounds[1], bounds[2]), {"b": [1]})
    assert made_by(emitted, "b", 1) == 1


# Split and merged axes


def heads(net: Net, x: str, count: int, size: int) -> str:
    """(n, t, heads * size) as (n, heads, t, size)."""
    n, t, _ = net.shapes[x]
    return net.op("Transpose", net.reshape(x, n, t, count, size), perm=[0, 2, 1, 3])


def project(net: Net, x: str, width: int, name: str) -> str:
    y = net.op("MatMul", x, net.weight(net.normal(net.shapes[x][-1], width)), name=name)
    return net.op("Add", y, net.weight(net.normal(width)))


def attention(net: Net, q: str, k: str, v: str) -> str:
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", net.op("Mul", scores, net.constant(0.3)), axis=-1), v)
    n, _, t, _ = net.shapes[mixed]
    return net.reshape(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), n, t, -1)


def test_attention_loses_whole_heads() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    q, k, v = (heads(net, project(net, x, 12, name), 4, 3) for name in "qkv")
    model = net.output(project(net, attention(net, q, k, v), 8, "o")).model()
    traced = trace(model)
    assert traced.consumers["o"].prunable.all()
    assert traced.consumers["o"].slots.tolist() == np.repeat(np.arange(4), 3).tolist()
    emitted = check_emission(model, {"o": [0, 7, 8]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 6, 6]
    assert made_by(emitted, "o") == 6


def test_fused_attention_loses_whole_heads() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    qkv = net.reshape(project(net, x, 36, "qkv"), 1, 5, 3, 4, 3)
    parts = net.split(net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]), [1, 1, 1], axis=0)
    q, k, v = (net.squeeze(part, [0]) for part in parts)
    model = net.output(project(net, attention(net, q, k, v), 8, "o")).model()
    emitted = check_emission(model, {"o": [0, 4]}, target=PLAIN)
    assert (made_by(emitted, "qkv", 1), made_by(emitted, "o")) == (18, 6)


def test_grouped_query_attention_ties_heads_that_share_keys() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    q = heads(net, project(net, x, 12, "q"), 4, 3)
    shared = [net.unsqueeze(heads(net, project(net, x, 6, name), 2, 3), [2]) for name in "kv"]
    k, v = (net.reshape(net.op("Expand", y, net.ints(1, 2, 2, 5, 3)), 1, 4, 5, 3) for y in shared)
    model = net.output(project(net, attention(net, q, k, v), 8, "o")).model()
    emitted = check_emission(model, {"o": [2]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 3, 3]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    emitted = checked(lambda net, x: net.op("DepthToSpace", x, blocksize=2, mode=mode), {"b": [1]})
    assert (made_by(emitted, "a"), made_by(emitted, "b", 1)) == (4, 1)


@pytest.mark.parametrize(
    "split, perm",
    [((1, 2, 2, 2, 4, 4), [0, 1, 4, 2, 5, 3]), ((1, 2, 2, 2, 4, 4), [0, 3, 4, 1, 5, 2])],
    ids=["torch", "tensorflow"],
)
def test_pixel_shuffle_by_reshape(split: tuple[int, ...], perm: list[int]) -> None:
    def step(net: Net, x: str) -> str:
        return net.reshape(net.op("Transpose", net.reshape(x, *split), perm=perm), 1, 2, 8, 8)

    emitted = checked(step, {"b": [1]})
    assert (made_by(emitted, "a"), made_by(emitted, "b", 1)) == (4, 1)


def test_space_to_depth() -> None:
    emitted = checked(lambda net, x: net.op("SpaceToDepth", x, blocksize=2), {"b": [1, 4, 9, 20]})
    assert made_by(emitted, "a") == 2


def test_tile() -> None:
    emitted = checked(lambda net, x: net.op("Tile", x, net.ints(1, 2, 1, 3)), {"b": [1, 4, 12]})
    assert made_by(emitted, "a") == 2


def test_radix_softmax_of_split_attention() -> None:
    """ResNeSt: two halves of the channels, weighed by a softmax over the halves."""

    def step(net: Net, x: str) -> str:
        halves = net.reshape(x, 1, 2, 4, 4, 4)
        gap = net.op("GlobalAveragePool", net.reduce("ReduceSum", halves, [1], 0))
        weights = net.reshape(net.conv(net.conv(gap, 3, name="c"), 8, name="d"), 1, 2, 4, 1, 1)
        weighted = net.op("Mul", halves, net.op("Softmax", weights, axis=1))
        return net.reduce("ReduceSum", weighted, [1], 0)

    emitted = checked(step, {"b": [1, 2], "c": [2]})
    assert (made_by(emitted, "a"), made_by(emitted, "d"), made_by(emitted, "b", 1)) == (4, 4, 2)


# Normalisation over groups


def test_group_normalization_loses_whole_groups() -> None:
    def step(net: Net, x: str) -> str:
        scale, bias = net.weight(net.normal(8)), net.weight(net.normal(8))
        return net.ops("GroupNormalization", x, scale, bias, num_groups=4, shapes=[(1, 8, 4, 4)])[0]

    emitted = checked(step, {"b": [0, 5]}, 21)
    assert made_by(emitted, "a") == 4


def test_group_normalization_as_pytorch_exports_it() -> None:
    def step(net: Net, x: str) -> str:
        y = net.op("InstanceNormalization", net.reshape(x, 0, 4, -1), net.weight(np.ones(4)), net.weight(np.zeros(4)))
        y = net.reshape(y, 1, 8, 4, 4)
        y = net.op("Mul", y, net.weight(net.normal(8, 1, 1)))
        return net.op("Add", y, net.weight(net.normal(8, 1, 1)))

    assert made_by(checked(step, {"b": [0, 5]}), "a") == 4


# Along other axes


def along(op_type: str, **attributes: object) -> Step:
    return lambda net, x: net.op(op_type, x, **attributes)


OTHER_AXES: dict[str, Step] = {
    "CumSum": lambda net, x: net.op("CumSum", x, net.weight(np.int64(-1))),
    "Hardmax": along("Hardmax", axis=3),
    "LpNormalization": along("LpNormalization", axis=2),
    "TopK": lambda net, x: net.ops("TopK", x, net.ints(2), outputs=2, axis=2)[0],
    "Trilu": along("Trilu"),
    "Expand": lambda net, x: net.op("Expand", net.op("GlobalMaxPool", x), net.ints(1, 1, 3, 3)),
    "GridSample": lambda net, x: net.op("GridSample", x, net.weight(net.random.uniform(-1, 1, (1, 2, 3, 2)))),
    "RoiAlign": lambda net, x: net.op(
        "RoiAlign", x, net.weight(np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32)), net.ints(0, 0)
    ),
    "MaxRoiPool": lambda net, x: net.op(
        "MaxRoiPool", x, net.weight(np.array([[0, 0, 0, 2, 2]], np.float32)), pooled_shape=[2, 2]
    ),
}


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
    """Affine and Crop pass channels; ImageScaler keeps them, for its biases. onnx no longer knows these operators."""
    net = Net(opset=7, ir_version=3)
    a = net.conv(net.input("x", (1, 3, 6, 6)), 8, name="a")
    model = net.output(net.conv(a, 4, name="b")).model()
    (first, last) = model.graph.node
    cropped = helper.make_node("Crop", [first.output[0]], ["cropped"], border=[1, 1, 1, 1])
    scaled = helper.make_node("Affine", ["cropped"], ["scaled"], alpha=0.5, beta=0.1)
    last.input[0] = "scaled"
    del model.graph.node[:]
    model.graph.node.extend([first, cropped, scaled, last])
    for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 4
    assert made_by(check_emission(model, {"b": [1, 5]}, target=PLAIN), "a") == 2
    model.graph.node[1].CopyFrom(
        helper.make_node("ImageScaler", [first.output[0]], ["cropped"], scale=1.0, bias=[0.1] * 8)
    )
    assert not trace(model).consumers["b"].prunable.any()


@pytest.mark.parametrize("op_type", ["Gelu", "QuickGelu", "BiasGelu", "FastGelu"])
def test_contributed_activations(op_type: str) -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (1, 4, 3)), net.weight(net.normal(3, 8)), name="a")
    bias = [net.weight(net.normal(8))] if op_type in ("BiasGelu", "FastGelu") else []
    (y,) = net.ops(op_type, a, *bias, domain="com.microsoft", shapes=[(1, 4, 8)])
    model = net.output(net.op("MatMul", y, net.weight(net.normal(8, 2)), name="b")).model()
    model.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 4, 8]))
    assert made_by(check_emission(model, {"b": [6, 3, 4]}, target=PLAIN), "a", 1) == 3


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


@pytest.mark.parametrize("op_type, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_read_features(op_type: str, gates: int) -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (6, 2, 3)), net.weight(net.normal(3, 8)), name="a")
    weights = [net.weight(net.normal(2, gates * 5, size)) for size in (8, 5)]
    bias = net.weight(net.normal(2, 2 * gates * 5))
    y = net.ops(op_type, a, *weights, bias, hidden_size=5, direction="bidirectional", name="r", outputs=2)[0]
    model = net.output(y).model()
    emitted = check_emission(model, {"r": [0, 3, 4]}, target=PLAIN)
    assert (made_by(emitted, "a", 1), made_by(emitted, "r", 2)) == (3, 3)


def test_embedding_table_makes_channels() -> None:
    net = Net()
    table = net.weight(net.normal(11, 8), "table")
    x = net.op("Gather", table, net.input("ids", (2, 5), TensorProto.INT64))
    model = net.output(net.op("MatMul", net.op("Tanh", x), net.weight(net.normal(8, 2)), name="b")).model()
    emitted = check_emission(model, {"b": [1, 5]}, target=PLAIN)
    assert {t.name: list(t.dims) for t in emitted.graph.initializer}["table"] == [11, 2]


def attention_operator(net: Net, x: str, heads: tuple[int, int], *, side_by_side: bool, rotate: bool) -> str:
    """Opset 23: projections, rotated queries and keys, Attention with a mask where it has an axis of heads."""
    count, shared = heads
    parts = [project(net, x, n * 4, name) for n, name in zip((count, shared, shared), "qkv", strict=True)]
    if not side_by_side:
        parts = [
            net.op("Transpose", net.reshape(y, 1, 5, n, 4), perm=[0, 2, 1, 3])
            for y, n in zip(parts, (count, shared, shared), strict=True)
        ]
    if rotate:
        angles = net.random.uniform(-1, 1, (1, 5, 2)).astype(np.float32)
        caches = [net.weight(f(angles)) for f in (np.cos, np.sin)]
        for i, n in ((0, count), (1, shared)):
            options = {"num_heads": n} if side_by_side else {}
            (parts[i],) = net.ops("RotaryEmbedding", parts[i], *caches, shapes=[net.shapes[parts[i]]], **options)
    shapes = [net.shapes[parts[0]]]
    if side_by_side:
        return net.ops("Attention", *parts, q_num_heads=count, kv_num_heads=shared, shapes=shapes)[0]
    mask = net.weight(net.normal(1, count, 5, 5))
    (y,) = net.ops("Attention", *parts, mask, shapes=shapes)
    return net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 1, 5, -1)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("side_by_side, heads", [(False, (4, 4)), (False, (4, 2)), (True, (4, 4))])
def test_attention_as_one_operator(side_by_side: bool, heads: tuple[int, int], rotate: bool) -> None:
    net = Net(opset=23, ir_version=11)
    x = net.op("Relu", net.input("x", (1, 5, 8)))
    y = attention_operator(net, x, heads, side_by_side=side_by_side, rotate=rotate)
    model = net.output(project(net, y, 8, "o")).model()
    assert trace(model).consumers["o"].prunable.all()
    emitted = check_emission(model, {"o": [0, 3, 6]}, target=PLAIN)
    queries, keys, values = (made_by(emitted, name, 1) // 4 for name in "qkv")
    assert (queries, keys, values, made_by(emitted, "o")) == (2, heads[1] // 2, heads[1] // 2, 8)


@pytest.mark.parametrize("symbols", ["BT", None])
def test_attention_over_dynamic_batch_and_time(symbols: str | None) -> None:
    """Targets as PyTorch computes them: Concat(batch, time, heads, size). Two lengths are unknown."""
    net = Net()
    net.input("x", (*(symbols or [None, None]), 8))
    lengths = net.op("Shape", "x")
    batch, time = (net.unsqueeze(net.op("Gather", lengths, net.weight(np.int64(i))), [0]) for i in (0, 1))

    def regrouped(y: str, *rest: int) -> str:
        target = net.op("Concat", batch, time, net.ints(*rest), axis=0)
        dims = (*(symbols or [None, None]), *rest)
        return net.ops("Reshape", y, target, shapes=[dims])[0]

    q, k, v = (
        net.op("Transpose", regrouped(net.op("MatMul", "x", net.weight(net.normal(8, 12)), name=name), 4, 3), perm=perm)
        for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, k), axis=-1), v)
    y = regrouped(net.op("Transpose", mixed, perm=[0, 2, 1, 3]), 12)
    model = net.output(net.op("MatMul", y, net.weight(net.normal(12, 8)), name="o")).model()
    emitted = check_emission(model, {"o": [0, 7, 8]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 6, 6]


@pytest.mark.parametrize("axes, prunable", [([2, 3], True), ([1, 2, 3], False), ([-3, -1, -2], False)])
def test_resize_to_sizes_of_chosen_axes(axes: list[int], prunable: bool) -> None:
    net = Net(opset=18)
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    sizes = net.ints(*[8 if axis % 4 == 1 else 6 for axis in axes])
    (y,) = net.ops("Resize", a, "", "", sizes, axes=axes, shapes=[(1, 8, 6, 6)])
    model = net.output(net.conv(y, 4, name="b")).model()
    assert trace(model).consumers["b"].prunable.all() == prunable
    check_emission(model, {"b": [1, 5]}, target=PLAIN)


def test_keys_transposed_through_merged_batch_and_heads() -> None:
    """scaled_dot_product_attention of a dynamic batch, as PyTorch's newer exporter writes it."""
    net = Net()
    x = net.input("x", ("B", 5, 8))

    def heads_of(name: str) -> str:
        y = net.op("MatMul", x, net.weight(net.normal(8, 12)), name=name)
        (y,) = net.ops("Reshape", y, net.ints(-1, 5, 4, 3), shapes=[("B", 5, 4, 3)])
        return net.op("Transpose", y, perm=[0, 2, 1, 3])

    q, k, v = (heads_of(name) for name in "qkv")
    (flat,) = net.ops("Reshape", k, net.ints(-1, 5, 3), shapes=[("BH", 5, 3)])
    turned = net.op("Transpose", flat, perm=[0, 2, 1])
    (keys,) = net.ops("Reshape", turned, net.ints(-1, 4, 3, 5), shapes=[("B", 4, 3, 5)])
    mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", q, keys), axis=-1), v)
    (y,) = net.ops("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(-1, 5, 12), shapes=[("B", 5, 12)])
    model = net.output(net.op("MatMul", y, net.weight(net.normal(12, 8)), name="o")).model()
    emitted = check_emission(model, {"o": [0, 7]}, target=PLAIN)
    assert [made_by(emitted, name, 1) for name in "qkv"] == [6, 6, 6]
    assert [node.op_type for node in emitted.graph.node].count("Reshape") == 4


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


# Quantised graphs


def quantised(net: Net, shape: tuple[int, ...], axis: int, *, zero: bool = False) -> list[str]:
    """An int8 weight, its scales along an axis, and their zero points."""
    count = shape[axis]
    value = net.weight(net.random.integers(-100, 100, shape).astype(np.int8))
    scale = net.weight(net.random.uniform(0.005, 0.02, count).astype(np.float32))
    points = net.random.integers(-5, 5, count) if zero else np.zeros(count)
    return [value, scale, net.weight(points.astype(np.int8))]


def test_weights_behind_dequantize_linear() -> None:
    def step(net: Net, x: str) -> str:
        scale, zero = net.constant(0.05), net.weight(np.uint8(128))
        y = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
        weight = net.op("DequantizeLinear", *quantised(net, (6, 8, 1, 1), 0), axis=0)
        bias = net.op(
            "DequantizeLinear", net.weight(np.arange(6, dtype=np.int32)), net.weight(np.full(6, 0.01)), axis=0
        )
        return net.op("Conv", y, weight, bias, name="q")

    net = Net()
    y = step(net, net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    model = onnx.shape_inference.infer_shapes(net.output(net.conv(y, 4, name="b")).model())
    emitted = check_emission(model, {"q": [1, 2, 7], "b": [0, 5]}, target=PLAIN)
    assert made_by(emitted, "a") == 3
    sizes = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    codec = next(n for n in emitted.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in sizes)
    assert [sizes[name] for name in codec.input] == [[2, 3, 1, 1], [2], [2]]


def test_weights_behind_quantize_and_dequantize_linear() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 3)), net.weight(net.normal(3, 8)), name="a")
    scale = net.weight(net.random.uniform(0.005, 0.02, 5).astype(np.float32))
    point = net.weight(np.zeros(5, dtype=np.int8))
    weight = net.op("QuantizeLinear", net.weight(net.normal(8, 5)), scale, point, axis=1)
    y = net.op("MatMul", a, net.op("DequantizeLinear", weight, scale, point, axis=1), name="q")
    model = net.output(net.op("MatMul", y, net.weight(net.normal(5, 2)), name="b")).model()
    emitted = check_emission(model, {"q": [0, 6], "b": [1]}, target=PLAIN, optimise=False)
    assert made_by(emitted, "a", 1) == 2


def test_a_quantised_weight_with_two_readers_is_frozen() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 3)), net.weight(net.normal(3, 8)), name="a")
    weight = net.op("DequantizeLinear", *quantised(net, (8, 8), 1), axis=1)
    y = net.op("MatMul", net.op("MatMul", a, weight, name="q"), weight, name="r")
    traced = trace(net.output(y).model())
    assert set(traced.consumers) == {"a"}
    assert traced.segments[-1].frozen.all()


def linear_codec(net: Net, x: str) -> tuple[str, list[str]]:
    parameters = [net.constant(0.05), net.weight(np.uint8(120))]
    return net.op("QuantizeLinear", x, *parameters), parameters


@pytest.mark.parametrize("zero", [False, True])
def test_qlinear_conv(zero: bool) -> None:
    def step(net: Net, x: str) -> str:
        y, parameters = linear_codec(net, x)
        weight = quantised(net, (6, 8, 1, 1), 0, zero=zero)
        bias = net.weight(np.arange(6, dtype=np.int32))
        y = net.op("QLinearConv", y, *parameters, *weight, *parameters, bias, name="q")
        return net.op("DequantizeLinear", y, *parameters)

    emitted = checked(step, {"q": [1, 2, 7], "b": [0, 5]})
    (node,) = [node for node in emitted.graph.node if node.op_type == "QLinearConv"]
    sizes = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    assert [sizes[node.input[i]] for i in (3, 4, 5, 8)] == [[2, 3, 1, 1], [2], [2], [2]]


def test_qlinear_matmul_and_integer_products() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", (4, 3)), net.weight(net.normal(3, 8)), name="a")
    y, parameters = linear_codec(net, a)
    weight = [quantised(net, (8, 6), 1)[0], net.constant(0.01), net.weight(np.int8(3))]
    y = net.op("QLinearMatMul", y, *parameters, *weight, *parameters, name="q")
    integers = net.weight(net.random.integers(0, 9, (6, 5)).astype(np.uint8))
    z = net.op("MatMulInteger", y, integers, parameters[1], name="i")
    model = net.output(net.op("Cast", z, to=TensorProto.FLOAT)).model()
    emitted = check_emission(model, {"q": [1, 2, 7], "i": [0, 5]}, target=PLAIN)
    assert made_by(emitted, "a", 1) == 3
    assert made_by(emitted, "i") == 2


def test_conv_integer() -> None:
    def step(net: Net, x: str) -> str:
        y, parameters = linear_codec(net, x)
        weight = net.weight(net.random.integers(0, 9, (6, 8, 1, 1)).astype(np.uint8))
        y = net.op("ConvInteger", y, weight, parameters[1], name="q")
        return net.op("Cast", y, to=TensorProto.FLOAT)

    assert made_by(checked(step, {"q": [1, 2, 7], "b": [0, 5]}), "a") == 3


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_weights_of_other_precision(kind: int) -> None:
    """Cast to float in the graph: the folded constant is what is cut."""
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    stored = numpy_helper.from_array(net.normal(4, 8, 1, 1).astype(helper.tensor_dtype_to_np_dtype(kind)))
    net.initializers["half"] = stored
    stored.name = "half"
    net._learn("half", helper.make_tensor_type_proto(kind, [4, 8, 1, 1]))
    y = net.op("Conv", a, net.op("Cast", "half", to=TensorProto.FLOAT), name="b")
    assert made_by(check_emission(net.output(y).model(), {"b": [2, 5]}, target=PLAIN), "a") == 2


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op_type, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_hidden_units_that_no_recurrence_reads(op_type: str, gates: int, direction: str) -> None:
    """Unit 1 is read in one of the directions, units 0 and 3 in none."""
    net = Net()
    count = 2 if direction == "bidirectional" else 1
    recurrence = net.normal(count, gates * 5, 5)
    recurrence[:, :, [0, 3]] = 0
    recurrence[0, :, 1] = 0
    weights = [net.weight(net.normal(count, gates * 5, 3)), net.weight(recurrence)]
    weights.append(net.weight(net.normal(count, 2 * gates * 5)))
    sequence, last = net.ops(
        op_type, net.input("x", (6, 2, 3)), *weights, hidden_size=5, direction=direction, name="r", outputs=2
    )
    y = net.op("MatMul", sequence, net.weight(net.normal(5, 2)), name="b")
    z = net.op("MatMul", last, net.weight(net.normal(5, 2)), name="c")
    model = net.output(y, z).model()
    free = [True, direction == "forward", False, True, False]
    assert trace(model).consumers["b"].prunable.tolist() == free
    emitted = check_emission(model, {"b": [2, 3, 4], "c": [1, 2, 4]}, target=PLAIN)
    assert made_by(emitted, "r", 1) == gates * 4


def qlinear(net: Net, op_type: str, *inputs: str, shape: tuple[int, ...], name: str = "", **attributes: object) -> str:
    """A quantised operator of onnxruntime; onnx does not know it, so the shape of its result is given."""
    (y,) = net.ops(op_type, *inputs, domain="com.microsoft", shapes=[shape], name=name, **attributes)
    net._learn(y, helper.make_tensor_type_proto(TensorProto.UINT8, shape))
    return y


def quantised_layers() -> onnx.ModelProto:
    """Convolutions, a residual sum, a product, a concatenation, pools and a Gemm, all in 8 bits."""
    net = Net()
    x, p = linear_codec(net, net.input("x", (1, 3, 6, 6)))

    def conv(y: str, out: int, name: str) -> str:
        weight = quantised(net, (out, net.shapes[y][1], 1, 1), 0, zero=True)
        return net.op("QLinearConv", y, *p, *weight, *p, name=name)

    def made(op_type: str, *inputs: str, **options: object) -> str:
        return qlinear(net, op_type, *inputs, **{"shape": (1, 8, 6, 6)} | options)

    a = conv(x, 8, "a")
    gate = made("QLinearSigmoid", conv(a, 8, "c"), *p, *p)
    y = made("QLinearMul", made("QLinearAdd", a, *p, conv(a, 8, "b"), *p, *p), *p, gate, *p, *p)
    y = made("QLinearLeakyRelu", y, *p, *p, alpha=0.1)
    y = made("QLinearConcat", *p, y, *p, a, *p, axis=1, shape=(1, 16, 6, 6))
    y = made("QLinearAveragePool", y, *p, *p, kernel_shape=[2, 2], shape=(1, 16, 5, 5))
    y = made("QLinearGlobalAveragePool", conv(y, 6, "d"), *p, *p, shape=(1, 6, 1, 1))
    matrix, scale, point = quantised(net, (4, 6), 0, zero=True)
    y = made("QGemm", net.op("Flatten", y), *p, matrix, scale, point, "", *p, name="g", transB=1, shape=(1, 4))
    return net.output(net.op("DequantizeLinear", y, *p)).model()


def test_quantised_operators_of_onnxruntime() -> None:
    model = quantised_layers()
    traced = trace(model)
    masks = {"b": [0, 5], "c": [0, 1, 2], "d": [0, 5, 8, 13], "g": [1, 4]}
    assert all(traced.consumers[name].prunable.all() for name in masks)
    emitted = check_emission(model, masks, target=PLAIN)
    dims = {tensor.name: list(tensor.dims) for tensor in emitted.graph.initializer}
    weights = {node.name: dims[node.input[3]] for node in emitted.graph.node if node.name in traced.consumers}
    assert (weights["a"][0], weights["d"][0], weights["g"]) == (4, 2, [4, 2])


def test_codec_that_nothing_reads() -> None:
    net = Net()
    y = net.conv(net.input("x", (1, 3, 4, 4)), 4, name="a")
    net.op("DequantizeLinear", net.weight(np.array([18], np.int8)), net.weight(np.float32(0.02)))
    check_emission(net.output(net.conv(y, 2, name="b")).model(), {"b": [1]}, target=PLAIN)


def test_slice_in_front_of_a_reader_of_an_axis_without_length() -> None:
    """Opset 10, whose shape inference keeps the symbol of a cut axis: onnxruntime would reuse a buffer too small."""
    net = Net(opset=10)
    x = net.op("Relu", net.input("x", ("N", "C", "H", "W")))
    a = net.conv_with(x, net.weight(net.normal(2, 16, 1, 1)), name="a")
    z = net.op("Neg", net.op("Sigmoid", "x"))
    b = net.conv_with(z, net.weight(net.normal(2, 16, 1, 1)), name="b")
    model = net.output(a, b).model()
    _, plan, emitted = prune(model, {"a": [7, 8]}, target=PLAIN, lowering="slice")
    feeds = {"x": net.normal(1, 16, 1, 1)}
    assert_equal_outputs(emitted, masked_model(model, plan.masks()), feeds)


def test_rearranged_output_leaves_the_rest_to_go() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    picked = net.op("Gather", a, net.ints(3, 1), axis=1)
    model = net.output(picked, net.conv(a, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.tolist() == [True, False, True, False, True, True, True, True]
    emitted = check_emission(model, {"b": [1, 3, 7]}, target=PLAIN)
    assert made_by(emitted, "a") == 3
