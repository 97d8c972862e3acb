"""ResNet (He et al. 2016) and its relatives, as torchvision and timm have them: 3x3 convolutions take the stride."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .builder import Net
from .emitter import Value

ConvNorm = Callable[..., Value]
"""`Net.conv_bn`, or another convolution with a normalisation that takes its arguments."""


def resnet18(net: Net) -> Value:
    """Two basic blocks per stage."""
    x = _stem(net)
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for index in range(2):
            stride = 2 if stage > 1 and index == 0 else 1
            x = basic_block(net, x, f"layer{stage}.{index}", width, stride)
    return net.classify(x, "fc")


def resnet50(net: Net) -> Value:
    """Bottlenecks, 3, 4, 6 and 3 per stage."""
    return _bottleneck_network(net, (3, 4, 6, 3), groups=1, width_per_group=64)


def resnet152(net: Net) -> Value:
    """Bottlenecks, 3, 8, 36 and 3 per stage."""
    return _bottleneck_network(net, (3, 8, 36, 3), groups=1, width_per_group=64)


def resnet50_gn(net: Net) -> Value:
    """ResNet-50 with normalisations over groups of channels, which no convolution can absorb."""
    return _bottleneck_network(net, (3, 4, 6, 3), groups=1, width_per_group=64, conv_norm=_conv_gn)


def wide_resnet50_2(net: Net) -> Value:
    """ResNet-50 whose inner convolutions are twice as wide (Zagoruyko and Komodakis 2016)."""
    return _bottleneck_network(net, (3, 4, 6, 3), groups=1, width_per_group=128)


def resnext50_32x4d(net: Net) -> Value:
    """ResNet-50 whose 3x3 convolutions have 32 groups of 4 channels in the first stage (Xie et al. 2017)."""
    return _bottleneck_network(net, (3, 4, 6, 3), groups=32, width_per_group=4)


def resnet20_cifar(net: Net) -> Value:
    """The network for CIFAR-10: shortcuts to wider stages drop every other pixel and are padded with zero channels."""
    x = net.relu(net.conv_bn(net.input, "conv1", "bn1", 16, 3), "")
    for stage, width in enumerate((16, 32, 64), start=1):
        for index in range(3):
            module, stride = f"layer{stage}.{index}", 1 if x.channels == width else 2
            y = net.conv_bn(x, f"{module}.conv1", f"{module}.bn1", width, 3, stride=stride)
            y = net.conv_bn(net.relu(y, module), f"{module}.conv2", f"{module}.bn2", width, 3)
            shortcut = x if stride == 1 else _padded_shortcut(net, x, f"{module}.shortcut", width)
            x = net.relu(net.add(y, shortcut, module), module, kept=0.7)
    x = net.average_pool(x, "", x.size)
    return net.linear(net.reshape(x, [x.channels]), "linear", net.classes)


def _bottleneck_network(
    net: Net, depths: Sequence[int], groups: int, width_per_group: int, conv_norm: ConvNorm = Net.conv_bn
) -> Value:
    x = net.relu(conv_norm(net, net.input, "conv1", "bn1", 64, 7, stride=2), "relu")
    x = net.max_pool(x, "maxpool", 3, 2, padding=1)
    for stage, depth in enumerate(depths, start=1):
        out = 256 << (stage - 1)
        width = groups * width_per_group << (stage - 1)
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            module = f"layer{stage}.{index}"
            x = bottleneck(net, x, module, width=width, out=out, stride=stride, groups=groups, conv_norm=conv_norm)
    return net.classify(x, "fc")


def _stem(net: Net) -> Value:
    x = net.relu(net.conv_bn(net.input, "conv1", "bn1", 64, 7, stride=2), "relu")
    return net.max_pool(x, "maxpool", 3, 2, padding=1)


def _conv_gn(net: Net, x: Value, conv: str, norm: str, *shape: int, **options: int) -> Value:
    return net.group_norm(net.conv(x, conv, *shape, bias=False, **options), norm, 32)


def _padded_shortcut(net: Net, x: Value, module: str, width: int) -> Value:
    y = net.slice(net.slice(x, module, 2, (0, None), 2), module, 3, (0, None), 2)
    missing = (width - x.channels) // 2
    return net.pad(y, module, [0, missing, 0, 0], [0, missing, 0, 0])


def basic_block(
    net: Net, x: Value, module: str, width: int, stride: int = 1, *, shortcut: Value | None = None
) -> Value:
    """Two 3x3 convolutions around a shortcut, which is x, projected where it has to be, unless another is given."""
    y = net.conv_bn(x, f"{module}.conv1", f"{module}.bn1", width, 3, stride=stride)
    y = net.relu(y, f"{module}.relu")
    y = net.conv_bn(y, f"{module}.conv2", f"{module}.bn2", width, 3)
    return join(net, x if shortcut is None else shortcut, y, module, 1 if shortcut else stride)


def bottleneck(
    net: Net,
    x: Value,
    module: str,
    *,
    width: int,
    out: int,
    stride: int = 1,
    groups: int = 1,
    conv_norm: ConvNorm = Net.conv_bn,
) -> Value:
    """A 3x3 convolution between two 1x1 ones, around a shortcut."""
    y = net.relu(conv_norm(net, x, f"{module}.conv1", f"{module}.bn1", width), f"{module}.relu")
    y = conv_norm(net, y, f"{module}.conv2", f"{module}.bn2", width, 3, stride=stride, groups=groups)
    y = net.relu(y, f"{module}.relu")
    y = conv_norm(net, y, f"{module}.conv3", f"{module}.bn3", out)
    return join(net, x, y, module, stride, conv_norm=conv_norm)


def join(net: Net, x: Value, y: Value, module: str, stride: int = 1, *, conv_norm: ConvNorm = Net.conv_bn) -> Value:
    """Add the shortcut, projected where the shapes differ."""
    if stride == 1 and x.channels == y.channels:
        # x comes out of a ReLU, so the sum is positive for the most part.
        return net.relu(net.add(y, x, module), f"{module}.relu", kept=0.85)
    shortcut = conv_norm(net, x, f"{module}.downsample.0", f"{module}.downsample.1", y.channels, stride=stride)
    return net.relu(net.add(y, shortcut, module), f"{module}.relu")
