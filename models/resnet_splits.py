"""ResNets that split their 3x3 convolution: Res2Net (Gao et al. 2019) and ResNeSt (Zhang et al. 2020)."""

from __future__ import annotations

from .builder import Net
from .emitter import Value
from .resnet import join

_RADIX = 2


def res2net50_26w_4s(net: Net) -> Value:
    """ResNet-50 whose bottlenecks see four slices of 26 channels, each after the one before it is added."""
    x = net.relu(net.conv_bn(net.input, "conv1", "bn1", 64, 7, stride=2), "act1")
    x = net.max_pool(x, "maxpool", 3, 2, padding=1)
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            x = _bottle2neck(net, x, f"layer{stage}.{index}", planes=32 << stage, stride=stride, first=index == 0)
    return net.classify(x, "fc", "global_pool.pool")


def resnest14d(net: Net) -> Value:
    """One block per stage; two halves of the channels are weighed against each other by a softmax."""
    x = net.input
    for index, width in enumerate((32, 32)):
        x = net.conv_bn(x, f"conv1.{3 * index}", f"conv1.{3 * index + 1}", width, 3, stride=1 if index else 2)
        x = net.relu(x, f"conv1.{3 * index + 2}")
    x = net.relu(net.conv_bn(x, "conv1.6", "bn1", 64, 3), "act1")
    x = net.max_pool(x, "maxpool", 3, 2, padding=1)
    for stage in range(1, 5):
        x = _split_attention_block(net, x, f"layer{stage}.0", planes=32 << stage, stride=1 if stage == 1 else 2)
    return net.classify(x, "fc", "global_pool.pool")


def _bottle2neck(net: Net, x: Value, module: str, *, planes: int, stride: int, first: bool) -> Value:
    width = planes * 26 // 64
    y = net.relu(net.conv_bn(x, f"{module}.conv1", f"{module}.bn1", 4 * width), f"{module}.relu")
    *parts, last = net.emit_split(y, module, 4, axis=1)
    done: list[Value] = []
    for index, part in enumerate(parts):
        if done and not first:
            part = net.add(done[-1], part, module)  # noqa: PLW2901
        z = net.conv_bn(part, f"{module}.convs.{index}", f"{module}.bns.{index}", width, 3, stride=stride)
        done.append(net.relu(z, f"{module}.relu"))
    done.append(net.average_pool(last, f"{module}.pool", 3, stride, padding=1) if first else last)
    y = net.conv_bn(net.concat(done, module), f"{module}.conv3", f"{module}.bn3", 4 * planes)
    return join(net, x, y, module, stride)


def _split_attention_block(net: Net, x: Value, module: str, *, planes: int, stride: int) -> Value:
    y = net.relu(net.conv_bn(x, f"{module}.conv1", f"{module}.bn1", planes), f"{module}.act1")
    y = _split_attention(net, y, f"{module}.conv2")
    if stride > 1:
        y = net.average_pool(y, f"{module}.avd_last", 3, stride, padding=1)
    y = net.conv_bn(y, f"{module}.conv3", f"{module}.bn3", 4 * planes)
    pooled = net.average_pool(x, f"{module}.downsample.0", 2, stride, ceil=True) if stride > 1 else x
    shortcut = net.conv_bn(pooled, f"{module}.downsample.1", f"{module}.downsample.2", 4 * planes)
    return net.relu(net.add(y, shortcut, module), f"{module}.act3")


def _split_attention(net: Net, x: Value, module: str) -> Value:
    width, size = x.channels, x.size
    y = net.conv_bn(x, f"{module}.conv", f"{module}.bn0", _RADIX * width, 3, groups=_RADIX)
    y = net.reshape(net.relu(y, f"{module}.act0"), [_RADIX, width, size, size], module)
    means = net.spatial_mean(net.reduce("ReduceSum", y, module, [1], keepdims=False), module, keepdims=True)
    z = net.conv_bn(means, f"{module}.fc1", f"{module}.bn1", max(32, width // 2), bias=True)
    z = net.conv(net.relu(z, f"{module}.act1"), f"{module}.fc2", _RADIX * width)
    z = net.transpose(net.reshape(z, [1, _RADIX, width], module), [0, 2, 1, 3], f"{module}.rsoftmax")
    z = net.emit("Softmax", [z], f"{module}.rsoftmax", power=0.3, axis=1)
    z = net.reshape(net.reshape(z, [-1], module), [_RADIX * width, 1, 1], module)
    z = net.reshape(z, [_RADIX, width, 1, 1], module)
    y = net.emit("Mul", [y, z], module, power=0.3 * y.power)
    y = net.reduce("ReduceSum", y, module, [1], keepdims=False)
    return Value(y.tensor, y.shape, _RADIX * y.power)
