"""Vision transformer (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import math

import numpy as np

from .builder import Net
from .emitter import Value

_PATCH = 16
_WIDTH = 768
_HEADS = 12
_HEAD_WIDTH = _WIDTH // _HEADS
_EPSILON = 1e-6


def vit_b_16(net: Net) -> Value:
    """Twelve encoder layers over patches of 16x16 pixels and a class token."""
    if net.input.size % _PATCH:
        raise ValueError(f"vit_b_16: the image size must be a multiple of {_PATCH}, not {net.input.size}")
    x = _embed(net)
    for index in range(12):
        x = _encoder_layer(net, x, f"encoder.layers.encoder_layer_{index}")
    x = net.layer_norm(x, "encoder.ln", epsilon=_EPSILON)
    token = net.emit("Gather", [x, net.constant(np.int64(0))], shape=(x.shape[0], _WIDTH), axis=1)
    return net.linear(token, "heads.head", net.classes)


def _embed(net: Net) -> Value:
    """Patches as tokens, the class token before them, positions added."""
    x = net.conv(net.input, "conv_proj", _WIDTH, _PATCH, stride=_PATCH, padding=0)
    x = net.transpose(net.reshape(x, [_WIDTH, x.size**2]), [0, 2, 1])
    token = net.parameter("class_token", net.normal([1, 1, _WIDTH], 0.5))
    x = net.concat([_one_per_image(net, token), x], axis=1)
    length = int(x.shape[1])
    positions = net.parameter("encoder.pos_embedding", net.normal([1, length, _WIDTH], 0.5))
    return net.emit("Add", [x, positions], "encoder", power=x.power + 0.25)


def _one_per_image(net: Net, token: Value) -> Value:
    """Repeat the class token along the batch, whose size a dynamic model only knows when it runs."""
    shape = (net.batch, 1, _WIDTH)
    if isinstance(net.batch, int):
        target = net.constant(np.array(shape, dtype=np.int64))
    else:
        sizes = net.emit("Shape", [net.input], shape=(4,))
        batch = net.emit("Gather", [sizes, net.constant(np.array([0], dtype=np.int64))], shape=(1,), axis=0)
        target = net.concat([batch, net.constant(np.array([1, _WIDTH], dtype=np.int64))], axis=0)
    return net.emit("Expand", [token, target], shape=shape, power=0.25)


def _encoder_layer(net: Net, x: Value, module: str) -> Value:
    x = net.add(_attention(net, net.layer_norm(x, f"{module}.ln_1", epsilon=_EPSILON), module), x, module)
    y = net.linear(net.layer_norm(x, f"{module}.ln_2", epsilon=_EPSILON), f"{module}.mlp.0", 4 * _WIDTH)
    y = net.linear(net.gelu(y, f"{module}.mlp.1"), f"{module}.mlp.3", _WIDTH)
    return net.add(x, y, module)


def _attention(net: Net, x: Value, layer: str) -> Value:
    """Multi-head self-attention with one projection to queries, keys and values."""
    module = f"{layer}.self_attention"
    length = int(x.shape[1])
    query, key, value = net.emit_split(net.linear(x, f"{module}.in_proj", 3 * _WIDTH), module, parts=3, axis=2)

    def by_head(part: Value, perm: tuple[int, ...]) -> Value:
        return net.transpose(net.reshape(part, [length, _HEADS, _HEAD_WIDTH], module), perm, module)

    query, key, value = by_head(query, (0, 2, 1, 3)), by_head(key, (0, 2, 3, 1)), by_head(value, (0, 2, 1, 3))
    weights = (x.shape[0], _HEADS, length, length)
    scores = net.emit("MatMul", [query, key], module, shape=weights)
    scores = net.emit("Mul", [scores, net.constant(1.0 / math.sqrt(_HEAD_WIDTH), module)], module)
    scores = net.emit("Softmax", [scores], module, axis=-1)
    # A mean of nearly independent tokens, with unequal weights.
    y = net.emit("MatMul", [scores, value], module, shape=value.shape, power=min(1.0, math.e / length))
    y = net.reshape(net.transpose(y, (0, 2, 1, 3), module), [length, _WIDTH], module)
    return net.linear(y, f"{module}.out_proj", _WIDTH)
