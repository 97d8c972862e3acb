"""Gemm and MatMul: consumer of the contracted axis, producer of the weight's other axis."""

from __future__ import annotations

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import constant_operand
from ucpe_onnx.analysis.slots import AxisKey, TensorKey
from ucpe_onnx.analysis.tracer import Tracer, WeightUse


def gemm(tracer: Tracer, node: Node) -> None:
    """Y (M, N) = alpha A' B' + beta C with B constant: A's contracted axis is read, Y's axis 1 is made."""
    data, out = node.inputs[0], node.outputs[0]
    transposed_a, transposed_b = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))
    bias = tracer.operand(node, 2)
    if constant_operand(tracer, node, 1) is None or tracer.rank(data) != 2 or isinstance(bias, str):
        tracer.freeze_node(node, f"operand computed at run time: Gemm at {node.name}")
        return
    read, row = (0, 1) if transposed_a else (1, 0)
    tracer.link((data, row), (out, 0), node)
    tracer.consume(WeightUse(node, (data, read), node.inputs[1], 1, 1 if transposed_b else 0))
    followers: list[AxisKey] = []
    if bias is not None:
        dims = tracer.dims(bias) or ()
        if dims and dims[-1] != 1:
            followers.append((bias, len(dims) - 1))
        if len(dims) == 2 and dims[0] != 1:
            tracer.link((out, 0), (bias, 0), node)
    tracer.produce(WeightUse(node, (out, 1), node.inputs[1], 1, 0 if transposed_b else 1), *followers)


def matmul(tracer: Tracer, node: Node) -> None:
    """A constant matrix on either side reads the other side's contracted axis; two activations mix it."""
    left, right = tracer.operand(node, 0), tracer.operand(node, 1)
    out = node.outputs[0]
    ranks = [None if key is None else tracer.rank(key) for key in (left, right)]
    if isinstance(left, str) and isinstance(right, tuple) and ranks[1] == 2 and (ranks[0] or 0) >= 2:
        _with_matrix(tracer, node, data=left, weight_input=1)
    elif isinstance(left, tuple) and isinstance(right, str) and ranks[0] == 2 and (ranks[1] or 0) >= 2:
        _with_matrix(tracer, node, data=right, weight_input=0)
    elif isinstance(left, str) and isinstance(right, str) and ranks[0] == ranks[1] == tracer.rank(out):
        _of_activations(tracer, node, left, right)
    else:
        tracer.freeze_node(node, f"operands of an unsupported form: MatMul at {node.name}")


def _with_matrix(tracer: Tracer, node: Node, data: str, weight_input: int) -> None:
    out, rank = node.outputs[0], tracer.rank(data) or 0
    if tracer.rank(out) != rank:
        tracer.freeze_node(node, f"tensor of unknown rank: MatMul at {node.name}")
        return
    axis = rank - 1 if weight_input == 1 else rank - 2
    for other in range(rank):
        if other != axis:
            tracer.link((data, other), (out, other), node)
    weight = node.inputs[weight_input]
    reads, makes = (0, 1) if weight_input == 1 else (1, 0)
    tracer.consume(WeightUse(node, (data, axis), weight, weight_input, reads))
    tracer.produce(WeightUse(node, (out, axis), weight, weight_input, makes))


def _of_activations(tracer: Tracer, node: Node, left: str, right: str) -> None:
    """Rows come from the left operand, columns from the right, leading axes from both; the contracted axis mixes."""
    out, rank = node.outputs[0], tracer.rank(left) or 0
    reason = f"axis contracted between two activations: MatMul at {node.name}"
    tracer.freeze(left, reason, [rank - 1])
    tracer.freeze(right, reason, [rank - 2])
    if rank < 2:
        tracer.freeze(out, reason)
        return
    tracer.link((left, rank - 2), (out, rank - 2), node)
    tracer.link((right, rank - 1), (out, rank - 1), node)
    batch: list[TensorKey] = [left, right]
    for axis in range(rank - 2):
        sizes = {tracer.size((key, axis)) for key in (*batch, out)}
        if len(sizes) == 1:
            for key in batch:
                tracer.link((key, axis), (out, axis), node)
        else:
            for key in (*batch, out):
                tracer.freeze(key, f"broadcast batch axis: MatMul at {node.name}", [axis])


RULES = {"Gemm": gemm, "MatMul": matmul}
