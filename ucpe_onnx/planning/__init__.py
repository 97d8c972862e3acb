"""From masks to a plan: widths, order and lowerings."""

from ucpe_onnx.planning.make import make_plan
from ucpe_onnx.runtime.target import Target, target_for

__all__ = ["Target", "make_plan", "target_for"]
