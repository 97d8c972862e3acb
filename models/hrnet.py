"""HRNet (Sun et al. 2019): branches of several resolutions that are fused again and again."""

from __future__ import annotations

from .builder import Net
from .emitter import Value
from .resnet import basic_block, bottleneck

_WIDTHS = (18, 36, 72, 144)


def hrnet_w18(net: Net) -> Value:
    """Stages of 1, 4 and 3 modules with two, three and four branches; the classification head."""
    x = net.relu(net.conv_bn(net.input, "conv1", "bn1", 64, 3, stride=2), "act1")
    x = net.relu(net.conv_bn(x, "conv2", "bn2", 64, 3, stride=2), "act2")
    for index in range(4):
        x = bottleneck(net, x, f"layer1.{index}", width=64, out=256)
    branches = [x]
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        branches = _transition(net, branches, f"transition{stage - 1}", stage)
        for index in range(modules):
            branches = _module(net, branches, f"stage{stage}.{index}")
    return _head(net, branches)


def _conv(net: Net, x: Value, module: str, out: int, kernel: int = 3, *, stride: int = 2) -> Value:
    return net.conv_bn(x, f"{module}.0", f"{module}.1", out, kernel, stride=stride)


def _transition(net: Net, branches: list[Value], module: str, count: int) -> list[Value]:
    """One branch more, of half the resolution; the others adapted where their width changes."""
    made = []
    for index, width in enumerate(_WIDTHS[:count]):
        if index < len(branches):
            x = branches[index]
            if x.channels != width:
                x = net.relu(_conv(net, x, f"{module}.{index}", width, stride=1), f"{module}.{index}.2")
        else:
            x = net.relu(_conv(net, branches[-1], f"{module}.{index}.0", width), f"{module}.{index}.0.2")
        made.append(x)
    return made


def _module(net: Net, branches: list[Value], module: str) -> list[Value]:
    for index, x in enumerate(branches):
        for block in range(4):
            x = basic_block(net, x, f"{module}.branches.{index}.{block}", x.channels)  # noqa: PLW2901
        branches[index] = x
    return [_fuse(net, branches, f"{module}.fuse_layers.{target}", target) for target in range(len(branches))]


def _fuse(net: Net, branches: list[Value], module: str, target: int) -> Value:
    """Sum of all branches at the resolution and width of one."""
    width, total = branches[target].channels, None
    for index, x in enumerate(branches):
        layer = f"{module}.{index}"
        y = x
        if index > target:
            y = net.upsample(_conv(net, x, layer, width, 1, stride=1), f"{layer}.2", 1 << (index - target))
        for step in range(index, target):
            last = step == target - 1
            y = _conv(net, y, f"{layer}.{step - index}", width if last else x.channels)
            y = y if last else net.relu(y, f"{layer}.{step - index}.2")
        total = y if total is None else net.add(total, y, module)
    assert total is not None
    return net.relu(total, f"{module}.act", kept=0.6)


def _head(net: Net, branches: list[Value]) -> Value:
    y = None
    for index, x in enumerate(branches):
        wide = bottleneck(net, x, f"incre_modules.{index}.0", width=32 << index, out=128 << index)
        if y is None:
            y = wide
            continue
        down = f"downsamp_modules.{index - 1}"
        y = net.conv_bn(y, f"{down}.0", f"{down}.1", 128 << index, 3, stride=2, bias=True)
        y = net.add(wide, net.relu(y, f"{down}.2"))
    assert y is not None
    y = net.relu(net.conv_bn(y, "final_layer.0", "final_layer.1", 2048, bias=True), "final_layer.2")
    return net.classify(y, "classifier", "global_pool.pool")
