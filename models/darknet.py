"""Darknet with cross-stage partial connections (Wang et al. 2020), and the YOLOv8 detector (Jocher et al. 2023)."""

from __future__ import annotations

import numpy as np

from .builder import Net
from .emitter import Value

_YOLO_EPSILON = 1e-3
_BINS = 16
"""Positions that a YOLOv8 box side is a distribution over."""
_CLASSES = 80
_STRIDES = (8, 16, 32)


def cspdarknet53(net: Net) -> Value:
    """Half of each stage's channels bypass its 1, 2, 8, 8 or 4 residual blocks."""
    x = _leaky(net, net.input, "stem.conv1", 32, 3)
    for stage, (width, depth) in enumerate(((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))):
        module, inner = f"stages.{stage}", width if stage == 0 else width // 2
        x = _leaky(net, x, f"{module}.conv_down", width, 3, stride=2)
        bypass, y = net.emit_split(_leaky(net, x, f"{module}.conv_exp", 2 * inner), module, 2, axis=1)
        for index in range(depth):
            block = f"{module}.blocks.{index}"
            z = _leaky(net, y, f"{block}.conv1", inner // 2 if stage == 0 else inner)
            y = net.add(_leaky(net, z, f"{block}.conv2", inner, 3), y, block)
        y = _leaky(net, y, f"{module}.conv_transition_b", inner)
        x = _leaky(net, net.concat([bypass, y], module), f"{module}.conv_transition", width)
    return net.classify(x, "head.fc", "head.global_pool.pool")


def _leaky(net: Net, x: Value, module: str, out: int, kernel: int = 1, *, stride: int = 1) -> Value:
    y = net.conv_bn(x, f"{module}.conv", f"{module}.bn", out, kernel, stride=stride)
    return net.leaky_relu(y, f"{module}.bn.act")


def yolov8n(net: Net) -> list[Value]:
    """Backbone, a neck that goes up and down again, and heads at three resolutions.

    The outputs are the boxes, as centre and size in pixels, and the score of every class for each.
    """
    if net.input.size % _STRIDES[-1]:
        raise ValueError(f"yolov8n: the image size must be a multiple of {_STRIDES[-1]}, not {net.input.size}")
    x = _conv(net, _conv(net, net.input, "model.0", 16, 3, stride=2), "model.1", 32, 3, stride=2)
    x = _c2f(net, x, "model.2", 32, 1, shortcut=True)
    x8 = _c2f(net, _conv(net, x, "model.3", 64, 3, stride=2), "model.4", 64, 2, shortcut=True)
    x16 = _c2f(net, _conv(net, x8, "model.5", 128, 3, stride=2), "model.6", 128, 2, shortcut=True)
    x32 = _c2f(net, _conv(net, x16, "model.7", 256, 3, stride=2), "model.8", 256, 1, shortcut=True)
    x32 = _pooled_pyramid(net, x32, "model.9", 256)
    up16 = _c2f(net, net.concat([net.upsample(x32, "model.10", 2), x16], "model.11"), "model.12", 128, 1)
    y8 = _c2f(net, net.concat([net.upsample(up16, "model.13", 2), x8], "model.14"), "model.15", 64, 1)
    down = _conv(net, y8, "model.16", 64, 3, stride=2)
    y16 = _c2f(net, net.concat([down, up16], "model.17"), "model.18", 128, 1)
    down = _conv(net, y16, "model.19", 128, 3, stride=2)
    y32 = _c2f(net, net.concat([down, x32], "model.20"), "model.21", 256, 1)
    return _detect(net, [y8, y16, y32], "model.22")


def _conv(net: Net, x: Value, module: str, out: int, kernel: int = 1, *, stride: int = 1) -> Value:
    y = net.conv_bn(x, f"{module}.conv", f"{module}.bn", out, kernel, stride=stride, epsilon=_YOLO_EPSILON)
    return net.silu(y, f"{module}.act")


def _c2f(net: Net, x: Value, module: str, out: int, depth: int, *, shortcut: bool = False) -> Value:
    """All intermediate results of a chain of blocks over half of the channels are joined."""
    parts = net.emit_split(_conv(net, x, f"{module}.cv1", out), module, 2, axis=1)
    for index in range(depth):
        block = f"{module}.m.{index}"
        y = _conv(net, _conv(net, parts[-1], f"{block}.cv1", out // 2, 3), f"{block}.cv2", out // 2, 3)
        parts.append(net.add(parts[-1], y, block) if shortcut else y)
    return _conv(net, net.concat(parts, module), f"{module}.cv2", out)


def _pooled_pyramid(net: Net, x: Value, module: str, out: int) -> Value:
    parts = [_conv(net, x, f"{module}.cv1", out // 2)]
    for _ in range(3):
        parts.append(net.max_pool(parts[-1], f"{module}.m", 5, 1, padding=2))
    return _conv(net, net.concat(parts, module), f"{module}.cv2", out)


def _detect(net: Net, maps: list[Value], module: str) -> list[Value]:
    heads = []
    for index, x in enumerate(maps):
        branches = []
        for name, inner, out in (("cv2", 4 * _BINS, 4 * _BINS), ("cv3", 80, _CLASSES)):
            head = f"{module}.{name}.{index}"
            y = _conv(net, _conv(net, x, f"{head}.0", inner, 3), f"{head}.1", inner, 3)
            branches.append(net.conv(y, f"{head}.2", out))
        joined = net.concat(branches, module)
        heads.append(net.reshape(joined, [joined.channels, joined.size**2], module))
    boxes, scores = net.emit_split(net.concat(heads, module, axis=2), module, [4 * _BINS, _CLASSES], axis=1)
    return [_decode(net, boxes, [x.size for x in maps], module), net.sigmoid(scores, module)]


def _decode(net: Net, x: Value, sizes: list[int], module: str) -> Value:
    """Boxes from the expected distance of each side to an anchor."""
    count, dfl = int(x.shape[2]), f"{module}.dfl"
    x = net.transpose(net.reshape(x, [4, _BINS, count], dfl), [0, 2, 1, 3], dfl)
    x = net.emit("Softmax", [x], dfl, axis=1)
    weight = net.parameter(f"{dfl}.conv.weight", np.arange(_BINS, dtype=np.float32).reshape(1, _BINS, 1, 1))
    x = net.emit("Conv", [x, weight], f"{dfl}.conv", shape=(x.shape[0], 1, 4, count), kernel_shape=[1, 1])
    low, high = net.emit_split(net.reshape(x, [4, count], dfl), module, 2, axis=1)
    centres = [np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 2)).reshape(1, 2, -1) for size in sizes]
    anchors = net.constant(np.concatenate(centres, axis=2), module)
    low = net.emit("Sub", [anchors, low], module, shape=low.shape)
    high = net.emit("Add", [anchors, high], module, shape=low.shape)
    middle = net.emit("Div", [net.add(low, high, module), net.constant(2.0, module)], module)
    joined = net.concat([middle, net.emit("Sub", [high, low], module)], module)
    strides = np.repeat(np.array(_STRIDES, dtype=np.float32), np.square(sizes)).reshape(1, -1)
    return net.emit("Mul", [joined, net.constant(strides, module)], module)
