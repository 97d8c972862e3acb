"""Swin transformer (Liu et al. 2021), in torchvision's form."""

from __future__ import annotations

import numpy as np

from .attention import attend, feed_forward, fused_heads, join_heads
from .builder import Net
from .emitter import Array, Value

_WINDOW = 7
_EPSILON = 1e-5
_MASKED = -100.0


def swin_t(net: Net) -> Value:
    """Stages of 2, 2, 6 and 2 blocks; every other block shifts its windows by half."""
    x = net.conv(net.input, "features.0.0", 96, 4, stride=4, padding=0)
    x = net.layer_norm(net.transpose(x, (0, 2, 3, 1), "features.0.1"), "features.0.2", epsilon=_EPSILON)
    for stage, depth in enumerate((2, 2, 6, 2)):
        if stage:
            x = _merge_patches(net, x, f"features.{2 * stage}")
        for index in range(depth):
            shift = _WINDOW // 2 if index % 2 else 0
            x = _block(net, x, f"features.{2 * stage + 1}.{index}", heads=3 << stage, shift=shift)
    x = net.transpose(net.layer_norm(x, "norm", epsilon=_EPSILON), (0, 3, 1, 2), "permute")
    return net.classify(x, "head")


def _block(net: Net, x: Value, module: str, *, heads: int, shift: int) -> Value:
    y = net.layer_norm(x, f"{module}.norm1", epsilon=_EPSILON)
    x = net.add(x, _window_attention(net, y, f"{module}.attn", heads, shift), module)
    y = net.layer_norm(x, f"{module}.norm2", epsilon=_EPSILON)
    return net.add(x, feed_forward(net, y, f"{module}.mlp.0", f"{module}.mlp.1", f"{module}.mlp.3"), module)


def _window_attention(net: Net, x: Value, module: str, heads: int, shift: int) -> Value:
    """Attention within windows of 7x7 tokens; maps are padded to whole windows and, maybe, rolled."""
    batch, height, width, channels = x.shape[0], *(int(size) for size in x.shape[1:])
    rows, columns = -(-height // _WINDOW), -(-width // _WINDOW)
    after = [0, rows * _WINDOW - height, columns * _WINDOW - width, 0]
    y = net.pad(x, module, [0] * 4, after) if any(after) else x
    shifts = [shift if count > 1 else 0 for count in (rows, columns)]
    y = _roll(net, y, module, shifts)
    y = net.reshape(y, [rows, _WINDOW, columns, _WINDOW, channels], module)
    y = net.transpose(y, (0, 1, 3, 2, 4, 5), module)
    area = _WINDOW**2
    joined = batch * rows * columns if isinstance(batch, int) else f"{batch}_windows"
    y = net.view(y, [joined if isinstance(joined, int) else -1, area, channels], (joined, area, channels), module)
    y = _masked_attention(net, y, module, heads, (rows, columns, *shifts))
    y = net.linear(join_heads(net, y, module), f"{module}.proj", channels)
    shape = (rows, columns, _WINDOW, _WINDOW, channels)
    y = net.view(y, [batch if isinstance(batch, int) else -1, *shape], (batch, *shape), module)
    y = net.transpose(y, (0, 1, 3, 2, 4, 5), module)
    y = net.reshape(y, [rows * _WINDOW, columns * _WINDOW, channels], module)
    y = _roll(net, y, module, [-by for by in shifts])
    return net.slice(net.slice(y, module, 1, (0, height)), module, 2, (0, width)) if any(after) else y


def _roll(net: Net, x: Value, module: str, shifts: list[int]) -> Value:
    """Move every axis of space up by its shift, around the edge, as `torch.roll` exports to."""
    for axis, shift in enumerate(shifts, start=1):
        if shift:
            middle = shift % int(x.shape[axis])
            parts = [net.slice(x, module, axis, (middle, None)), net.slice(x, module, axis, (0, middle))]
            x = net.concat(parts, module, axis=axis)
    return x


def _masked_attention(net: Net, x: Value, module: str, heads: int, layout: tuple[int, ...]) -> Value:
    """Attention with a bias for every relative position, and without what a roll brought together."""
    rows, columns, *shifts = layout
    bias = _position_bias(net, module, heads)

    def adjust(scores: Value) -> Value:
        scores = net.emit("Add", [scores, bias], module)
        if not any(shifts):
            return scores
        mask = _shift_mask(rows, columns, shifts)
        by_image = (len(mask), *(int(size) for size in scores.shape[1:]))
        y = net.view(
            scores, [net.batch if isinstance(net.batch, int) else -1, *by_image], (net.batch, *by_image), module
        )
        y = net.emit("Add", [y, net.constant(mask, module)], module)
        return net.view(y, [-1, *by_image[1:]], scores.shape, module)

    return attend(net, fused_heads(net, x, module, heads, gather=True), module, scaled="query", adjust=adjust)


def _position_bias(net: Net, module: str, heads: int) -> Value:
    span, area = 2 * _WINDOW - 1, _WINDOW**2
    table = net.parameter(f"{module}.relative_position_bias_table", net.normal([span**2, heads], 0.5))
    places = np.stack(np.meshgrid(np.arange(_WINDOW), np.arange(_WINDOW), indexing="ij")).reshape(2, -1)
    apart = places[:, :, None] - places[:, None, :] + _WINDOW - 1
    index = net.constant((apart[0] * span + apart[1]).reshape(-1), module)
    bias = net.emit("Gather", [table, index], module, shape=(area**2, heads), axis=0)
    bias = net.view(bias, [area, area, -1], (area, area, heads), module)
    return net.unsqueeze(net.transpose(bias, (2, 0, 1), module), 0, module)


def _shift_mask(rows: int, columns: int, shifts: list[int]) -> Array:
    """What to add to the scores: (windows, 1, area, area), far below zero between parts that were not neighbours."""
    parts = np.zeros((rows * _WINDOW, columns * _WINDOW), dtype=np.int64)
    for axis, shift in enumerate(shifts):
        if shift:
            size = parts.shape[axis]
            part = np.searchsorted([size - _WINDOW, size - shift], np.arange(size), side="right")
            parts = 3 * parts + np.expand_dims(part, 1 - axis)
    split = parts.reshape(rows, _WINDOW, columns, _WINDOW).transpose(0, 2, 1, 3).reshape(-1, 1, _WINDOW**2)
    apart = split[:, :, :, None] != split[:, :, None, :]
    return np.asarray(np.where(apart, _MASKED, 0.0), dtype=np.float32)


def _merge_patches(net: Net, x: Value, module: str) -> Value:
    """Join each square of four tokens, then halve the width."""
    odd = [0, *(int(size) % 2 for size in x.shape[1:3]), 0]
    x = net.pad(x, module, [0] * 4, odd) if any(odd) else x
    parts = []
    for column in range(2):
        for row in range(2):
            part = net.slice(x, module, 1, (row, None), 2)
            parts.append(net.slice(part, module, 2, (column, None), 2))
    y = net.layer_norm(net.concat(parts, module, axis=3), f"{module}.norm", epsilon=_EPSILON)
    return net.linear(y, f"{module}.reduction", 2 * int(x.shape[3]), bias=False)
