"""ShuffleNet (Zhang et al. 2018) and ShuffleNetV2 (Ma et al. 2018)."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_GROUPS = 3


def shufflenet_v1_g3(net: Net) -> Value:
    """Grouped 1x1 convolutions, whose groups are mixed by a permutation of the channels; width 1, three groups."""
    x = net.relu(net.conv_bn(net.input, "conv1.0", "conv1.1", 24, 3, stride=2), "conv1.2")
    x = net.max_pool(x, "maxpool", 3, 2, padding=1)
    for stage, out, depth in ((2, 240, 4), (3, 480, 8), (4, 960, 4)):
        for index in range(depth):
            x = _grouped_unit(net, x, f"stage{stage}.{index}", out)
    return net.classify(x, "fc", "globalpool")


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
    return _shuffle(net, net.concat([left, right], module), module, 2)


def _unit(net: Net, x: Value, module: str) -> Value:
    left, right = net.emit_split(x, module, parts=2, axis=1)
    right = _main_branch(net, right, module, right.channels, stride=1)
    return _shuffle(net, net.concat([left, right], module), module, 2)


def _main_branch(net: Net, x: Value, module: str, width: int, stride: int) -> Value:
    branch = f"{module}.branch2"
    x = net.relu(net.conv_bn(x, f"{branch}.0", f"{branch}.1", width), f"{branch}.2")
    x = net.conv_bn(x, f"{branch}.3", f"{branch}.4", width, 3, stride=stride, groups=width)
    return net.relu(net.conv_bn(x, f"{branch}.5", f"{branch}.6", width), f"{branch}.7")


def _grouped_unit(net: Net, x: Value, module: str, out: int) -> Value:
    stride = 1 if x.channels == out else 2
    # The few channels of the stem are not split, and a pooled shortcut brings the first channels of its stage along.
    groups = 1 if x.channels == 24 else _GROUPS
    width = out // 4
    y = net.relu(net.conv_bn(x, f"{module}.compress.0", f"{module}.compress.1", width, groups=groups), module)
    y = _shuffle(net, y, module, _GROUPS)
    y = net.conv_bn(y, f"{module}.depthwise", f"{module}.bn", width, 3, stride=stride, groups=width)
    left = x if stride == 1 else net.average_pool(x, f"{module}.avgpool", 3, 2, padding=1)
    new = out if stride == 1 else out - x.channels
    y = net.conv_bn(y, f"{module}.expand.0", f"{module}.expand.1", new, groups=_GROUPS)
    if stride == 1:
        return net.relu(net.add(left, y, module), module, kept=0.85)
    return net.relu(net.concat([left, y], module), module)


def _shuffle(net: Net, x: Value, module: str, groups: int) -> Value:
    """Interleave the groups of the channels."""
    split = net.reshape(x, [groups, x.channels // groups, x.size, x.size], module)
    interleaved = net.transpose(split, [0, 2, 1, 3, 4], module)
    return net.reshape(interleaved, [x.channels, x.size, x.size], module)
