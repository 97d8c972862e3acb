"""RegNet (Radosavovic et al. 2020): residual bottlenecks with grouped convolutions."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_GROUP = 8
# Width and depth of the stages.
_Y_400MF = ((48, 1), (104, 3), (208, 6), (440, 6))


def regnet_y_400mf(net: Net) -> Value:
    """Groups of 8 channels, squeeze-and-excitation in every block."""
    x = _conv(net, net.input, "stem", 32, 3, stride=2)
    for stage, (width, depth) in enumerate(_Y_400MF, start=1):
        for index in range(depth):
            x = _block(net, x, f"trunk_output.block{stage}.block{stage}-{index}", width, 1 if index else 2)
    return net.classify(x, "fc")


def _block(net: Net, x: Value, module: str, width: int, stride: int) -> Value:
    y = _conv(net, x, f"{module}.f.a", width)
    y = _conv(net, y, f"{module}.f.b", width, 3, stride=stride, groups=width // _GROUP)
    y = net.squeeze_excite(y, f"{module}.f.se", round(x.channels / 4), activation=net.relu)
    y = net.conv_bn(y, f"{module}.f.c.0", f"{module}.f.c.1", width)
    if x.channels == width:
        return net.relu(net.add(x, y, module), f"{module}.activation", kept=0.85)
    shortcut = net.conv_bn(x, f"{module}.proj.0", f"{module}.proj.1", width, stride=stride)
    return net.relu(net.add(shortcut, y, module), f"{module}.activation")


def _conv(net: Net, x: Value, module: str, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> Value:
    y = net.conv_bn(x, f"{module}.0", f"{module}.1", out, kernel, stride=stride, groups=groups)
    return net.relu(y, f"{module}.2")
