"""Vision transformer (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import math

import numpy as np

from .attention import attend, feed_forward, fused_heads, join_heads
from .builder import Net
from .emitter import Value

_PATCH = 16
_WIDTH = 768
_HEADS = 12
_HEAD_WIDTH = _WIDTH // _HEADS
_EPSILON = 1e-6


_TINY_WIDTH = 192
_TINY_HEADS = 3


def vit_b_16(net: Net) -> Value:
    """Twelve encoder layers over patches of 16x16 pixels and a class token; torchvision's form."""
    x = _embed(net, "vit_b_16", _WIDTH, ("conv_proj", "class_token", "encoder.pos_embedding"))
    for index in range(12):
        x = _encoder_layer(net, x, f"encoder.layers.encoder_layer_{index}")
    x = net.layer_norm(x, "encoder.ln", epsilon=_EPSILON)
    token = net.emit("Gather", [x, net.constant(np.int64(0))], shape=(x.shape[0], _WIDTH), axis=1)
    return net.linear(token, "heads.head", net.classes)


def vit_tiny_patch16_224(net: Net) -> Value:
    """Twelve narrow layers, queries, keys and values in one tensor of five axes; timm's form."""
    x = _embed(net, "vit_tiny_patch16_224", _TINY_WIDTH, ("patch_embed.proj", "cls_token", "pos_embed"))
    for index in range(12):
        module = f"blocks.{index}"
        heads = fused_heads(net, net.layer_norm(x, f"{module}.norm1", epsilon=_EPSILON), f"{module}.attn", _TINY_HEADS)
        y = join_heads(net, attend(net, heads, f"{module}.attn"), f"{module}.attn")
        x = net.add(x, net.linear(y, f"{module}.attn.proj", _TINY_WIDTH), module)
        y = net.layer_norm(x, f"{module}.norm2", epsilon=_EPSILON)
        x = net.add(x, feed_forward(net, y, f"{module}.mlp.fc1", f"{module}.mlp.act", f"{module}.mlp.fc2"), module)
    return net.linear(net.take(net.layer_norm(x, "norm", epsilon=_EPSILON), "", 1, 0), "head", net.classes)


def _embed(net: Net, architecture: str, width: int, names: tuple[str, str, str]) -> Value:
    """Patches as tokens, the class token before them, positions added."""
    if net.input.size % _PATCH:
        raise ValueError(f"{architecture}: the image size must be a multiple of {_PATCH}, not {net.input.size}")
    x = net.conv(net.input, names[0], width, _PATCH, stride=_PATCH, padding=0)
    x = net.transpose(net.reshape(x, [width, x.size**2]), [0, 2, 1])
    token = net.parameter(names[1], net.normal([1, 1, width], 0.5))
    x = net.concat([_one_per_image(net, token), x], axis=1)
    length = int(x.shape[1])
    positions = net.parameter(names[2], net.normal([1, length, width], 0.5))
    return net.emit("Add", [x, positions], names[2].rpartition(".")[0], power=x.power + 0.25)


def _one_per_image(net: Net, token: Value) -> Value:
    """Repeat the class token along the batch, whose size a dynamic model only knows when it runs."""
    shape = (net.batch, 1, int(token.shape[2]))
    if isinstance(net.batch, int):
        target = net.constant(np.array(shape, dtype=np.int64))
    else:
        sizes = net.emit("Shape", [net.input], shape=(4,))
        batch = net.emit("Gather", [sizes, net.constant(np.array([0], dtype=np.int64))], shape=(1,), axis=0)
        target = net.concat([batch, net.constant(np.array(shape[1:], dtype=np.int64))], axis=0)
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
