"""Gemm, MatMul and their quantised forms: consumer of the contracted axis, producer of the weight's other axis."""

from __future__ import annotations

from collections.abc import Sequence

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import LAYER_OPS, Kind, LayerOp
from ucpe_onnx.analysis.rules.common import broadcast_axis
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import Tracer


def gemm(tracer: Tracer, node: Node) -> None:
    """Y (M, N) = alpha A' B' + beta C with B constant: A's contracted axis is read, Y's axis 1 is made.

    Of integers, scale and zero point of B may have one entry per column.
    """
    op = LAYER_OPS[node.op_type]
    if not _scales_fit(tracer, node, op, op.weight_coding.inputs):
        return
    data, out = tracer.operand(node, op.data), node.outputs[0]
    weight = tracer.operand(node, op.weight)
    bias = None if op.bias is None else tracer.operand(node, op.bias)
    if not isinstance(weight, tuple) or not isinstance(data, str) or tracer.rank(data) != 2 or isinstance(bias, str):
        tracer.freeze_node(node, f"operand computed at run time: {node.op_type} at {node.name}")
        return
    read, row = (0, 1) if node.attributes.get("transA", 0) else (1, 0)
    reads, makes = op.weight_axes(node.attributes)
    tracer.link((data, row), (out, 0), node)
    tracer.consume(tracer.weight_use(node, (data, read), op.weight, reads))
    followers: list[AxisKey] = [(weight, makes), *_per_column(tracer, node, op.weight_coding.inputs)]
    if bias is not None:
        dims = tracer.dims(bias) or ()
        if dims and dims[-1] != 1:
            followers.append((bias, len(dims) - 1))
        if len(dims) == 2 and dims[0] != 1:
            tracer.link((out, 0), (bias, 0), node)
    tracer.produce(tracer.weight_use(node, (out, 1), op.weight, makes), *followers)


def product(tracer: Tracer, node: Node) -> None:
    """A constant on either side reads the other side's contracted axis; two activations mix it.

    A constant with more than two axes holds a matrix for each of many (experts, say): a mask holds for all of them.

    Of integers, scale and zero point of a matrix on the right may have one entry per column; one on the left is not
    read where there are scales.
    """
    op = LAYER_OPS[node.op_type]
    if not _scales_fit(tracer, node, op, op.followers):
        return
    if any(node.attributes.get(name, 0) for name in ("transBatchA", "transBatchB")):
        tracer.freeze_node(node, f"batches moved about: {node.op_type} at {node.name}")
        return
    left, right = tracer.operand(node, op.data), tracer.operand(node, op.weight)
    out = node.outputs[0]
    ranks = [None if key is None else tracer.rank(key) for key in (left, right)]
    coded = any(tracer.operand(node, index) is not None for index in op.scalars)
    turned = [bool(node.attributes.get(name, 0)) for name in ("transA", "transB")]
    many, plain = all((rank or 0) >= 2 for rank in ranks), not coded and not any(turned)
    one = ranks[1] == 2 or op.real  # scales for each of many matrices are not followed
    if isinstance(left, str) and isinstance(right, tuple) and many and one and not turned[0]:
        _with_matrix(tracer, node, left, op.weight, _per_column(tracer, node, op.followers))
    elif isinstance(left, tuple) and isinstance(right, str) and many and plain:
        _with_matrix(tracer, node, right, op.data, [])
    elif isinstance(left, str) and isinstance(right, str) and ranks[0] and ranks[1] and tracer.rank(out):
        _of_activations(tracer, node, left, right, _per_column(tracer, node, op.followers))
    else:
        tracer.freeze_node(node, f"operands of an unsupported form: {node.op_type} at {node.name}")


