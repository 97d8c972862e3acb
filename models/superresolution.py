"""Super-resolution: EDSR (Lim et al. 2017) and ESPCN (Shi et al. 2016), one form of the pixel shuffle each."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_EDSR_SCALE = 2
_ESPCN_SCALE = 3


def edsr_baseline_x2(net: Net) -> Value:
    """Sixteen residual blocks without normalisation, a skip around them all, DepthToSpace."""
    head = net.conv(net.input, "head.0", 64, 3)
    x = head
    for index in range(16):
        block = f"body.{index}.body"
        y = net.conv(net.relu(net.conv(x, f"{block}.0", 64, 3), f"{block}.1"), f"{block}.2", 64, 3)
        x = net.add(y, x, f"body.{index}")
    x = net.add(net.conv(x, "body.16", 64, 3), head)
    x = net.conv(x, "tail.0.0", 64 * _EDSR_SCALE**2, 3)
    shape = (x.shape[0], 64, x.size * _EDSR_SCALE, x.size * _EDSR_SCALE)
    x = net.emit("DepthToSpace", [x], "tail.0.1", shape=shape, blocksize=_EDSR_SCALE, mode="CRD")
    return net.conv(x, "tail.1", 3, 3)


def espcn_x3(net: Net) -> Value:
    """Three convolutions; the pixel shuffle as Reshape, Transpose and Reshape."""
    x = net.tanh(net.conv(net.input, "conv1", 64, 5), "")
    x = net.tanh(net.conv(x, "conv2", 32, 3), "")
    scale, size = _ESPCN_SCALE, x.size
    x = net.conv(x, "conv3", 3 * scale**2, 3)
    x = net.reshape(x, [3, scale, scale, size, size], "pixel_shuffle")
    x = net.transpose(x, [0, 1, 4, 2, 5, 3], "pixel_shuffle")
    return net.reshape(x, [3, size * scale, size * scale], "pixel_shuffle")
