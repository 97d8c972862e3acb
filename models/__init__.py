"""Real architectures as ONNX models with seeded random weights, built without a framework."""

from .builder import count_parameters
from .catalogue import ARCHITECTURES, DEEP, Architecture, build

__all__ = ["ARCHITECTURES", "DEEP", "Architecture", "build", "count_parameters"]