def _with_matrix(tracer: Tracer, node: Node, data: str, weight_input: int, per_column: list[AxisKey]) -> None:
    op = LAYER_OPS[node.op_type]
    out, weight = node.outputs[0], tracer.operand(node, weight_input)
    ranks = tracer.rank(data) or 0, 0 if weight is None else tracer.rank(weight) or 0
    rank = tracer.rank(out)
    if weight is None or rank != max(ranks):
        tracer.freeze_node(node, tracer.of_unknown_rank(node))
        return
    read, kept = (1, 2) if weight_input == op.weight else (2, 1)  # counted from the end
    tracer.link((data, ranks[0] - kept), (out, rank - kept), node)
    for back in range(3, rank + 1):
        keys: list[AxisKey] = [(data, ranks[0] - back), (weight, ranks[1] - back)]
        if ranks[1] < back:
            tracer.link(keys[0], (out, rank - back), node)
        else:
            broadcast_axis(tracer, node, [key for key in keys if key[1] >= 0], (out, rank - back))
    reads, makes = (ranks[1] - 2 + axis for axis in op.weight_axes(node.attributes, weight_input))
    tracer.consume(tracer.weight_use(node, (data, ranks[0] - read), weight_input, reads))
    made = tracer.weight_use(node, (out, rank - read), weight_input, makes)
    tracer.produce(made, (made.constant, makes), *per_column)


def _scales_fit(tracer: Tracer, node: Node, op: LayerOp, columns: Sequence[int]) -> bool:
    """Whether data and output have one scale and zero point each, and the columns constant ones; else it is frozen.

    Those of the columns may have axes of length 1 in front; longer ones, for every matrix of many, are not followed.
    """
    scalars = [key for index in op.scalars if (key := tracer.operand(node, index)) is not None]
    others = [key for index in columns if (key := tracer.operand(node, index)) is not None]
    per_column = all(
        isinstance(key, tuple) and all(size == 1 for size in (tracer.dims(key) or ())[:-1]) for key in others
    )
    if per_column and all(tracer.dims(key) in ((), (1,)) for key in scalars):
        return True
    tracer.freeze_node(node, f"scales of an unsupported form: {node.op_type} at {node.name}")
    return False


def _per_column(tracer: Tracer, node: Node, columns: Sequence[int]) -> list[AxisKey]:
    """The axes of those inputs that have one entry per column of the output, and not one for all."""
    keys = [key for index in columns if (key := tracer.operand(node, index)) is not None]
    axes = [(key, rank - 1) for key in keys if (rank := tracer.rank(key))]
    return [axis for axis in axes if tracer.size(axis) != 1]


def _of_activations(tracer: Tracer, node: Node, left: str, right: str, per_column: list[AxisKey]) -> None:
    """Rows come from the left operand, columns from the right, leading axes from both; the contracted axis mixes."""
    out, reason = node.outputs[0], f"axis contracted between two activations: {node.op_type} at {node.name}"
    ranks = (tracer.rank(left) or 0, tracer.rank(right) or 0, tracer.rank(out) or 0)
    if min(ranks) < 2:
        tracer.freeze_node(node, reason)
        return
    rows, columns = (
        (2, 1) if not node.attributes.get("transA", 0) else (1, 2),
        ((1, 2) if not node.attributes.get("transB", 0) else (2, 1)),
    )
    tracer.freeze(left, reason, [ranks[0] - rows[1]])
    tracer.freeze(right, reason, [ranks[1] - columns[1]])
    tracer.link((left, ranks[0] - rows[0]), (out, ranks[2] - 2), node)
    tracer.link((right, ranks[1] - columns[0]), (out, ranks[2] - 1), node)
    for follower in per_column:
        tracer.link((out, ranks[2] - 1), follower, node)
    for back in range(3, ranks[2] + 1):
        keys: list[AxisKey] = [
            (key, rank - back) for key, rank in zip((left, right), ranks, strict=False) if rank >= back
        ]
        broadcast_axis(tracer, node, keys, (out, ranks[2] - back))


_RULE_OF = {Kind.GEMM: gemm, Kind.PRODUCT: product}

RULES = {name: _RULE_OF[op.kind] for name, op in LAYER_OPS.items() if op.kind in _RULE_OF}
