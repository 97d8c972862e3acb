"""Multi-head self-attention, in the forms that exporters give it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .builder import Net
from .emitter import Value


def fused_heads(net: Net, x: Value, module: str, heads: int, *, gather: bool = False) -> list[Value]:
    """Queries, keys and values from one projection: (3, batch, heads, length, width of a head), taken apart.

    `qkv.unbind(0)` exports to Split and Squeeze, `qkv[0], qkv[1], qkv[2]` to three Gathers.
    """
    batch, length, width = x.shape[0], int(x.shape[1]), int(x.shape[2])
    shape = (length, 3, heads, width // heads)
    leading = batch if isinstance(batch, int) else -1
    y = net.view(net.linear(x, f"{module}.qkv", 3 * width), [leading, *shape], (batch, *shape), module)
    y = net.transpose(y, (2, 0, 3, 1, 4), module)
    return [net.take(y, module, 0, index) for index in range(3)] if gather else net.unbind(y, module)


def attend(
    net: Net,
    heads: Sequence[Value],
    module: str,
    *,
    scaled: str = "both",
    adjust: Callable[[Value], Value] | None = None,
) -> Value:
    """Mean of the values, weighed by a softmax over the products of queries and keys.

    Args:
        net: The network.
        heads: Queries, keys and values, (batch, heads, length, width) each.
        module: Name of the layer.
        scaled: What is divided by the root of the width: "both" queries and keys by a root of it, which keeps
            products of 16-bit floats in range, the "query", the "scores", or "nothing".
        adjust: What else happens to the scores.
    """
    query, key, value = heads
    *outer, length, width = query.shape
    read = key.shape[-2]
    key = net.transpose(key, (0, 1, 3, 2), module)
    factor = 1.0 / math.sqrt(int(width))
    if scaled == "both":
        query, key = (net.scale(part, math.sqrt(factor), module) for part in (query, key))
    elif scaled == "query":
        query = net.scale(query, factor, module)
    scores = net.emit("MatMul", [query, key], module, shape=(*outer, length, read), power=1.0)
    if scaled == "scores":
        scores = net.emit("Div", [scores, net.constant(1.0 / factor, module)], module)
    if adjust is not None:
        scores = adjust(scores)
    weights = net.emit("Softmax", [scores], module, axis=-1)
    # A mean of nearly independent tokens, with unequal weights.
    power = min(1.0, math.e / read) if isinstance(read, int) else 0.1
    shape = (*outer, length, value.shape[-1])
    return net.emit("MatMul", [weights, value], module, shape=shape, power=power * value.power)


def join_heads(net: Net, x: Value, module: str) -> Value:
    """From (batch, heads, length, width of a head) to (batch, length, width)."""
    batch, heads, length, width = x.shape
    joined = (int(length), int(heads) * int(width))
    leading = batch if isinstance(batch, int) else -1
    return net.view(net.transpose(x, (0, 2, 1, 3), module), [leading, *joined], (batch, *joined), module)


def feed_forward(net: Net, x: Value, first: str, activation: str, second: str) -> Value:
    """Two linear layers with a GELU between them, four times as wide inside."""
    width = int(x.shape[-1])
    return net.linear(net.gelu(net.linear(x, first, 4 * width), activation), second, width)
