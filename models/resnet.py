"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017), as torchvision has them: 3x3 convolutions take the stride."""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Net
from .emitter import Value


def resnet18(net: Net) -> Value:
    """Two basic blocks per stage."""
    x = _stem(net)
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for index in range(2):
            stride = 2 if stage > 1 and index == 0 else 1
            x = _basic_block(net, x, f"layer{stage}.{index}", width, stride)
    return net.classify(x, "fc")


def resnet50(net: Net) -> Value:
    """Bottlenecks, 3, 4, 6 and 3 per stage."""
    return _bottleneck_network(net, (3, 4, 6, 3), groups=1, width_per_group=64)


def resnext50_32x4d(net: Net) -> Value:
    """ResNet-50 whose 3x3 convolutions have 32 groups of 4 channels (in the first stage)."""
    return _bottleneck_network(net, (3, 4, 6, 3), groups=32, width_per_group=4)


def _bottleneck_network(net: Net, depths: Sequence[int], groups: int, width_per_group: int) -> Value:
    x = _stem(net)
    for stage, depth in enumerate(depths, start=1):
        out = 256 << (stage - 1)
        width = groups * width_per_group << (stage - 1)
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            x = _bottleneck(net, x, f"layer{stage}.{index}", width=width, out=out, stride=stride, groups=groups)
    return net.classify(x, "fc")


def _stem(net: Net) -> Value:
    x = net.relu(net.conv_bn(net.input, "conv1", "bn1", 64, 7, stride=2), "relu")
    return net.max_pool(x, "maxpool", 3, 2, padding=1)


def _basic_block(net: Net, x: Value, module: str, width: int, stride: int) -> Value:
    y = net.conv_bn(x, f"{module}.conv1", f"{module}.bn1", width, 3, stride=stride)
    y = net.relu(y, f"{module}.relu")
    y = net.conv_bn(y, f"{module}.conv2", f"{module}.bn2", width, 3)
    return _join(net, x, y, module, stride)


def _bottleneck(net: Net, x: Value, module: str, *, width: int, out: int, stride: int, groups: int) -> Value:
    y = net.relu(net.conv_bn(x, f"{module}.conv1", f"{module}.bn1", width), f"{module}.relu")
    y = net.conv_bn(y, f"{module}.conv2", f"{module}.bn2", width, 3, stride=stride, groups=groups)
    y = net.relu(y, f"{module}.relu")
    y = net.conv_bn(y, f"{module}.conv3", f"{module}.bn3", out)
    return _join(net, x, y, module, stride)


def _join(net: Net, x: Value, y: Value, module: str, stride: int) -> Value:
    """Add the shortcut, projected where the shapes differ."""
    if stride == 1 and x.channels == y.channels:
        # x comes out of a ReLU, so the sum is positive for the most part.
        return net.relu(net.add(y, x, module), f"{module}.relu", kept=0.85)
    shortcut = net.conv_bn(x, f"{module}.downsample.0", f"{module}.downsample.1", y.channels, stride=stride)
    return net.relu(net.add(y, shortcut, module), f"{module}.relu")
