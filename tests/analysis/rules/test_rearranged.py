"""Operators that regroup, pick, repeat or move channels into space: what stays of the producer, and exactly."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.analysis.operator_cases import PLAIN
from tests.analysis.rules.cases import checked, made_by
from tests.builders import Masked, Net, check_emission, prune
from ucpe_onnx.analysis.trace import trace

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


def test_slice_in_front_of_a_reader_of_an_axis_without_length() -> None:
    """Opset 10, whose shape inference keeps the symbol of a cut axis: onnxruntime would reuse a buffer too small."""
    net = Net(opset=10)
    x = net.op("Relu", net.input("x", ("N", "C", "H", "W")))
    a = net.conv_with(x, net.weight(net.normal(2, 16, 1, 1)), name="a")
    z = net.op("Neg", net.op("Sigmoid", "x"))
    b = net.conv_with(z, net.weight(net.normal(2, 16, 1, 1)), name="b")
    model = net.output(a, b).model()
    _, plan, emitted = prune(model, {"a": [7, 8]}, target=PLAIN, lowering="slice")
    Masked(model, plan.masks(), {"x": net.normal(1, 16, 1, 1)}).check(emitted)


def test_rearranged_output_leaves_the_rest_to_go() -> None:
    net = Net()
    a = net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a")
    picked = net.op("Gather", a, net.ints(3, 1), axis=1)
    model = net.output(picked, net.conv(a, 2, name="b")).model()
    assert trace(model).consumers["b"].prunable.tolist() == [True, False, True, False, True, True, True, True]
    emitted = check_emission(model, {"b": [1, 3, 7]}, target=PLAIN)
    assert made_by(emitted, "a") == 3


# Split and merged axes


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
