"""GoogLeNet (Szegedy et al. 2015) with batch normalisation, as it is deployed: without the auxiliary heads."""

from __future__ import annotations

from .builder import Net
from .emitter import Value

# Channels: 1x1 branch; 3x3 branch, reduced and out; second 3x3 branch (5x5 in the paper), reduced and out; pool branch.
_INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": (3,),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": (2,),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(net: Net) -> Value:
    """Inception modules: four branches that are joined."""
    x = _conv(net, net.input, "conv1", 64, 7, stride=2)
    x = net.max_pool(x, "maxpool1", 3, 2, ceil=True)
    x = _conv(net, _conv(net, x, "conv2", 64), "conv3", 192, 3)
    x = net.max_pool(x, "maxpool2", 3, 2, ceil=True)
    for module, sizes in _INCEPTIONS.items():
        if module.startswith("maxpool"):
            x = net.max_pool(x, module, sizes[0], 2, ceil=True)
        else:
            x = _inception(net, x, module, sizes)
    return net.classify(x, "fc")


def _inception(net: Net, x: Value, module: str, sizes: tuple[int, ...]) -> Value:
    one, reduce2, out2, reduce3, out3, pooled = sizes
    branch1 = _conv(net, x, f"{module}.branch1", one)
    branch2 = _conv(net, _conv(net, x, f"{module}.branch2.0", reduce2), f"{module}.branch2.1", out2, 3)
    branch3 = _conv(net, _conv(net, x, f"{module}.branch3.0", reduce3), f"{module}.branch3.1", out3, 3)
    pool = net.max_pool(x, f"{module}.branch4.0", 3, 1, padding=1, ceil=True)
    branch4 = _conv(net, pool, f"{module}.branch4.1", pooled)
    return net.concat([branch1, branch2, branch3, branch4], module)


def _conv(net: Net, x: Value, module: str, out: int, kernel: int = 1, *, stride: int = 1) -> Value:
    y = net.conv_bn(x, f"{module}.conv", f"{module}.bn", out, kernel, stride=stride, epsilon=1e-3)
    return net.relu(y, module)
