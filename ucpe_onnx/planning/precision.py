"""In what precision a model computes."""

from __future__ import annotations

from ucpe_onnx.analysis.quantised import quantization_of
from ucpe_onnx.analysis.trace import Trace


def precision_of(trace: Trace) -> str:
    """``int8`` if most consumers read quantised weights, else ``float32``."""
    graph = trace.graph
    ranks = [
        (consumer.use, len(graph.constants.shape(consumer.use.weight) or ())) for consumer in trace.consumers.values()
    ]
    quantised = sum(quantization_of(graph, use.constant, rank) is not None for use, rank in ranks)
    return "int8" if 2 * quantised > len(ranks) else "float32"
