"""GhostNet (Han et al. 2020): half of all features are cheap depthwise functions of the other half."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

# Kernel, inner channels, output channels, squeeze-and-excitation, stride.
_STAGES = (
    ((3, 16, 16, False, 1),),
    ((3, 48, 24, False, 2),),
    ((3, 72, 24, False, 1),),
    ((5, 72, 40, True, 2),),
    ((5, 120, 40, True, 1),),
    ((3, 240, 80, False, 2),),
    ((3, 200, 80, False, 1), *((3, 184, 80, False, 1),) * 2, (3, 480, 112, True, 1), (3, 672, 112, True, 1)),
    ((5, 672, 160, True, 2),),
    ((5, 960, 160, False, 1), (5, 960, 160, True, 1)) * 2,
)


def ghostnet_100(net: Net) -> Value:
    """Width 1.0."""
    x = net.relu(net.conv_bn(net.input, "conv_stem", "bn1", 16, 3, stride=2), "act1")
    for stage, blocks in enumerate(_STAGES):
        for index, (kernel, inner, out, excite, stride) in enumerate(blocks):
            module = f"blocks.{stage}.{index}"
            y = _ghost_module(net, x, f"{module}.ghost1", inner, activate=True)
            if stride > 1:
                y = net.conv_bn(y, f"{module}.conv_dw", f"{module}.bn_dw", inner, kernel, stride=stride, groups=inner)
            if excite:
                y = _excite(net, y, f"{module}.se", inner)
            y = _ghost_module(net, y, f"{module}.ghost2", out, activate=False)
            x = net.add(y, _shortcut(net, x, f"{module}.shortcut", out, kernel=kernel, stride=stride), module)
    x = net.relu(net.conv_bn(x, f"blocks.{len(_STAGES)}.0.conv", f"blocks.{len(_STAGES)}.0.bn1", 960), "blocks")
    x = net.relu(net.conv(net.global_average_pool(x, "global_pool.pool"), "conv_head", 1280), "act2")
    return net.linear(net.flatten(x), "classifier", net.classes)


def _ghost_module(net: Net, x: Value, module: str, out: int, *, activate: bool) -> Value:
    primary, cheap = f"{module}.primary_conv", f"{module}.cheap_operation"
    first = net.conv_bn(x, f"{primary}.0", f"{primary}.1", out // 2)
    first = net.relu(first, f"{primary}.2") if activate else first
    second = net.conv_bn(first, f"{cheap}.0", f"{cheap}.1", out // 2, 3, groups=out // 2)
    second = net.relu(second, f"{cheap}.2") if activate else second
    return net.slice(net.concat([first, second], module), module, 1, (0, out))


def _excite(net: Net, x: Value, module: str, inner: int) -> Value:
    squeeze = max(4, (inner // 4 + 2) // 4 * 4)
    names = ("conv_reduce", "conv_expand")
    return net.squeeze_excite(x, module, squeeze, names=names, activation=net.relu, gate=net.hard_sigmoid, reduced=True)


def _shortcut(net: Net, x: Value, module: str, out: int, *, kernel: int, stride: int) -> Value:
    if x.channels == out and stride == 1:
        return x
    y = net.conv_bn(x, f"{module}.0", f"{module}.1", x.channels, kernel, stride=stride, groups=x.channels)
    return net.conv_bn(y, f"{module}.2", f"{module}.3", out)
