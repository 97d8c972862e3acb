"""LSTM, GRU and RNN: consumers of their input's features, producers of their hidden units."""

from __future__ import annotations

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_FEATURES = _HIDDEN = 2
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STACKED = {"LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3)}
"""Inputs whose axis 1 holds one block of hidden units after the other: W, R, B and LSTM's peepholes."""


def recurrent(tracer: Tracer, node: Node) -> None:
    """W (directions, gates * hidden, features) reads the last axis of X (time, batch, features).

    A hidden unit can go only if nobody reads it, the recurrence least of all: R (directions, gates * hidden, hidden)
    must hold zeros for it in every direction. All others stay.
    """
    data = node.inputs[0]
    weight, recurrence = tracer.operand(node, 1), tracer.operand(node, 2)
    ranks = [tracer.rank(key) for key in (data, weight, recurrence) if key is not None]
    if not isinstance(weight, tuple) or not isinstance(recurrence, tuple) or ranks != [3, 3, 3]:
        tracer.freeze_node(node, f"weight computed at run time or unknown rank: {node.op_type} at {node.name}")
        return
    tracer.freeze(data, f"time or batch of {node.op_type} at {node.name}", [0, 1])
    tracer.consume(tracer.weight_use(node, (data, _FEATURES), 1, _FEATURES))
    units: list[AxisKey] = [(name, rank - 1) for name in node.outputs if name and (rank := tracer.rank(name) or 0) > 1]
    for name, axis in units:
        tracer.freeze(name, f"time, batch or direction of {node.op_type} at {node.name}", range(axis))
    states = [key for i in range(4, len(node.inputs)) if i != 7 and (key := tracer.operand(node, i)) is not None]
    for key in states:
        tracer.freeze(key, f"lengths or initial states of {node.op_type} at {node.name}")
    if units:
        _hidden_units(tracer, node, units, free=not states)


def _hidden_units(tracer: Tracer, node: Node, units: list[AxisKey], *, free: bool) -> None:
    first = units[0]
    size = tracer.size(first)
    values = tracer.graph.value(node.inputs[2])
    reason = f"hidden units that the recurrence reads: {node.op_type} at {node.name}"
    if size is None or values is None or values.shape[_HIDDEN] != size or not free:
        for name, axis in units:
            tracer.freeze(name, reason, [axis])
        return
    tracer.produce(tracer.weight_use(node, first, 1, 1))
    for other in units[1:]:
        tracer.link(first, other, node)
    for index in _STACKED[node.op_type]:
        key = tracer.operand(node, index)
        length = tracer.size((key, 1)) if isinstance(key, tuple) else None
        if key is not None and (length is None or length % size):
            tracer.freeze(first[0], reason, [first[1]])
        elif key is not None and length is not None:
            at = np.arange(length, dtype=np.int64)
            tracer.link_positions(first, at % size, (key, 1), at, outer=at // size)
    key = tracer.operand(node, 2)
    if key is not None:
        tracer.link(first, (key, _HIDDEN), node)
    read = np.flatnonzero((values != 0).any(axis=(0, 1)))
    tracer.table.freeze(tracer.table.add(first, size)[read], reason)

    def size_follows(edit: NodeEdit) -> None:
        edit.set_attribute("hidden_size", edit.size(first))

    tracer.rewrite(node, size_follows)


RULES = dict.fromkeys(_GATES, recurrent)
