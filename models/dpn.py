"""Dual path network (Chen et al. 2017): one tensor holds channels that are added to and channels that only grow."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_EPSILON = 1e-3
# Width of the residual path, depth, channels that every block adds.
_STAGES = ((64, 3, 16), (128, 4, 32), (256, 12, 32), (512, 3, 64))


def dpn68b(net: Net) -> Value:
    """Normalisation and activation before every convolution but the first."""
    x = net.conv_bn(net.input, "features.conv1_1.conv", "features.conv1_1.bn", 10, 3, stride=2, epsilon=_EPSILON)
    x = net.max_pool(net.relu(x, "features.conv1_1.act"), "features.conv1_pool", 3, 2, padding=1)
    for stage, (width, depth, growth) in enumerate(_STAGES, start=2):
        for index in range(1, depth + 1):
            x = _block(net, x, f"features.conv{stage}_{index}", width=width, growth=growth, first=index == 1)
    x = net.emit(
        "Elu", [net.batch_norm(x, "features.conv5_bn_ac.bn", epsilon=_EPSILON)], "features", power=0.6, alpha=1.0
    )
    x = net.conv(net.global_average_pool(x, "global_pool.pool"), "classifier", net.classes)
    return net.flatten(x, "flatten")


def _block(net: Net, x: Value, module: str, *, width: int, growth: int, first: bool) -> Value:
    stride = 2 if first and width > 64 else 1
    carried = x
    if first:
        name = f"{module}.c1x1_w_s{stride}"
        carried = net.conv(_activated(net, x, name), f"{name}.conv", width + 2 * growth, stride=stride, bias=False)
    added_to = net.slice(carried, module, 1, (0, width))
    grown = net.slice(carried, module, 1, (width, None))
    a, b, c = (f"{module}.c{name}" for name in ("1x1_a", "3x3_b", "1x1_c"))
    y = net.conv(_activated(net, x, a), f"{a}.conv", 2 * width, bias=False)
    y = net.conv(_activated(net, y, b), f"{b}.conv", 2 * width, 3, stride=stride, groups=32, bias=False)
    y = _activated(net, y, c)
    residual, new = net.conv(y, f"{c}1", width, bias=False), net.conv(y, f"{c}2", growth, bias=False)
    return net.concat([net.add(added_to, residual, module), grown, new], module)


def _activated(net: Net, x: Value, module: str) -> Value:
    return net.relu(net.batch_norm(x, f"{module}.bn", epsilon=_EPSILON), f"{module}.bn.act")
