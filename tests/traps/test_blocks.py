"""Blocks of architectures that pruning tools stumble over: every prunable channel goes once, in every lowering."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from models import ARCHITECTURES, build
from tests.builders import Net
from tests.traps.trapping import check_halves

Block = Callable[[Net, str], str]

BUILDERS = (
    "resnet20_cifar", "res2net50_26w_4s", "ghostnet_100", "shufflenet_v1_g3", "shufflenet_v2_x1_0", "resnest14d",
    "regnet_y_400mf", "swin_t", "resnet50_gn", "espcn_x3", "edsr_baseline_x2", "dpn68b", "hrnet_w18",
)  # fmt: skip


def conv_bn(net: Net, x: str, out: int, k: int = 1, name: str = "", **more: int) -> str:
    return net.op("Relu", net.batch_norm(net.conv(x, out, k, name=name, **more)))


def shuffled(net: Net, x: str, groups: int) -> str:
    n, channels, h, w = net.shapes[x]
    y = net.op("Transpose", net.reshape(x, n, groups, channels // groups, h, w), perm=[0, 2, 1, 3, 4])
    return net.reshape(y, n, channels, h, w)


def excited(net: Net, x: str, squeeze: int) -> str:
    channels = net.shapes[x][1]
    y = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), squeeze))
    return net.op("Mul", x, net.op("Sigmoid", net.conv(y, channels)))


def res2net(net: Net, x: str) -> str:
    """Slices of the channels, each added to what the layer before has made of its slice."""
    *parts, last = net.split(conv_bn(net, x, 24), [6, 6, 6, 6])
    done: list[str] = []
    for part in parts:
        done.append(conv_bn(net, net.op("Add", done[-1], part) if done else part, 6, 3))
    return net.op("Add", x, net.conv(net.op("Concat", *done, last, axis=1), 16))


def ghost(net: Net, x: str) -> str:
    """Half of the features are depthwise functions of the other half; of an odd number the last is cut off."""

    def module(x: str, out: int) -> str:
        first = conv_bn(net, x, -(-out // 2))
        both = net.op("Concat", first, net.op("Relu", net.depthwise(first)), axis=1)
        return net.slice(both, [1], [0], [out])

    y = excited(net, net.depthwise(module(x, 20)), 4)
    return net.op("Add", module(net.depthwise(module(y, 21)), 16), x)


def shufflenet_v1(net: Net, x: str) -> str:
    """Grouped layers with a shuffle between them, first beside a pooled shortcut, then around one."""

    def branch(x: str, out: int) -> str:
        return net.conv(net.depthwise(shuffled(net, conv_bn(net, x, 12, groups=2), 2)), out, groups=2)

    wide = net.op("Concat", net.op("AveragePool", x, kernel_shape=[1, 1]), branch(x, 8), axis=1)
    return net.op("Relu", net.op("Add", wide, branch(wide, 24)))


def shufflenet_v2(net: Net, x: str) -> str:
    """Half of the channels pass untouched, and the halves are interleaved; twice."""
    for _ in range(2):
        left, right = net.split(x, [8, 8])
        right = conv_bn(net, net.depthwise(conv_bn(net, right, 8)), 8)
        x = shuffled(net, net.op("Concat", left, right, axis=1), 2)
    return x


def resnest(net: Net, x: str) -> str:
    """Two halves of a grouped layer's channels, weighed against each other by a softmax."""
    y = net.reshape(conv_bn(net, x, 16, 3, groups=2), 1, 2, 8, 6, 6)
    means = net.reduce("ReduceMean", net.reduce("ReduceSum", y, [1], 0), [2, 3])
    z = net.reshape(net.conv(conv_bn(net, means, 6), 16), 1, 1, 2, 8)
    z = net.op("Softmax", net.op("Transpose", z, perm=[0, 2, 1, 3]), axis=1)
    z = net.reshape(net.reshape(net.reshape(z, 1, -1), 1, -1, 1, 1), 1, 2, 8, 1, 1)
    return net.op("Add", net.conv(net.reduce("ReduceSum", net.op("Mul", y, z), [1], 0), 16), x)


def regnet(net: Net, x: str) -> str:
    """A layer in groups of eight, squeeze and excitation, a shortcut."""
    y = excited(net, conv_bn(net, conv_bn(net, x, 24), 24, 3, groups=3), 4)
    return net.op("Relu", net.op("Add", net.conv(y, 16), x))


