"""EfficientNet (Tan and Le 2019) and EfficientNetV2 (Tan and Le 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .builder import Net
from .emitter import Value


@dataclass(frozen=True)
class _Stage:
    """Blocks of one width; the first has the stride. A fused block has one convolution for the first two of others."""

    expansion: int
    kernel: int
    stride: int
    out: int
    depth: int
    fused: bool = False


_B0 = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
_V2_S = (
    _Stage(1, 3, 1, 24, 2, fused=True),
    _Stage(4, 3, 2, 48, 4, fused=True),
    _Stage(4, 3, 2, 64, 4, fused=True),
    _Stage(4, 3, 2, 128, 6),
    _Stage(6, 3, 1, 160, 9),
    _Stage(6, 3, 2, 256, 15),
)


def efficientnet_b0(net: Net) -> Value:
    """Inverted residuals with squeeze-and-excitation and SiLU."""
    return _network(net, _B0, stem=32, epsilon=1e-5)


def efficientnet_v2_s(net: Net) -> Value:
    """As above, the early stages fused."""
    return _network(net, _V2_S, stem=24, epsilon=1e-3)


def _network(net: Net, stages: Sequence[_Stage], stem: int, epsilon: float) -> Value:
    x = _conv_silu(net, net.input, "features.0", stem, 3, epsilon=epsilon, stride=2)
    for index, stage in enumerate(stages, start=1):
        block = _fused_block if stage.fused else _block
        for position in range(stage.depth):
            stride = stage.stride if position == 0 else 1
            x = block(net, x, f"features.{index}.{position}", stage, stride=stride, epsilon=epsilon)
    x = _conv_silu(net, x, f"features.{len(stages) + 1}", 1280, 1, epsilon=epsilon)
    return net.classify(x, "classifier.1")


def _conv_silu(
    net: Net, x: Value, module: str, out: int, kernel: int, *, epsilon: float, stride: int = 1, groups: int = 1
) -> Value:
    y = net.conv_bn(x, f"{module}.0", f"{module}.1", out, kernel, stride=stride, groups=groups, epsilon=epsilon)
    return net.silu(y, f"{module}.2")


def _block(net: Net, x: Value, module: str, stage: _Stage, *, stride: int, epsilon: float) -> Value:
    width = x.channels * stage.expansion
    y, index = x, 0
    if stage.expansion > 1:
        y, index = _conv_silu(net, y, f"{module}.block.0", width, 1, epsilon=epsilon), 1
    y = _conv_silu(net, y, f"{module}.block.{index}", width, stage.kernel, epsilon=epsilon, stride=stride, groups=width)
    y = net.squeeze_excite(y, f"{module}.block.{index + 1}", max(1, x.channels // 4))
    last = f"{module}.block.{index + 2}"
    y = net.conv_bn(y, f"{last}.0", f"{last}.1", stage.out, epsilon=epsilon)
    return _residual(net, x, y, module, stride)


def _fused_block(net: Net, x: Value, module: str, stage: _Stage, *, stride: int, epsilon: float) -> Value:
    first, second = f"{module}.block.0", f"{module}.block.1"
    if stage.expansion == 1:
        y = _conv_silu(net, x, first, stage.out, stage.kernel, epsilon=epsilon, stride=stride)
    else:
        y = _conv_silu(net, x, first, x.channels * stage.expansion, stage.kernel, epsilon=epsilon, stride=stride)
        y = net.conv_bn(y, f"{second}.0", f"{second}.1", stage.out, epsilon=epsilon)
    return _residual(net, x, y, module, stride)


def _residual(net: Net, x: Value, y: Value, module: str, stride: int) -> Value:
    return net.add(y, x, module) if stride == 1 and x.channels == y.channels else y
