"""Shapes of a graph's tensors: onnx's inference, and what it leaves open followed through shape arithmetic."""

from ucpe_onnx.analysis.shapes.infer import infer_shapes
from ucpe_onnx.analysis.shapes.partial import Shape

__all__ = ["Shape", "infer_shapes"]
