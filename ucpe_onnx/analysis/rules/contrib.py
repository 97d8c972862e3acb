"""What onnxruntime's optimiser makes of transformers (domain com.microsoft): norms with a shortcut, whole attentions.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.attention import rotated
from ucpe_onnx.analysis.rules.common import elementwise
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_SUM = 3
"""The output of a norm with a shortcut that holds what was normalised."""

_BIAS = 3
"""The input of MultiHeadAttention with the biases of queries, keys and values, one behind the other."""

_SCORES = 3
"""The output of GroupQueryAttention that holds the scores."""

_BEHIND_PLACES = 10
"""The first input of GroupQueryAttention behind lengths, rotations and places: what may differ between heads."""


def skip_norm(tracer: Tracer, node: Node) -> None:
    """Data, a shortcut and a bias are added, and normalised along the last axis, which stays; the others pass."""
    data, out = node.inputs[0], node.outputs[0]
    reason = f"channel-mixing op {_name(node)} at {node.name}"
    rank = tracer.rank(data)
    added = [key for index in (0, 1) if (key := tracer.operand(node, index)) is not None]
    if rank is None or any(node.has(index) for index in (1, 2)):
        tracer.freeze_node(node, reason)
        return
    for made in (out, node.outputs[_SUM] if node.has(_SUM) else ""):
        if made:
            elementwise(tracer, node, added, made)
            tracer.freeze(made, reason, [rank - 1])
    for key in added:
        tracer.freeze(key, reason, [(tracer.rank(key) or 1) - 1])


def attention(tracer: Tracer, node: Node) -> None:
    """Data (batch, time, width) is read through a constant weight (width, queries + keys + values); heads stay."""
    data, weight = node.inputs[0], tracer.operand(node, 1)
    reason = f"heads of {_name(node)} at {node.name}, which holds the projections too"
    if not isinstance(weight, tuple) or tracer.rank(weight) != 2 or tracer.rank(data) != 3:
        tracer.freeze_node(node, reason)
        return
    for index in range(3, len(node.inputs)):
        tracer.freeze(tracer.operand(node, index), reason)
    for name in (name for name in node.outputs if name):
        tracer.freeze(name, reason)
    tracer.freeze(data, f"batch or time of {_name(node)} at {node.name}", [0, 1])
    tracer.consume(tracer.weight_use(node, (data, 2), 1, 0))


def multi_head(tracer: Tracer, node: Node) -> None:
    """Queries, keys and values (batch, time, heads * size): the channels of a head stay or go together, in all."""
    out, reason = node.outputs[0], f"form that is not followed: {_name(node)} at {node.name}"
    keys = [tracer.operand(node, index) for index in range(3)]
    heads, width = int(node.attributes.get("num_heads", 0)), tracer.size((out, 2))
    apart = all(isinstance(key, str) and tracer.rank(key) == 3 and tracer.size((key, 2)) == width for key in keys)
    bias = tracer.operand(node, _BIAS)
    others = [index for index in range(4, len(node.inputs)) if node.inputs[index]]
    whole = others or any(node.has(index) for index in range(1, len(node.outputs))) or isinstance(bias, str)
    if not apart or whole or not heads or not width or width % heads:
        tracer.freeze_node(node, reason)
        return
    for key in (*keys, out):
        tracer.freeze(key, f"batch or time of {_name(node)} at {node.name}", [0, 1])
    for key in keys:
        if key is not None:
            tracer.link((key, 2), (out, 2), node)
    at = np.arange(3 * width, dtype=np.int64)
    if bias is not None and tracer.size((bias, 0)) == 3 * width:
        tracer.link_positions((out, 2), at % width, (bias, 0), at, outer=at // width)
    elif bias is not None:
        tracer.freeze(out, reason)
    size = width // heads
    tracer.tie((out, 2), np.arange(width, dtype=np.int64) // size)

    def heads_follow(edit: NodeEdit) -> None:
        edit.set_attribute("num_heads", edit.size((out, 2)) // size)

    tracer.rewrite(node, heads_follow)


def grouped_query(tracer: Tracer, node: Node) -> None:
    """Queries, keys and values as (batch, time, heads * size); several heads of queries share one of the latter two.

    Without caches a head of keys and values goes with all the queries that share it. With caches, whose lengths callers
    know, these heads stay, and each keeps equally many of the queries.
    """
    out, reason = node.outputs[0], f"form that is not followed: {_name(node)} at {node.name}"
    keys = [key for index in range(3) if isinstance(key := tracer.operand(node, index), str)]
    heads, shared = (int(node.attributes.get(name, 0)) for name in ("num_heads", "kv_num_heads"))
    width, size = tracer.size((out, 2)), (tracer.size((out, 2)) or 0) // max(heads, 1)
    whole = any(node.inputs[_BEHIND_PLACES:]) or node.has(_SCORES) or not heads or not shared or not width
    widths = [tracer.size((key, 2)) for key in keys]
    if whole or heads % shared or [width, shared * size, shared * size] != widths or width != heads * size:
        tracer.freeze_node(node, reason)
        return
    cached = [name for name in (*node.inputs[3:5], *node.outputs[1:3]) if name]
    for index in range(3, len(node.inputs)):
        tracer.freeze(tracer.operand(node, index), f"caches and lengths of {_name(node)} at {node.name}")
    for key in (*keys, out):
        tracer.freeze(key, f"batch or time of {_name(node)} at {node.name}", [0, 1])
    at = np.arange(width, dtype=np.int64)
    tracer.link((keys[0], 2), (out, 2), node)
    tracer.tie((out, 2), at // size if cached else at // (width // shared))
    for key in keys[1:]:
        if cached:
            tracer.freeze(key, f"caches of keys and values: {_name(node)} at {node.name}", [2])
        else:  # which channels of a head are linked to which does not matter, as all go at once; but that none crosses
            tracer.tie((key, 2), at[: shared * size] // size)
            tracer.link_positions((key, 2), at // (heads // shared), (out, 2), at)
    for name in node.outputs[1:3]:
        tracer.freeze(name, f"caches of keys and values: {_name(node)} at {node.name}")
    if cached:
        tracer.partition((out, 2), shared)

    def heads_follow(edit: NodeEdit) -> None:
        edit.set_attribute("num_heads", edit.size((out, 2)) // size)
        edit.set_attribute("kv_num_heads", edit.size((keys[1], 2)) // size)

    tracer.rewrite(node, heads_follow)


def rotary_embedding(tracer: Tracer, node: Node) -> None:
    """As ONNX's own; without a number of heads, the table of cosines tells half the size of one."""
    heads, width = int(node.attributes.get("num_heads", 0)), tracer.size((node.inputs[0], 2))
    table = tracer.operand(node, 2)
    half = None if table is None or tracer.rank(table) != 2 else tracer.size((table, 1))
    rotated(tracer, node, width // heads if heads and width and width % heads == 0 else 2 * (half or 0))


def _name(node: Node) -> str:
    """The operator without its domain, for people."""
    return node.op_type.rpartition("::")[2]


RULES = {
    "com.microsoft::Attention": attention,
    "com.microsoft::GroupQueryAttention": grouped_query,
    "com.microsoft::MultiHeadAttention": multi_head,
    "com.microsoft::RotaryEmbedding": rotary_embedding,
    "com.microsoft::SkipLayerNormalization": skip_norm,
    "com.microsoft::SkipSimplifiedLayerNormalization": skip_norm,
}
