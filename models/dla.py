"""Deep layer aggregation (Yu et al. 2018): blocks in trees, whose roots join all that lies below."""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Net
from .emitter import Value
from .resnet import basic_block


def dla34(net: Net) -> Value:
    """Trees of depth 1, 2, 2 and 1 over basic blocks."""
    x = net.relu(net.conv_bn(net.input, "base_layer.0", "base_layer.1", 16, 7), "base_layer.2")
    x = net.relu(net.conv_bn(x, "level0.0", "level0.1", 16, 3), "level0.2")
    x = net.relu(net.conv_bn(x, "level1.0", "level1.1", 32, 3, stride=2), "level1.2")
    for level, (depth, width) in enumerate(((1, 64), (2, 128), (2, 256), (1, 512)), start=2):
        bottom = net.max_pool(x, f"level{level}.downsample", 2, 2)
        below = [] if level == 2 else [bottom]
        x = _tree(net, x, f"level{level}", width=width, depth=depth, bottom=bottom, below=below)
    x = net.conv(net.global_average_pool(x, "global_pool.pool"), "fc", net.classes)
    return net.flatten(x, "flatten")


def _tree(
    net: Net, x: Value, module: str, *, width: int, depth: int, bottom: Value | None, below: Sequence[Value]
) -> Value:
    """A tree over x; `bottom` is x after pooling if the tree halves the resolution, `below` what its root joins too."""
    if depth > 1:
        first = _tree(net, x, f"{module}.tree1", width=width, depth=depth - 1, bottom=bottom, below=[])
        below = [*below, first]
        return _tree(net, first, f"{module}.tree2", width=width, depth=depth - 1, bottom=None, below=below)
    shortcut = x if bottom is None else bottom
    if x.channels != width:
        shortcut = net.conv_bn(shortcut, f"{module}.project.0", f"{module}.project.1", width)
    first = basic_block(net, x, f"{module}.tree1", width, 1 if bottom is None else 2, shortcut=shortcut)
    second = basic_block(net, first, f"{module}.tree2", width)
    joined = net.concat([second, first, *below], f"{module}.root")
    return net.relu(net.conv_bn(joined, f"{module}.root.conv", f"{module}.root.bn", width), f"{module}.root.relu")
