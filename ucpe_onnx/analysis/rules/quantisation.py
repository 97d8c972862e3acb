"""Quantised graphs: QuantizeLinear and DequantizeLinear pass every channel, with its scale and zero point."""

from __future__ import annotations

from collections.abc import Sequence

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.quantised import codecs_behind, constant_use, is_codec
from ucpe_onnx.analysis.rules.common import elementwise, normalized_axis
from ucpe_onnx.analysis.rules.pooling import pool
from ucpe_onnx.analysis.rules.shape import concatenated
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import Tracer


def codec(tracer: Tracer, node: Node) -> None:
    """QuantizeLinear and DequantizeLinear: axes pass; scales given per channel follow their channels.

    On the way of a constant they belong to whoever reads it: see :func:`link_codecs`.
    """
    out = node.outputs[0]
    if isinstance(tracer.operand(node, 0), tuple):
        if not _belongs_to_reader(tracer, node):
            tracer.freeze_node(node, f"quantised constant with several readers: {node.op_type} at {node.name}")
        return
    if int(node.attributes.get("block_size", 0)):
        tracer.freeze_node(node, f"scales given per block: {node.op_type} at {node.name}")
        return
    tracer.pass_through(node, node.inputs[0], out)
    _parameters_follow(tracer, node, out)


def _belongs_to_reader(tracer: Tracer, node: Node) -> bool:
    """Whether a codec that a constant passes is a part of the way to the only node that reads it."""
    readers = tracer.graph.readers[node.outputs[0]]
    return len(readers) == 1 and constant_use(tracer.graph, *readers[0]) is not None


def dynamic(tracer: Tracer, node: Node) -> None:
    """DynamicQuantizeLinear takes its scale from the range of all channels: none can go without changing the others."""
    tracer.freeze_node(node, f"scale taken from all channels: DynamicQuantizeLinear at {node.name}")


def link_codecs(tracer: Tracer) -> None:
    """Let scales, zero points and declared shapes follow the constants that pass a codec.

    This comes after all rules: a constant's layout follows from its reader's.
    """
    for node in tracer.graph.nodes:
        key = tracer.operand(node, 0) if is_codec(node) else None
        if key != (node.index, 0):  # an activation, or a constant that another codec has passed
            continue
        for passed in codecs_behind(tracer.graph, key):
            if not _belongs_to_reader(tracer, passed):  # frozen, and known to its readers as no constant
                break
            tracer.pass_through(passed, key, passed.outputs[0])
            _parameters_follow(tracer, passed, key)


def _parameters_follow(tracer: Tracer, node: Node, carrier: TensorKey) -> None:
    """Scale and zero point have one element, or one for each position of an axis of the carrier."""
    axis = normalized_axis(int(node.attributes.get("axis", 1)), tracer.rank(carrier) or 1)
    for index in (1, 2):
        parameter = tracer.operand(node, index)
        dims = None if parameter is None else tracer.dims(parameter)
        if parameter is None or dims in ((), (1,)):
            continue
        if isinstance(parameter, str) or dims is None or len(dims) != 1:
            tracer.freeze(carrier, f"scales computed at run time: {node.op_type} at {node.name}")
        else:
            tracer.link((carrier, axis), (parameter, 0), node)


def _scalars(tracer: Tracer, node: Node, indices: Sequence[int]) -> bool:
    """Whether scales and zero points are one for all channels; else the node is frozen."""
    keys = [key for index in indices if (key := tracer.operand(node, index)) is not None]
    if all(tracer.dims(key) in ((), (1,)) for key in keys):
        return True
    tracer.freeze_node(node, f"scales given per channel: {node.op_type} at {node.name}")
    return False


def quantised_pair(tracer: Tracer, node: Node) -> None:
    """QLinearAdd and QLinearMul: inputs 0 and 3 are broadcast against each other."""
    operands = [key for index in (0, 3) if (key := tracer.operand(node, index)) is not None]
    if _scalars(tracer, node, (1, 2, 4, 5, 6, 7)):
        elementwise(tracer, node, operands, node.outputs[0])


def quantised_unary(tracer: Tracer, node: Node) -> None:
    """QLinearSigmoid and QLinearLeakyRelu."""
    if _scalars(tracer, node, range(1, len(node.inputs))):
        tracer.pass_through(node, node.inputs[0], node.outputs[0])


def quantised_pool(tracer: Tracer, node: Node) -> None:
    """QLinearAveragePool and QLinearGlobalAveragePool, channels first."""
    if int(node.attributes.get("channels_last", 0)):
        tracer.freeze_node(node, f"channels last: {node.op_type} at {node.name}")
    elif _scalars(tracer, node, range(1, len(node.inputs))):
        pool(tracer, node)


def quantised_concat(tracer: Tracer, node: Node) -> None:
    """QLinearConcat: scale and zero point of the result, then (tensor, scale, zero point) of each operand."""
    count = len(node.inputs)
    if _scalars(tracer, node, [index for index in range(count) if index < 2 or index % 3 != 2]):
        operands = [tracer.operand(node, index) for index in range(2, count, 3)]
        concatenated(tracer, node, [key for key in operands if key is not None])


RULES = {
    "QuantizeLinear": codec,
    "DequantizeLinear": codec,
    "DynamicQuantizeLinear": dynamic,
    "com.microsoft::QLinearAdd": quantised_pair,
    "com.microsoft::QLinearMul": quantised_pair,
    "com.microsoft::QLinearAveragePool": quantised_pool,
    "com.microsoft::QLinearGlobalAveragePool": quantised_pool,
    "com.microsoft::QLinearConcat": quantised_concat,
    "com.microsoft::QLinearLeakyRelu": quantised_unary,
    "com.microsoft::QLinearSigmoid": quantised_unary,
}
