"""One small function per operator: how it carries, reads, makes or fixes channels.

A rule is ``rule(tracer, node) -> None``. It links the axes that carry the same slots, freezes those whose positions
matter to it, and registers the node as consumer or producer. An operator without a rule freezes all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules import (
    attention,
    bodies,
    contrib,
    convolution,
    einsum,
    elementwise,
    indexing,
    linear,
    normalisation,
    padding,
    pooling,
    quantisation,
    recurrent,
    reduction,
    repeat,
    scatter,
    sequences,
    shape,
)
from ucpe_onnx.analysis.tracer import Tracer

RULES: Mapping[str, Callable[[Tracer, Node], None]] = MappingProxyType(
    convolution.RULES
    | linear.RULES
    | normalisation.RULES
    | elementwise.RULES
    | pooling.RULES
    | quantisation.RULES
    | reduction.RULES
    | shape.RULES
    | indexing.RULES
    | padding.RULES
    | repeat.RULES
    | scatter.RULES
    | sequences.RULES
    | einsum.RULES
    | recurrent.RULES
    | attention.RULES
    | contrib.RULES
    | bodies.RULES
)
"""Operator type -> rule; operators outside of the standard domain as ``domain::type``."""

_ANY_OPERAND = (elementwise.broadcasting, quantisation.quantised_pair, quantisation.quantised_concat)

TAKES_CONSTANT_DATA = frozenset(
    {"Concat", "ConstantOfShape", "DequantizeLinear", "Expand", "Gather", "Gemm", "MatMul", "PRelu", "QuantizeLinear"}
    | {"GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND", "SequenceConstruct", "Tile", "Where"}
    | {"com.microsoft::FusedGemm", "com.microsoft::FusedMatMul", *bodies.RULES}
) | {op for op, rule in RULES.items() if rule in _ANY_OPERAND}
"""Operators whose rules take a constant first input; for all others it freezes the node."""

__all__ = ["RULES", "TAKES_CONSTANT_DATA"]
