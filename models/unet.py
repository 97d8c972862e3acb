"""U-Net (Ronneberger et al. 2015), in its usual PyTorch form: padded convolutions, batch norms, learned upsampling."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

_WIDTHS = (64, 128, 256, 512, 1024)


def unet(net: Net) -> Value:
    """Four steps down and up again; the output is one map per class, as large as the image."""
    halvings = len(_WIDTHS) - 1
    if net.input.size % (1 << halvings):
        raise ValueError(f"unet: the image size must be a multiple of {1 << halvings}, not {net.input.size}")
    skips = [_double_conv(net, net.input, "inc", _WIDTHS[0])]
    for index, width in enumerate(_WIDTHS[1:], start=1):
        pooled = net.max_pool(skips[-1], f"down{index}.maxpool_conv.0", 2, 2)
        skips.append(_double_conv(net, pooled, f"down{index}.maxpool_conv.1", width))
    x = skips.pop()
    for index in range(1, halvings + 1):
        skip = skips.pop()
        x = net.conv_transpose(x, f"up{index}.up", skip.channels, 2)
        x = _double_conv(net, net.concat([skip, x], f"up{index}"), f"up{index}.conv", skip.channels)
    return net.conv(x, "outc.conv", net.classes)


def _double_conv(net: Net, x: Value, module: str, width: int) -> Value:
    convs = f"{module}.double_conv"
    x = net.relu(net.conv_bn(x, f"{convs}.0", f"{convs}.1", width, 3), f"{convs}.2")
    return net.relu(net.conv_bn(x, f"{convs}.3", f"{convs}.4", width, 3), f"{convs}.5")
