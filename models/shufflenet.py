"""ShuffleNetV2 (Ma et al. 2018)."""

from __future__ import annotations

from .builder import Net
from .emitter import Value


def shufflenet_v2_x1_0(net: Net) -> Value:
    """Half of the channels pass through a unit untouched, then the halves are interleaved."""
    x = net.relu(net.conv_bn(net.input, "conv1.0", "conv1.1", 24, 3, stride=2), "conv1.2")
    x = net.max_pool(x, "maxpool", 3, 2, padding=1)
    for stage, out, depth in ((2, 116, 4), (3, 232, 8), (4, 464, 4)):
        x = _down_unit(net, x, f"stage{stage}.0", out)
        for index in range(1, depth):
            x = _unit(net, x, f"stage{stage}.{index}")
    x = net.relu(net.conv_bn(x, "conv5.0", "conv5.1", 1024), "conv5.2")
    return net.linear(net.spatial_mean(x), "fc", net.classes)


def _down_unit(net: Net, x: Value, module: str, out: int) -> Value:
    branch = f"{module}.branch1"
    left = net.conv_bn(x, f"{branch}.0", f"{branch}.1", x.channels, 3, stride=2, groups=x.channels)
    left = net.relu(net.conv_bn(left, f"{branch}.2", f"{branch}.3", out // 2), f"{branch}.4")
    right = _main_branch(net, x, module, out // 2, stride=2)
    return _shuffle(net, net.concat([left, right], module), module)


def _unit(net: Net, x: Value, module: str) -> Value:
    left, right = net.emit_split(x, module, parts=2, axis=1)
    right = _main_branch(net, right, module, right.channels, stride=1)
    return _shuffle(net, net.concat([left, right], module), module)


def _main_branch(net: Net, x: Value, module: str, width: int, stride: int) -> Value:
    branch = f"{module}.branch2"
    x = net.relu(net.conv_bn(x, f"{branch}.0", f"{branch}.1", width), f"{branch}.2")
    x = net.conv_bn(x, f"{branch}.3", f"{branch}.4", width, 3, stride=stride, groups=width)
    return net.relu(net.conv_bn(x, f"{branch}.5", f"{branch}.6", width), f"{branch}.7")


def _shuffle(net: Net, x: Value, module: str) -> Value:
    """Interleave the two halves of the channels."""
    x_halves = net.reshape(x, [2, x.channels // 2, x.size, x.size], module)
    interleaved = net.transpose(x_halves, [0, 2, 1, 3, 4], module)
    return net.reshape(interleaved, [x.channels, x.size, x.size], module)
