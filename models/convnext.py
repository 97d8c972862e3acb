"""ConvNeXt (Liu et al. 2022): a convolutional network with the normalisations and linear layers of a transformer."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_EPSILON = 1e-6
_TO_CHANNELS_LAST = (0, 2, 3, 1)
_TO_CHANNELS_FIRST = (0, 3, 1, 2)


def convnext_tiny(net: Net) -> Value:
    """Stages of 3, 3, 9 and 3 blocks."""
    x = net.conv(net.input, "features.0.0", 96, 4, stride=4, padding=0)
    x = _channel_norm(net, x, "features.0.1")
    for stage, (width, depth) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
        if stage:
            x = _channel_norm(net, x, f"features.{2 * stage}.0")
            x = net.conv(x, f"features.{2 * stage}.1", width, 2, stride=2, padding=0)
        for index in range(depth):
            x = _block(net, x, f"features.{2 * stage + 1}.{index}")
    x = _channel_norm(net, net.global_average_pool(x, "avgpool"), "classifier.0")
    return net.linear(net.flatten(x, "classifier.1"), "classifier.2", net.classes)


def _channel_norm(net: Net, x: Value, module: str) -> Value:
    y = net.transpose(x, _TO_CHANNELS_LAST, module)
    return net.transpose(net.layer_norm(y, module, epsilon=_EPSILON), _TO_CHANNELS_FIRST, module)


def _block(net: Net, x: Value, module: str) -> Value:
    width = x.channels
    y = net.conv(x, f"{module}.block.0", width, 7, groups=width)
    y = net.transpose(y, _TO_CHANNELS_LAST, f"{module}.block.1")
    y = net.layer_norm(y, f"{module}.block.2", epsilon=_EPSILON)
    y = net.gelu(net.linear(y, f"{module}.block.3", 4 * width), f"{module}.block.4")
    y = net.linear(y, f"{module}.block.5", width)
    y = net.transpose(y, _TO_CHANNELS_FIRST, f"{module}.block.6")
    # Training starts from 1e-6, which would make the block a no-op: draw it as large as training leaves it.
    scale = net.parameter(f"{module}.layer_scale", net.uniform(width, 0.3, 1.0).reshape(width, 1, 1))
    y = net.emit("Mul", [scale, y], module, shape=x.shape, power=0.5 * y.power)
    return net.add(y, x, module)
