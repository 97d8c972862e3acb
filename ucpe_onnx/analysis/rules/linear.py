"""Gemm, MatMul and their quantised forms: consumer of the contracted axis, producer of the weight's other axis."""

from __future__ import annotations

from collections.abc import Sequence

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.rules.common import broadcast_axis
from ucpe_onnx.analysis.slots import AxisKey, TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def gemm(tracer: Tracer, node: Node) -> None:
    """Y (M, N) = alpha A' B' + beta C with B constant: A's contracted axis is read, Y's axis 1 is made."""
    _gemm(tracer, node, 1, tracer.operand(node, 2))


def qgemm(tracer: Tracer, node: Node) -> None:
    """Onnxruntime's Gemm of 8-bit integers; scale and zero point of B may have one entry per column."""
    keys = [key for index in (1, 2, 7, 8) if (key := tracer.operand(node, index)) is not None]
    columns = [key for index in (4, 5) if (key := tracer.operand(node, index)) is not None]
    if any(tracer.dims(key) not in ((), (1,)) for key in keys) or any(isinstance(key, str) for key in columns):
        tracer.freeze_node(node, f"scales of an unsupported form: {node.op_type} at {node.name}")
    else:
        _gemm(tracer, node, 3, tracer.operand(node, 6), columns)


def _gemm(
    tracer: Tracer, node: Node, weight_input: int, bias: TensorKey | None, columns: Sequence[TensorKey] = ()
) -> None:
    data, out = tracer.operand(node, 0), node.outputs[0]
    transposed_a, transposed_b = bool(node.attributes.get("transA", 0)), bool(node.attributes.get("transB", 0))
    weight = tracer.operand(node, weight_input)
    if not isinstance(weight, tuple) or not isinstance(data, str) or tracer.rank(data) != 2 or isinstance(bias, str):
        tracer.freeze_node(node, f"operand computed at run time: {node.op_type} at {node.name}")
        return
    read, row = (0, 1) if transposed_a else (1, 0)
    tracer.link((data, row), (out, 0), node)
    tracer.consume(tracer.weight_use(node, (data, read), weight_input, 1 if transposed_b else 0))
    made = tracer.weight_use(node, (out, 1), weight_input, 0 if transposed_b else 1)
    wide = [(key, 0) for key in columns if tracer.rank(key) == 1 and tracer.size((key, 0)) != 1]
    followers: list[AxisKey] = [(weight, made.weight_axis), *wide]
    if bias is not None:
        dims = tracer.dims(bias) or ()
        if dims and dims[-1] != 1:
            followers.append((bias, len(dims) - 1))
        if len(dims) == 2 and dims[0] != 1:
            tracer.link((out, 0), (bias, 0), node)
    tracer.produce(made, *followers)


def matmul(tracer: Tracer, node: Node) -> None:
    """A constant matrix on either side reads the other side's contracted axis; two activations mix it."""
    _product(tracer, node, 0, 1)


def matmul_integer(tracer: Tracer, node: Node) -> None:
    """MatMul of 8-bit integers; zero points are one for all, or the weight's one per column."""
    _product(tracer, node, 0, 1, per_column=(3,), scalars=(2,))


def qlinear_matmul(tracer: Tracer, node: Node) -> None:
    """MatMul between quantised tensors; scale and zero point of the weight may have one entry per column."""
    _product(tracer, node, 0, 3, per_column=(4, 5), scalars=(1, 2, 6, 7))


def _product(
    tracer: Tracer,
    node: Node,
    first: int,
    second: int,
    *,
    per_column: tuple[int, ...] = (),
    scalars: tuple[int, ...] = (),
) -> None:
    left, right = tracer.operand(node, first), tracer.operand(node, second)
    out = node.outputs[0]
    ranks = [None if key is None else tracer.rank(key) for key in (left, right)]
    keys = [key for i in scalars if (key := tracer.operand(node, i)) is not None]
    columns = [key for i in per_column if (key := tracer.operand(node, i)) is not None]
    if any(tracer.dims(key) not in ((), (1,)) for key in keys) or any(isinstance(key, str) for key in columns):
        tracer.freeze_node(node, f"scales of an unsupported form: {node.op_type} at {node.name}")
    elif isinstance(left, str) and isinstance(right, tuple) and ranks[1] == 2 and (ranks[0] or 0) >= 2:
        _with_matrix(tracer, node, data=left, weight_input=second, columns=columns)
    elif isinstance(left, tuple) and isinstance(right, str) and ranks[0] == 2 and (ranks[1] or 0) >= 2 and not keys:
        _with_matrix(tracer, node, data=right, weight_input=first, columns=[])
    elif isinstance(left, str) and isinstance(right, str) and ranks[0] and ranks[1] and tracer.rank(out):
        _of_activations(tracer, node, left, right)
    else:
        tracer.freeze_node(node, f"operands of an unsupported form: {node.op_type} at {node.name}")


def _with_matrix(tracer: Tracer, node: Node, data: str, weight_input: int, columns: list[TensorKey]) -> None:
    out, rank = node.outputs[0], tracer.rank(data) or 0
    if tracer.rank(out) != rank:
        tracer.freeze_node(node, f"tensor of unknown rank: {node.op_type} at {node.name}")
        return
    right = weight_input > 0
    axis = rank - 1 if right else rank - 2
    for other in range(rank):
        if other != axis:
            tracer.link((data, other), (out, other), node)
    reads, makes = (0, 1) if right else (1, 0)
    tracer.consume(tracer.weight_use(node, (data, axis), weight_input, reads))
    made = tracer.weight_use(node, (out, axis), weight_input, makes)
    wide = [(key, 0) for key in columns if tracer.rank(key) == 1 and tracer.size((key, 0)) != 1]
    tracer.produce(made, (made.constant, makes), *wide)


def _of_activations(tracer: Tracer, node: Node, left: str, right: str) -> None:
    """Rows come from the left operand, columns from the right, leading axes from both; the contracted axis mixes."""
    out, reason = node.outputs[0], f"axis contracted between two activations: {node.op_type} at {node.name}"
    ranks = (tracer.rank(left) or 0, tracer.rank(right) or 0, tracer.rank(out) or 0)
    tracer.freeze(left, reason, [ranks[0] - 1])
    tracer.freeze(right, reason, [max(ranks[1] - 2, 0)])
    if min(ranks) < 2:
        tracer.freeze_node(node, reason)
        return
    tracer.link((left, ranks[0] - 2), (out, ranks[2] - 2), node)
    tracer.link((right, ranks[1] - 1), (out, ranks[2] - 1), node)
    for back in range(3, ranks[2] + 1):
        keys: list[AxisKey] = [
            (key, rank - back) for key, rank in zip((left, right), ranks, strict=False) if rank >= back
        ]
        broadcast_axis(tracer, node, keys, (out, ranks[2] - back))


RULES = {
    "Gemm": gemm,
    "com.microsoft::QGemm": qgemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
}
