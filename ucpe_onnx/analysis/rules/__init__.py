"""One small function per operator: how it carries, reads, makes or fixes channels.

A rule is ``rule(tracer, node) -> None``. It links the axes that carry the same slots, freezes those whose positions
matter to it, and registers the node as consumer or producer. An operator without a rule freezes all that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules import convolution, elementwise, linear, normalization, pooling, reduction, shape
from ucpe_onnx.analysis.tracer import Tracer

RULES: Mapping[str, Callable[[Tracer, Node], None]] = MappingProxyType(
    convolution.RULES
    | linear.RULES
    | normalization.RULES
    | elementwise.RULES
    | pooling.RULES
    | reduction.RULES
    | shape.RULES
)
"""Operator type -> rule, for the standard domain."""

__all__ = ["RULES"]
