"""What a model weighs: parameters, multiply-accumulates, bytes, nodes, memory copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.model.limits import all_tensors
from ucpe_onnx.model.serialise import model_size

COPIES = ("Gather", "Slice", "Split", "Concat", "Pad")
"""Operators that only select or move channels."""

SECOND_FACTOR = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger"), 1),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "com.microsoft::QGemm"), 3),
}
"""What counts as multiply-accumulates, and the input that holds the other factor."""
_QUANTISED = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class ModelStats:
    """Size of a model.

    Attributes:
        parameters: elements of its floating-point tensors, in subgraphs too, and of 8-bit ones with two axes or more.
        macs: multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul for one run on the given input shapes; None
            if a shape can't be inferred.
        bytes: of the serialised model.
        nodes: number of nodes.
        copies: number of nodes by operator that only select or move channels.
    """

    parameters: int
    macs: int | None
    bytes: int
    nodes: int
    copies: Mapping[str, int]

    def lighter_than(self, other: ModelStats) -> bool:
        """Whether there is less to do, or to hold, than in another model."""
        fewer_macs = self.macs is not None and other.macs is not None and self.macs < other.macs
        return self.parameters < other.parameters or fewer_macs

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.bytes,
            "nodes": self.nodes,
            "copies": dict(self.copies),
        }


def model_stats(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> ModelStats:
    """Weigh a model.

    Args:
        model: the model; not changed.
        shapes: the input shapes to count multiply-accumulates for, by input name.
    """
    graph = model.graph
    operators = [node.op_type for node in graph.node]
    return ModelStats(
        parameters=sum(math.prod(t.dims) for t in all_tensors(model) if holds_weights(t)),
        macs=count_macs(model, shapes),
        bytes=model_size(model),
        nodes=len(operators),
        copies={op: operators.count(op) for op in COPIES},
    )


def holds_weights(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's elements count as parameters."""
    return tensor.data_type in _FLOATS or (tensor.data_type in _QUANTISED and len(tensor.dims) > 1)


def count_macs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates for one run on given input shapes; None if some layer's shape can't be inferred."""
    view = GraphView(model, shapes)
    total = 0
    for node in view.nodes:
        if node.op_type not in SECOND_FACTOR:
            continue
        names = (node.inputs[0], node.inputs[SECOND_FACTOR[node.op_type]], node.outputs[0])
        data, weight, out = (view.shape(name) for name in names)
        if data is None or weight is None or out is None:
            return None
        if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
            factors = (*out, *weight[1:])
        elif node.op_type == "ConvTranspose":
            factors = (*data, *weight[1:])
        else:
            factors = (*out, data[0] if node.attributes.get("transA") else data[-1])
        known = [f for f in factors if isinstance(f, int)]
        if len(known) < len(factors):
            return None
        total += math.prod(known)
    return total
