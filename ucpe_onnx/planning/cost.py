"""Predicted cost of a consumer's lowerings, in microseconds.

The model is the one that fits onnxruntime's CPU kernels: arithmetic in whole blocks, copies by the byte, and a reorder
on each side of a copy that leaves the blocked layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ucpe_onnx.analysis.trace import Consumer, Trace
from ucpe_onnx.planning.target import Target

_NOMINAL = 28
"""Length assumed for a spatial axis that is dynamic."""


@dataclass(frozen=True)
class ReadCost:
    """What the cost of reading channels depends on.

    Attributes:
        read_elements: elements per channel of the tensor that is read.
        flops: floating-point operations per channel that is read.
        convolution: whether the consumer runs in the blocked layout.
    """

    read_elements: int
    flops: float
    convolution: bool

    def compute_us(self, target: Target, channels: int) -> float:
        """Time of the consumer itself when it reads so many channels."""
        if target.blocked and self.convolution:
            penalty = 1.5 if channels >= target.minimum and channels % target.read_multiple else 1.0
            channels = -(-channels // target.block) * target.block
        else:
            penalty = 1.0
        return target.call_us + penalty * self.flops * channels / (target.gflops * 1e3)

    def copy_us(self, target: Target, channels: int, available: int) -> float:
        """Time to copy so many channels out of those available, reorders included."""
        moved = channels
        if target.blocked and self.convolution:
            moved += channels + available  # back into blocks, and out of them before
        calls = 3 if target.blocked and self.convolution else 1
        return calls * target.call_us + moved * self.read_elements * 4 / target.bytes_per_us


def read_cost(trace: Trace, consumer: Consumer) -> ReadCost:
    """Measure a consumer: elements per channel, operations per channel."""
    use = consumer.use
    tensor, axis = use.tensor_axis
    dims = list(trace.graph.shape(str(tensor)) or ())
    del dims[axis : axis + 1]
    read = _elements(dims, skip_batch=axis != 0)
    out = list(trace.graph.shape(use.node.outputs[0]) or ())
    weight = trace.graph.constants.shape(use.weight) or ()
    if use.node.op_type == "Conv":
        positions = _elements(out[2:], skip_batch=False)
        per_channel = 2.0 * math.prod(weight) / weight[1] / use.groups * positions
    elif use.node.op_type == "ConvTranspose":
        positions = _elements(dims[1:], skip_batch=False)
        per_channel = 2.0 * math.prod(weight[1:]) * positions
    else:
        positions = _elements(out[:-1], skip_batch=True)
        per_channel = 2.0 * math.prod(weight) / consumer.channels * positions
    return ReadCost(read, per_channel, use.node.op_type == "Conv" and len(out) == 4)


def _elements(dims: list[int | str | None], *, skip_batch: bool) -> int:
    known = [d if isinstance(d, int) else _NOMINAL for d in dims]
    if skip_batch and dims and not isinstance(dims[0], int):
        known[0] = 1
    return math.prod(known)
