"""Attention as one operator (opset 23): whole heads go, of queries, keys, values and result alike."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer


def attention(tracer: Tracer, node: Node) -> None:
    """Q, K, V as (batch, heads, time, size) or (batch, time, heads * size); masks and caches as they are."""
    out = node.outputs[0]
    keys = [tracer.operand(node, index) for index in range(3)]
    ranks = {tracer.rank(key) for key in (*keys, out) if key is not None}
    extra = [index for index in range(4, len(node.inputs)) if node.inputs[index]]
    activations = [key for key in keys if isinstance(key, str)]
    if len(activations) < 3 or extra or any(node.has(i) for i in range(1, len(node.outputs))):
        tracer.freeze_node(node, f"caches, scores or constant operands: Attention at {node.name}")
    elif ranks == {4}:
        _by_axis(tracer, node, *activations)
        _mask(tracer, node)
    elif ranks == {3} and tracer.operand(node, 3) is None:
        _side_by_side(tracer, node, *activations)
    else:
        tracer.freeze_node(node, f"form that is not followed: Attention at {node.name}")


def _by_axis(tracer: Tracer, node: Node, query: str, key: str, value: str) -> None:
    out, reason = node.outputs[0], f"axis that Attention contracts at {node.name}"
    tracer.freeze(query, reason, [2, 3])  # a causal mask counts places in time
    tracer.freeze(key, reason, [2, 3])
    tracer.freeze(value, reason, [2])
    tracer.freeze(out, f"time of Attention at {node.name}", [2])
    tracer.link((value, 3), (out, 3), node)
    for tensor in (query, key, value):
        tracer.link((tensor, 0), (out, 0), node)
    tracer.link((query, 1), (out, 1), node)
    heads, shared = tracer.size((out, 1)), tracer.size((key, 1))
    for tensor in (key, value):
        if heads is not None and shared and heads % shared == 0 and tracer.size((tensor, 1)) == shared:
            at = np.arange(heads, dtype=np.int64)
            tracer.link_positions((tensor, 1), at // (heads // shared), (out, 1), at)
        else:
            tracer.freeze(tensor, f"heads of unknown number: Attention at {node.name}", [1])
            tracer.freeze(out, f"heads of unknown number: Attention at {node.name}", [1])


def _mask(tracer: Tracer, node: Node) -> None:
    """A mask (..., heads or 1, time, time) that is added to the scores."""
    mask = tracer.operand(node, 3)
    rank = None if mask is None else tracer.rank(mask)
    if mask is None or rank is None:
        return
    tracer.freeze(node.outputs[0], f"mask of Attention at {node.name}", [0])
    heads = (mask, rank - 3)
    followed = rank >= 3 and tracer.size(heads) == tracer.size((node.outputs[0], 1)) != 1
    tracer.freeze(mask, f"mask of Attention at {node.name}", [a for a in range(rank) if not followed or a != heads[1]])
    carried = (node.outputs[0], 1)
    if followed and isinstance(mask, tuple):
        tracer.link(carried, heads, node)
    elif followed:  # what is computed is laid out before what it is added to
        tracer.link(heads, carried, node)


def _side_by_side(tracer: Tracer, node: Node, query: str, key: str, value: str) -> None:
    """Heads next to each other on the last axis: the channels of one stay or go together."""
    out = node.outputs[0]
    heads = int(node.attributes.get("q_num_heads", 0))
    width = tracer.size((out, 2))
    same = all(tracer.size((tensor, 2)) == width for tensor in (query, key, value))
    if not heads or heads != node.attributes.get("kv_num_heads") or not width or width % heads or not same:
        tracer.freeze_node(node, f"heads of different numbers or sizes: Attention at {node.name}")
        return
    for tensor in (query, key, value, out):
        tracer.freeze(tensor, f"time of Attention at {node.name}", [1])
    size = width // heads
    for tensor in (query, key, value):
        tracer.link((tensor, 0), (out, 0), node)
        tracer.link((tensor, 2), (out, 2), node)
    tracer.tie((out, 2), np.arange(width, dtype=np.int64) // size)

    def heads_follow(edit: NodeEdit) -> None:
        for name in ("q_num_heads", "kv_num_heads"):
            edit.set_attribute(name, edit.size((out, 2)) // size)

    tracer.rewrite(node, heads_follow)


def rotary_embedding(tracer: Tracer, node: Node) -> None:
    """Every head is rotated by itself: X as (batch, heads, time, size) or (batch, time, heads * size)."""
    heads, width = int(node.attributes.get("num_heads", 0)), tracer.size((node.inputs[0], 2))
    rotated(tracer, node, width // heads if heads and width and width % heads == 0 else 0)


def rotated(tracer: Tracer, node: Node, size: int) -> None:
    """Whole heads pass a rotation; their number, where it is an attribute, follows.

    Args:
        tracer: the tracer.
        node: the rotation; its first input is the data, and all others stay as they are.
        size: channels of a head, where heads lie side by side; 0 if that is not known.
    """
    data, out = node.inputs[0], node.outputs[0]
    reason = f"rotated axis of RotaryEmbedding at {node.name}"
    others: list[TensorKey | None] = [tracer.operand(node, index) for index in range(1, len(node.inputs))]
    for key in others:
        tracer.freeze(key, reason)
    rank = tracer.rank(data)
    width = tracer.size((data, 2)) if rank == 3 else None
    if rank == 4:
        tracer.link((data, 1), (out, 1), node)
        for tensor in (data, out):
            tracer.freeze(tensor, reason, [0, 2, 3])
    elif width and size and width % size == 0:
        tracer.link((data, 2), (out, 2), node)
        for tensor in (data, out):
            tracer.freeze(tensor, reason, [0, 1])
        tracer.tie((out, 2), np.arange(width, dtype=np.int64) // size)
        if node.attributes.get("num_heads", 0):
            tracer.rewrite(node, lambda edit: edit.set_attribute("num_heads", edit.size((out, 2)) // size))
    else:
        tracer.freeze_node(node, reason)


RULES = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
