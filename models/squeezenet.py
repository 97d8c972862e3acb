"""SqueezeNet (Iandola et al. 2016)."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_POOL = (0, 0)
# Squeezed and expanded channels (those of each of the two expansions), by position in "features".
_FIRES = (_POOL, (16, 64), (16, 64), (32, 128), _POOL, (32, 128), (48, 192), (48, 192), (64, 256), _POOL, (64, 256))


def squeezenet1_0(net: Net) -> Value:
    """Fire modules, no batch normalisation, and a convolution for a classifier."""
    x = net.relu(net.conv(net.input, "features.0", 96, 7, stride=2, padding=0), "features.1")
    for index, (squeezed, expanded) in enumerate(_FIRES, start=2):
        module = f"features.{index}"
        x = _fire(net, x, module, squeezed, expanded) if squeezed else net.max_pool(x, module, 3, 2, ceil=True)
    x = net.relu(net.conv(x, "classifier.1", net.classes), "classifier.2")
    return net.flatten(net.global_average_pool(x, "classifier.3"))


def _fire(net: Net, x: Value, module: str, squeezed: int, expanded: int) -> Value:
    x = net.relu(net.conv(x, f"{module}.squeeze", squeezed), f"{module}.squeeze_activation")
    small = net.relu(net.conv(x, f"{module}.expand1x1", expanded), f"{module}.expand1x1_activation")
    large = net.relu(net.conv(x, f"{module}.expand3x3", expanded, 3), f"{module}.expand3x3_activation")
    return net.concat([small, large], module)