def swin(net: Net, x: str) -> str:
    """Attention in shifted windows of 3x3 tokens, a feed-forward layer, and four tokens merged into one."""

    def normalised(x: str) -> str:
        channels = net.shapes[x][-1]
        return net.op("LayerNormalization", x, net.weight(net.normal(channels)), net.weight(net.normal(channels)))

    def linear(x: str, out: int) -> str:
        return net.op("Add", net.op("MatMul", x, net.weight(net.normal(out, net.shapes[x][-1]).T)), zeros(out))

    def zeros(size: int) -> str:
        return net.weight(net.normal(size))

    def rolled(x: str, by: int) -> str:
        for axis in (1, 2):
            x = net.op("Concat", net.slice(x, [axis], [by], [99]), net.slice(x, [axis], [0], [by]), axis=axis)
        return x

    x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    y = net.reshape(rolled(normalised(x), 1), 1, 2, 3, 2, 3, 16)
    y = net.reshape(net.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), 4, 9, 16)
    qkv = net.op("Transpose", net.reshape(linear(y, 48), 4, 9, 3, 4, 4), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", qkv, net.weight(np.int64(i)), axis=0) for i in range(3))
    scores = net.op("MatMul", net.op("Mul", q, net.constant(0.5)), net.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = net.op("Add", scores, net.weight(net.normal(1, 4, 9, 9)))
    scores = net.op("Add", net.reshape(scores, 1, 4, 4, 9, 9), net.weight(net.normal(4, 1, 9, 9)))
    y = net.op("MatMul", net.op("Softmax", net.reshape(scores, -1, 4, 9, 9), axis=-1), v)
    y = linear(net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 4, 9, 16), 16)
    y = net.op("Transpose", net.reshape(y, 1, 2, 2, 3, 3, 16), perm=[0, 1, 3, 2, 4, 5])
    x = net.op("Add", x, rolled(net.reshape(y, 1, 6, 6, 16), 5))
    x = net.op("Add", x, linear(net.op("Gelu", linear(normalised(x), 32)), 16))
    parts = [net.slice(x, [1, 2], [row, column], [6, 6], [2, 2]) for column in (0, 1) for row in (0, 1)]
    x = linear(normalised(net.op("Concat", *parts, axis=-1)), 24)
    return net.op("Transpose", x, perm=[0, 3, 1, 2])


def option_a(net: Net, x: str) -> str:
    """A CIFAR ResNet's shortcut: every other pixel, and zeros for the new channels."""
    y = net.conv(conv_bn(net, x, 24, 3, strides=[2, 2]), 24, 3)
    narrow = net.slice(x, [2, 3], [0, 0], [6, 6], [2, 2])
    return net.op("Relu", net.op("Add", y, net.pad(narrow, [0, 4, 0, 0, 0, 4, 0, 0])))


def dual_path(net: Net, x: str) -> str:
    """One part of every layer's output is added to, the other is appended."""
    kept, dense = net.split(net.conv(x, 20), [16, 4])
    for _ in range(2):
        y = conv_bn(net, conv_bn(net, net.op("Concat", kept, dense, axis=1), 12), 12, 3, groups=3)
        added, appended = net.split(net.conv(y, 20), [16, 4])
        kept, dense = net.op("Add", kept, added), net.op("Concat", dense, appended, axis=1)
    return net.op("Concat", kept, dense, axis=1)


def fused_branches(net: Net, x: str) -> str:
    """HRNet: two resolutions, each the sum of both."""
    low = conv_bn(net, x, 12, 3, strides=[2, 2])
    up = net.op("Resize", net.conv(low, 16), "", net.weight(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    high = net.op("Relu", net.op("Add", x, up))
    low = net.op("Relu", net.op("Add", low, net.conv(x, 12, 3, strides=[2, 2])))
    scales = net.weight(np.array([1, 1, 2, 2], np.float32))
    return net.op("Concat", high, net.op("Resize", low, "", scales, mode="nearest"), axis=1)


BLOCKS: dict[str, Block] = {
    block.__name__: block
    for block in (
        res2net, ghost, shufflenet_v1, shufflenet_v2, resnest, regnet, swin, option_a, dual_path, fused_branches,
    )
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, seed: int) -> None:
    net = Net(opset=20, ir_version=9, seed=seed)
    x = net.op("Relu", net.conv(net.input("x", (1, 3, 6, 6)), 16, 3, name="stem"))
    y = net.op("Relu", BLOCKS[name](net, x))
    net.output(net.conv(y, 5, name="head"))
    traced = check_halves(net.model(), seed)
    held = [name for name, consumer in traced.consumers.items() if not consumer.prunable.all()]
    assert len(held) == (4 if name == "swin" else 1), held  # the stem reads the input, others what was normalised


@pytest.mark.parametrize("name", BUILDERS if os.environ.get("UCPE_SEEDS") else BUILDERS[:1])
def test_whole_network(name: str) -> None:
    """``UCPE_SEEDS=1`` takes them all."""
    check_halves(build(name, image=ARCHITECTURES[name].small))
