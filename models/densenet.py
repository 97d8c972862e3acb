"""DenseNet (Huang et al. 2017): every layer reads the outputs of all layers before it."""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Net
from .emitter import Value

_GROWTH = 32
_BOTTLENECK = 4 * _GROWTH


def densenet121(net: Net) -> Value:
    """Blocks of 6, 12, 24 and 16 layers.

    The normalisation comes before the convolution: only those after a convolution can be folded, conv0's and the
    first convolution's in each layer.
    """
    return _network(net, (6, 12, 24, 16))


def densenet201(net: Net) -> Value:
    """Blocks of 6, 12, 48 and 32 layers."""
    return _network(net, (6, 12, 48, 32))


def _network(net: Net, depths: Sequence[int]) -> Value:
    x = net.conv_bn(net.input, "features.conv0", "features.norm0", 64, 7, stride=2)
    x = net.max_pool(net.relu(x, "features.relu0"), "features.pool0", 3, 2, padding=1)
    for index, depth in enumerate(depths, start=1):
        x = _dense_block(net, x, f"features.denseblock{index}", depth)
        if index < len(depths):
            x = _transition(net, x, f"features.transition{index}")
    x = net.relu(net.batch_norm(x, "features.norm5"), "")
    return net.classify(x, "classifier", pool="")


def _dense_block(net: Net, x: Value, module: str, depth: int) -> Value:
    features = [x]
    for index in range(1, depth + 1):
        layer = f"{module}.denselayer{index}"
        joined = net.concat(features, layer) if len(features) > 1 else x
        y = net.relu(net.batch_norm(joined, f"{layer}.norm1"), f"{layer}.relu1")
        y = net.conv_bn(y, f"{layer}.conv1", f"{layer}.norm2", _BOTTLENECK)
        features.append(net.conv(net.relu(y, f"{layer}.relu2"), f"{layer}.conv2", _GROWTH, 3, bias=False))
    return net.concat(features, module)


def _transition(net: Net, x: Value, module: str) -> Value:
    y = net.relu(net.batch_norm(x, f"{module}.norm"), f"{module}.relu")
    y = net.conv(y, f"{module}.conv", x.channels // 2, bias=False)
    return net.average_pool(y, f"{module}.pool", 2)
