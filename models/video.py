"""Video networks: mixed convolutions (Tran et al. 2018)."""

from __future__ import annotations

from .builder import Net
from .emitter import Value


def mc3_18(net: Net) -> Value:
    """ResNet-18 over clips: convolutions over space and time in the first stage, over space alone in the others."""
    x = net.conv_bn(net.input, "stem.0", "stem.1", 64, (3, 7, 7), stride=(1, 2, 2))
    x = net.relu(x, "stem.2")
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        kernel = (3, 3, 3) if stage == 1 else (1, 3, 3)
        for index in range(2):
            module, stride = f"layer{stage}.{index}", (1, 1, 1) if stage == 1 or index else (1, 2, 2)
            y = net.conv_bn(x, f"{module}.conv1.0", f"{module}.conv1.1", width, kernel, stride=stride)
            y = net.relu(y, f"{module}.conv1.2")
            y = net.conv_bn(y, f"{module}.conv2.0", f"{module}.conv2.1", width, kernel)
            down = f"{module}.downsample"
            shortcut = x
            if x.channels != width:
                shortcut = net.conv_bn(x, f"{down}.0", f"{down}.1", width, stride=stride)
            x = net.relu(net.add(y, shortcut, module), f"{module}.relu", kept=0.7)
    return net.classify(x, "fc")
