"""From masks to a plan: widths, order and lowerings."""

from ucpe_onnx.planning.make import make_plan

__all__ = ["make_plan"]
