"""Output shapes of onnxruntime's own operators (domain com.microsoft), of which onnx knows nothing.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, the operators' outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ucpe_onnx.analysis.shapes.operators import (
    INT64,
    Rule,
    broadcast,
    by_rule,
    concat,
    conv,
    dimension,
    gemm,
    like_first,
    matmul,
    of_integers,
    pool,
)
from ucpe_onnx.analysis.shapes.partial import Facts, Shape, combine


def contrib_shapes(facts: Facts) -> Sequence[Shape | None]:
    """What a node's inputs tell about its outputs' shapes.

    Returns:
        One entry for each output that something is known of; a dimension that may differ between runs is None.
    """
    return by_rule(_RULES, facts)


def _elementwise(facts: Facts) -> Shape | None:
    return broadcast(*facts.shapes)


def _operands(rule: Callable[[Facts], Shape | None], at: slice) -> Callable[[Facts], Shape | None]:
    """The rule of a plain operator for a quantised one, whose operands lie between scales and zero points."""
    return lambda facts: rule(replace(facts, shapes=facts.shapes[at]))


def _global_pool(facts: Facts) -> Shape | None:
    shape = facts.shape(0)
    return None if shape is None else (*shape[:2], *[1] * (len(shape) - 2))


def _skip_norm(facts: Facts) -> list[Shape | None]:
    """What is normalised, two statistics of it, and the sum that it is made of."""
    shape = facts.shape(0)
    statistics = None if shape is None else (*shape[:-1], 1)
    return [shape, statistics, statistics, shape]


def _embedding_norm(facts: Facts) -> list[Shape | None]:
    """Ids (batch, time) into (batch, time, width of the table); what a mask leaves, and the sum before the norm."""
    ids, table = facts.shape(0), facts.shape(2)
    if ids is None or table is None:
        return []
    made = (*ids, table[-1])
    return [made, ids[:1], made]


def _attention(facts: Facts) -> list[Shape | None]:
    """Data (batch, time, width) with a weight of queries, keys and values side by side; past states grow in time."""
    data, weight, past = facts.shape(0), facts.shape(1), facts.shape(4)
    sizes = facts.attributes.get("qkv_hidden_sizes")
    if data is None or weight is None:
        return []
    third = combine("Div", INT64, weight[-1], 3)
    present = None if past is None else (*past[:3], None, *past[4:])
    return [(*data[:2], int(sizes[2]) if sizes else dimension(third)), present]


def _heads(facts: Facts) -> list[Shape | None]:
    """Queries (batch, time, heads * size), keys and values apart; values as wide as queries but for few models."""
    query, value = facts.shape(0), facts.shape(2)
    if query is None or len(query) != 3:
        return []
    heads = facts.attributes.get("num_heads")
    if facts.op == "GroupQueryAttention":  # queries may hold keys and values behind them
        return [query if facts.has(1) else (*query[:2], None)]
    return [(*query[:2], value[-1] if value is not None and len(value) == 3 and heads else None)]


def _recurrent(facts: Facts) -> list[Shape | None]:
    """Data (time, batch, features), and a weight (directions, units, gates * units) that tells the number of units."""
    data, weight = facts.shape(0), facts.shape(2)
    if data is None or weight is None:
        return []
    last = (weight[0], data[1], weight[1])
    return [(data[0], *last), last, last]


_NORMS = ("GroupNorm", "RotaryEmbedding")
_ACTIVATIONS = (
    "BiasGelu",
    "FastGelu",
    "Gelu",
    "QuickGelu",
    "ScaledSiLU",
    "QLinearLeakyRelu",
    "QLinearSigmoid",
    "QLinearSoftmax",
)

_RULES: dict[str, Rule] = {
    **dict.fromkeys((*_NORMS, *_ACTIVATIONS), like_first),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), _heads),
    "Attention": _attention,
    "DynamicQuantizeLSTM": _recurrent,
    "EmbedLayerNormalization": _embedding_norm,
    "FusedConv": conv,
    "FusedGemm": gemm,
    "FusedMatMul": matmul,
    "QGemm": of_integers(gemm, "com.microsoft::QGemm"),
    "QLinearAdd": _operands(_elementwise, slice(0, 4, 3)),
    "QLinearAveragePool": lambda facts: pool(facts)[0],
    "QLinearConcat": _operands(concat, slice(2, None, 3)),
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearMul": _operands(_elementwise, slice(0, 4, 3)),
}
