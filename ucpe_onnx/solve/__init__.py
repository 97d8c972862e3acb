"""Decisions made by OR-Tools: which layout of a segment's channels costs the least."""

from ucpe_onnx.solve.order import solve_ordering
from ucpe_onnx.solve.paths import path_ordering
from ucpe_onnx.solve.problem import Ordering, OrderingProblem, Reader, served_readers

__all__ = ["Ordering", "OrderingProblem", "Reader", "path_ordering", "served_readers", "solve_ordering"]
