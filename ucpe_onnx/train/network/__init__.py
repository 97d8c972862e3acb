"""ONNX graphs in torch: gradients of the file's own weights, and the trained values back in the file.

A :class:`Network` runs a graph with autograd. Adding an operator is one function and one entry in the table of its
family, in ``ops/``.
"""

from ucpe_onnx.train.network.network import Network
from ucpe_onnx.train.network.write_back import with_trained

__all__ = ["Network", "with_trained"]
