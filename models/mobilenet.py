"""MobileNetV2 and V3 (Sandler et al. 2018, Howard et al. 2019), MnasNet (Tan et al. 2019): inverted residuals."""

from __future__ import annotations

from collections.abc import Callable

from .builder import Net
from .emitter import Value

# Expansion, kernel, stride of the first block, output channels, blocks.
_MOBILENET_V2_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 3, 2, 32, 3),
    (6, 3, 2, 64, 4),
    (6, 3, 1, 96, 3),
    (6, 3, 2, 160, 3),
    (6, 3, 1, 320, 1),
)
_MNASNET_STAGES = (
    (3, 3, 2, 24, 3),
    (3, 5, 2, 40, 3),
    (6, 5, 2, 80, 3),
    (6, 3, 1, 96, 2),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)

# Kernel, inner channels, output channels, squeeze-and-excitation, hard swish, stride.
_MOBILENET_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    *((5, 120, 40, True, False, 1),) * 2,
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    *((3, 184, 80, False, True, 1),) * 2,
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    *((5, 960, 160, True, True, 1),) * 2,
)
# A quarter of the inner channels in multiples of 8, which may not fall short by more than a tenth.
_V3_SQUEEZE = {72: 24, 120: 32, 480: 120, 672: 168, 960: 240}
_V3_EPSILON = 1e-3


def mobilenet_v2(net: Net) -> Value:
    """Width 1.0."""
    x = net.relu6(net.conv_bn(net.input, "features.0.0", "features.0.1", 32, 3, stride=2), "features.0.2")
    index = 1
    for expansion, _, first_stride, out, depth in _MOBILENET_V2_STAGES:
        for block in range(depth):
            stride = first_stride if block == 0 else 1
            x = _mobilenet_block(net, x, f"features.{index}", expansion=expansion, stride=stride, out=out)
            index += 1
    x = net.relu6(net.conv_bn(x, f"features.{index}.0", f"features.{index}.1", 1280), f"features.{index}.2")
    return net.classify(x, "classifier.1", pool="")


def mobilenet_v3_large(net: Net) -> Value:
    """Squeeze-and-excitation in some blocks, hard swish in the later ones."""
    x = _v3_conv(net, net.input, "features.0", 16, 3, stride=2, activation=net.hard_swish)
    for index, settings in enumerate(_MOBILENET_V3_LARGE, start=1):
        x = _v3_block(net, x, f"features.{index}", settings)
    x = _v3_conv(net, x, f"features.{len(_MOBILENET_V3_LARGE) + 1}", 960, activation=net.hard_swish)
    x = net.linear(net.flatten(net.global_average_pool(x, "avgpool")), "classifier.0", 1280)
    return net.linear(net.hard_swish(x, "classifier.1"), "classifier.3", net.classes)


def mnasnet1_0(net: Net) -> Value:
    """MnasNet-B1, depth multiplier 1.0."""
    x = net.relu(net.conv_bn(net.input, "layers.0", "layers.1", 32, 3, stride=2), "layers.2")
    x = net.relu(net.conv_bn(x, "layers.3", "layers.4", 32, 3, groups=32), "layers.5")
    x = net.conv_bn(x, "layers.6", "layers.7", 16)
    for index, (expansion, kernel, first_stride, out, depth) in enumerate(_MNASNET_STAGES, start=8):
        for block in range(depth):
            stride = first_stride if block == 0 else 1
            x = _mnasnet_block(
                net, x, f"layers.{index}.{block}", expansion=expansion, kernel=kernel, stride=stride, out=out
            )
    x = net.relu(net.conv_bn(x, "layers.14", "layers.15", 1280), "layers.16")
    return net.linear(net.spatial_mean(x), "classifier.1", net.classes)


def _mobilenet_block(net: Net, x: Value, module: str, *, expansion: int, stride: int, out: int) -> Value:
    width = x.channels * expansion
    y, index = x, 0
    if expansion > 1:
        conv = f"{module}.conv.0"
        y, index = net.relu6(net.conv_bn(y, f"{conv}.0", f"{conv}.1", width), f"{conv}.2"), 1
    conv = f"{module}.conv.{index}"
    y = net.conv_bn(y, f"{conv}.0", f"{conv}.1", width, 3, stride=stride, groups=width)
    y = net.relu6(y, f"{conv}.2")
    y = net.conv_bn(y, f"{module}.conv.{index + 1}", f"{module}.conv.{index + 2}", out)
    return net.add(x, y, module) if stride == 1 and x.channels == out else y


def _mnasnet_block(net: Net, x: Value, module: str, *, expansion: int, kernel: int, stride: int, out: int) -> Value:
    width = x.channels * expansion
    layers = f"{module}.layers"
    y = net.relu(net.conv_bn(x, f"{layers}.0", f"{layers}.1", width), f"{layers}.2")
    y = net.conv_bn(y, f"{layers}.3", f"{layers}.4", width, kernel, stride=stride, groups=width)
    y = net.relu(y, f"{layers}.5")
    y = net.conv_bn(y, f"{layers}.6", f"{layers}.7", out)
    return net.add(y, x, module) if stride == 1 and x.channels == out else y


def _v3_block(net: Net, x: Value, module: str, settings: tuple[int, int, int, bool, bool, int]) -> Value:
    kernel, width, out, excite, swish, stride = settings
    activation = net.hard_swish if swish else net.relu
    blocks = (f"{module}.block.{index}" for index in range(4))
    y = x
    if width != x.channels:
        y = _v3_conv(net, y, next(blocks), width, activation=activation)
    y = _v3_conv(net, y, next(blocks), width, kernel, stride=stride, groups=width, activation=activation)
    if excite:
        y = net.squeeze_excite(y, next(blocks), _V3_SQUEEZE[width], activation=net.relu, gate=net.hard_sigmoid)
    y = _v3_conv(net, y, next(blocks), out)
    return net.add(y, x, module) if stride == 1 and x.channels == out else y


def _v3_conv(
    net: Net,
    x: Value,
    module: str,
    out: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[Value, str], Value] | None = None,
) -> Value:
    y = net.conv_bn(x, f"{module}.0", f"{module}.1", out, kernel, stride=stride, groups=groups, epsilon=_V3_EPSILON)
    return y if activation is None else activation(y, f"{module}.2")
