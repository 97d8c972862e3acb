"""VGG (Simonyan and Zisserman 2015) with batch normalisation."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_POOL = 0
_VGG16 = (64, 64, _POOL, 128, 128, _POOL, 256, 256, 256, _POOL, 512, 512, 512, _POOL, 512, 512, 512, _POOL)


def vgg16_bn(net: Net) -> Value:
    """Thirteen convolutions and three wide linear layers.

    The original averages the last map to 7x7, which at 224 pixels it already is. Other sizes get a first linear
    layer that fits their map.
    """
    x = net.input
    index = 0  # of the next layer in the Sequential "features"
    for width in _VGG16:
        if width == _POOL:
            x = net.max_pool(x, f"features.{index}", 2, 2)
            index += 1
        else:
            x = net.conv_bn(x, f"features.{index}", f"features.{index + 1}", width, 3, bias=True)
            x = net.relu(x, f"features.{index + 2}")
            index += 3
    x = net.flatten(x)
    x = net.relu(net.linear(x, "classifier.0", 4096), "classifier.1")
    x = net.relu(net.linear(x, "classifier.3", 4096), "classifier.4")
    return net.linear(x, "classifier.6", net.classes)
