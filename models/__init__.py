"""Real architectures as ONNX models with seeded random weights, built without a framework."""

from .builder import count_parameters
from .catalogue import ARCHITECTURES, Architecture, build

__all__ = ["ARCHITECTURES", "Architecture", "build", "count_parameters"]
