"""Channels that are moved into space, bound into groups, resized by sizes, or spread over the columns of a matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.builders import Net
from tests.traps.trapping import check, check_halves, width
from ucpe_onnx.runtime.target import Target

Step = Callable[[Net, str], str]


def stem(net: Net, channels: int, name: str = "a") -> str:
    return net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), channels, 3, name=name))


# Pixel shuffle


def by_reshape(net: Net, x: str) -> str:
    n, channels, h, w = net.shapes[x]
    y = net.op("Transpose", net.reshape(x, n, channels // 4, 2, 2, h, w), perm=[0, 1, 4, 2, 5, 3])
    return net.reshape(y, n, channels // 4, 2 * h, 2 * w)


SHUFFLES: dict[str, Step] = {
    "DCR": lambda net, x: net.op("DepthToSpace", x, blocksize=2, mode="DCR"),
    "CRD": lambda net, x: net.op("DepthToSpace", x, blocksize=2, mode="CRD"),
    "reshape": by_reshape,
}


@pytest.mark.parametrize("mode", SHUFFLES)
def test_pixel_shuffle(mode: str) -> None:
    net = Net()
    up = SHUFFLES[mode](net, net.conv(stem(net, 8), 24, name="up"))
    net.output(net.conv(net.op("Relu", up), 3, name="b"))
    check_halves(net.model())
    for emitted in check(net, {"up": [0, 7], "b": [5]}).values():
        assert (width(emitted, "a"), width(emitted, "up"), width(emitted, "b", 1)) == (2, 4, 1)


@pytest.mark.parametrize("mode", SHUFFLES)
def test_sixteen_channels_for_one(mode: str) -> None:
    """Rounded up to 16 channels behind the shuffle there are 64 before it: as many as there were behind it."""
    net = Net()
    up = SHUFFLES[mode](net, net.conv(net.input("x", (1, 3, 4, 4)), 256, name="up"))
    net.output(net.conv(up, 3, 3, name="b"))
    for emitted in check(net, {"b": [37]}, Target()).values():
        assert (width(emitted, "up"), width(emitted, "b", 1)) == (64, 16)
    for emitted in check(net, {"b": [37]}).values():
        assert (width(emitted, "up"), width(emitted, "b", 1)) == (4, 1)


def test_pixel_unshuffle_and_back() -> None:
    net = Net()
    y = net.op("SpaceToDepth", stem(net, 4), blocksize=2)
    y = net.op("DepthToSpace", net.op("Relu", net.conv(y, 16, name="b")), blocksize=2, mode="CRD")
    net.output(net.conv(y, 3, name="c"))
    check_halves(net.model())
    for emitted in check(net, {"b": [0, 5, 8], "c": [3]}).values():
        assert (width(emitted, "a"), width(emitted, "b"), width(emitted, "c", 1)) == (2, 4, 1)


# Groups that are normalised together


def group_norm(net: Net, x: str, groups: int) -> str:
    """As PyTorch exports it: groups as the channels of an InstanceNormalization."""
    n, channels, h, w = net.shapes[x]
    scale, bias = net.weight(np.ones(groups)), net.weight(np.zeros(groups))
    y = net.op("InstanceNormalization", net.reshape(x, 0, groups, -1), scale, bias)
    y = net.op("Mul", net.reshape(y, n, channels, h, w), net.weight(net.normal(channels, 1, 1)))
    return net.op("Add", y, net.weight(net.normal(channels, 1, 1)))


def test_pairs_of_channels_normalised_together() -> None:
    """64 channels in 32 groups: what is normalised with a kept channel is needed for its mean."""
    net = Net()
    net.output(net.conv(net.op("Relu", group_norm(net, stem(net, 64), 32)), 4, name="b"))
    kept = [0, 1, 10, 11, 40, 41, 62, 63]
    for emitted in check(net, {"b": kept}).values():
        assert (width(emitted, "a"), width(emitted, "b", 1)) == (8, 8)
    for emitted in check(net, {"b": kept[::2]}).values():
        assert width(emitted, "a") == 8
    for emitted in check(net, {"b": kept}, Target()).values():
        assert width(emitted, "a") % 2 == 0 and width(emitted, "a") < 64


def test_group_normalization() -> None:
    net = Net(opset=21, ir_version=10)
    parameters = [net.weight(net.normal(16)), net.weight(net.normal(16))]
    y = net.ops("GroupNormalization", stem(net, 16), *parameters, num_groups=4, shapes=[(1, 16, 4, 4)])[0]
    net.output(net.conv(net.op("Relu", y), 4, name="b"))
    check_halves(net.model())
    for emitted in check(net, {"b": [0, 13, 14]}).values():
        assert width(emitted, "a") == 8


def test_groups_cut_differently_by_two_normalisations() -> None:
    """Fours and threes overlap: what stays or goes together are twelves."""
    net = Net()
    y = group_norm(net, group_norm(net, stem(net, 24), 6), 8)
    net.output(net.conv(y, 4, name="b"))
    for emitted in check(net, {"b": [2, 7]}).values():
        assert width(emitted, "a") == 12


# Sizes


def resized(net: Net, x: str) -> str:
    n, channels, h, w = net.shapes[x]
    sizes = net.ints(n, channels, 2 * h, 2 * w)
    return net.op("Resize", x, "", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric")


def test_resize_by_sizes() -> None:
    """The number of channels is among the sizes."""
    net = Net()
    net.output(net.conv(resized(net, stem(net, 8)), 4, name="b"))
    check_halves(net.model())
    for emitted in check(net, {"b": [2, 3, 7]}).values():
        assert width(emitted, "a") == 3


def test_resize_to_the_sizes_of_a_pruned_tensor() -> None:
    """Sizes from the Shape of a skip connection, whose own channels go."""
    net = Net()
    net.input("x", (1, 3, "H", "W"))
    skip = net.op("Relu", net.conv("x", 6, 3, name="s"))
    deep = net.op("Relu", net.conv(net.op("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 8, name="a"))
    lengths = net.op("Shape", skip)
    space = net.slice(lengths, [0], [2], [4])
    own = net.slice(net.op("Shape", deep), [0], [0], [2])
    sizes = net.op("Concat", own, space, axis=0)
    (up,) = net.ops("Resize", deep, "", "", sizes, shapes=[(1, 8, "H", "W")], mode="linear")
    (both,) = net.ops("Concat", up, skip, shapes=[(1, 14, "H", "W")], axis=1)
    model = net.output(net.conv(both, 4, name="b")).model()
    for name, channels in ((up, 8), (both, 14)):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "H", "W"])
        model.graph.value_info.append(info)
    traced = check_halves(model)
    assert traced.consumers["b"].prunable.all() and traced.consumers["a"].prunable.all()


# Columns


def flattened(net: Net, x: str) -> str:
    return net.op("Flatten", x)


def viewed(net: Net, x: str) -> str:
    return net.reshape(x, net.shapes[x][0], -1)


def channels_last(net: Net, x: str) -> str:
    return net.op("Flatten", net.op("Transpose", x, perm=[0, 2, 3, 1]))


@pytest.mark.parametrize("view", [flattened, viewed, channels_last])
def test_view_of_more_than_one_pixel(view: Step) -> None:
    """A channel makes nine columns; it goes only if all of them do, and of others columns are dropped one by one."""
    net = Net()
    pooled = net.op("AveragePool", stem(net, 8), kernel_shape=[2, 2])
    y = view(net, pooled)
    net.output(net.gemm(net.op("Relu", net.gemm(y, 6, name="b")), 4, name="c"))
    check_halves(net.model())
    first, step = (2, 8) if view is channels_last else (18, 1)  # of the columns of channel 2
    kept = [first, first + 3 * step, first + 8 * step]
    for lowering, emitted in check(net, {"b": kept, "c": [1, 2]}).items():
        assert (width(emitted, "a"), width(emitted, "b")) == (1, 2)
        assert width(emitted, "b", 1) == (3 if lowering in ("gather", "slice") else 9)


def test_columns_at_random() -> None:
    """Columns of all channels, so that none goes: the matrix alone is cut."""
    net = Net()
    y = net.op("Flatten", stem(net, 8))
    net.output(net.gemm(net.op("Tanh", net.gemm(y, 6, name="b")), 4, name="c"))
    kept = sorted(np.random.default_rng(0).permutation(128)[:40].tolist())
    for lowering, emitted in check(net, {"b": kept, "c": [5]}).items():
        assert width(emitted, "b", 1) == (40 if lowering in ("gather", "slice") else 16 * width(emitted, "a"))


# Several channels from one


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_depthwise_that_doubles_the_channels(op_type: str) -> None:
    net = Net()
    x = stem(net, 8)
    if op_type == "Conv":
        y = net.depthwise(x, 2, name="d")
    else:
        weight, bias = net.weight(net.normal(8, 2, 2, 2)), net.weight(net.normal(16))
        y = net.op("ConvTranspose", x, weight, bias, group=8, strides=[2, 2], name="d")
    net.output(net.conv(net.op("Relu", net.batch_norm(y)), 4, name="b"), net.conv(x, 4, name="c"))
    check_halves(net.model())
    for emitted in check(net, {"b": [3, 4, 15], "c": [0]}).values():
        assert (width(emitted, "a"), width(emitted, "d")) == (4, 8 if op_type == "Conv" else 4)


def test_doubled_channels_meet_a_branch() -> None:
    """The sum ties the branch's channels to the pairs that the depthwise layer makes."""
    net = Net()
    x = stem(net, 8)
    y = net.op("Add", net.depthwise(x, 2), net.conv("x", 16, name="s"))
    net.output(net.conv(net.op("Relu", y), 4, name="b"))
    check_halves(net.model())
    for emitted in check(net, {"b": [0, 1, 9]}).values():
        assert (width(emitted, "a"), width(emitted, "s")) == (2, 4)


# A softmax over the channels


def test_attention_over_channels() -> None:
    """A softmax over the channels weighs the map that it came from: these stay, the others go."""
    net = Net()
    x = stem(net, 8)
    scores = net.op("Softmax", net.conv(net.op("GlobalAveragePool", x), 8, name="s"), axis=1)
    y = net.op("Mul", net.conv(net.op("Relu", net.conv(x, 6, name="b")), 8, name="c"), scores)
    net.output(net.conv(y, 4, name="d"))
    for lowering, emitted in check(net, {"s": [0, 1], "b": [1, 2, 5], "c": [4], "d": [0, 6]}).items():
        assert [width(emitted, name) for name in "asbc"] == [4, 8, 1, 8]
        assert width(emitted, "d", 1) == (2 if lowering in ("gather", "slice") else 8)


def test_softmax_over_everything_behind_the_batch() -> None:
    """Before opset 13 a softmax takes all axes from its own on as one."""
    net = Net(opset=11)
    b = net.conv(stem(net, 8), 6, name="b")
    model = net.output(net.conv(net.op("Softmax", b, axis=1), 4, name="c")).model()
    traced = check_halves(model)
    assert traced.consumers["b"].prunable.all() and not traced.consumers["c"].prunable.any()
