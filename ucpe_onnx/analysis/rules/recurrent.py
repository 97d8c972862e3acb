"""LSTM, GRU and RNN, which read features of their input and their own hidden units; and ReverseSequence.

A recurrent layer multiplies by two weights: W reads the features of its input, and R the hidden units of the step
before. So it is two consumers, each with a mask of its own: the node, and its recurrence (``<node>/recurrence``), whose
mask sets columns of R to zero in all directions. A unit of whose numbers neither the recurrence nor any other reader
makes use changes nothing but itself, since all else that a recurrent layer does is done unit by unit: then it goes,
with its rows of W, R, B and P, its columns of R and its entries of the initial states.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, likewise GRU and RNN.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import numpy_helper

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.layer_ops import GATES
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_FEATURES = _UNITS = 2
_WEIGHT, _RECURRENCE, _BIAS, _LENGTHS, _PEEPHOLES = 1, 2, 3, 4, 7
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_KEEP_ZERO = frozenset(
    {"Cast", "Concat", "Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that make nothing but zeros of zeros: of their first input or, Concat, of all of them."""


def recurrent(tracer: Tracer, node: Node) -> None:
    """Features and hidden units of X (time, batch, features), W, R (directions, gates * units, features or units)."""
    data = node.inputs[0]
    weight, recurrence = tracer.operand(node, _WEIGHT), tracer.operand(node, _RECURRENCE)
    ranks = [tracer.rank(key) for key in (data, weight, recurrence) if key is not None]
    made: list[AxisKey] = [(name, rank - 1) for name in node.outputs if name and (rank := tracer.rank(name) or 0) > 1]
    if not isinstance(weight, tuple) or not isinstance(recurrence, tuple) or ranks != [3, 3, 3] or not made:
        tracer.freeze_node(node, f"weight computed at run time or unknown rank: {node.op_type} at {node.name}")
        return
    units = tracer.size((recurrence, _UNITS)) or 0
    if not _fits(tracer, node, units) or any(tracer.size(axis) not in (units, None) for axis in made):
        tracer.freeze_node(node, f"weights that don't fit each other: {node.op_type} at {node.name}")
        return
    tracer.freeze(data, f"time or batch of {node.op_type} at {node.name}", [0, 1])
    tracer.consume(tracer.weight_use(node, (data, _FEATURES), _WEIGHT, _FEATURES))
    tracer.freeze(tracer.operand(node, _LENGTHS), f"lengths of sequences: {node.op_type} at {node.name}")
    for name, axis in made:
        tracer.freeze(name, f"time, batch or direction of {node.op_type} at {node.name}", range(axis))
    _hidden_units(tracer, node, units, made)


def _fits(tracer: Tracer, node: Node, units: int) -> bool:
    """Whether the weights have as many rows as the operator takes for so many hidden units."""
    rows = GATES[node.op_type] * units
    expected = {_WEIGHT: rows, _RECURRENCE: rows, _BIAS: 2 * rows, _PEEPHOLES: 3 * units}
    keys = {index: tracer.operand(node, index) for index in expected}
    lengths = {index: tracer.size((key, 1)) for index, key in keys.items() if key is not None}
    return units > 0 and all(lengths[index] == expected[index] for index in lengths)


def _hidden_units(tracer: Tracer, node: Node, units: int, made: list[AxisKey]) -> None:
    """Link all that has an entry for each hidden unit; both directions have as many, so a unit goes in both."""
    first = made[0]
    states = [index for index in _STATES[node.op_type] if tracer.operand(node, index) is not None]
    computed = [index for index in states if isinstance(tracer.operand(node, index), str)]
    zero = [index for index in computed if _is_zero(tracer.graph, node.inputs[index])]
    _computed_states(tracer, node, [index for index in computed if index not in zero], first)
    tracer.produce(tracer.weight_use(node, first, _WEIGHT, 1))
    own = replace(tracer.weight_use(node, first, _RECURRENCE, _UNITS), recurrence=tracer.graph.recurrences[node.index])
    tracer.consume(own)
    for other in made[1:]:
        tracer.link(first, other, node)
    if tracer.size(first) is None:
        return
    for index in (_WEIGHT, _RECURRENCE, _BIAS, _PEEPHOLES):
        key = tracer.operand(node, index)
        if isinstance(key, tuple):
            at = np.arange(tracer.size((key, 1)) or 0, dtype=np.int64)
            tracer.link_positions(first, at % units, (key, 1), at, outer=at // units)
        elif key is not None:
            tracer.freeze(first[0], f"bias computed at run time: {node.op_type} at {node.name}", [first[1]])
    for index in states:
        key = tracer.operand(node, index)
        if isinstance(key, tuple):
            tracer.link(first, (key, _UNITS), node)

    def size_follows(edit: NodeEdit) -> None:
        if edit.size(first) != units:
            edit.set_attribute("hidden_size", edit.size(first))
            for index in zero:
                edit.leave_out_input(index)

    tracer.rewrite(node, size_follows)


def _computed_states(tracer: Tracer, node: Node, states: list[int], first: AxisKey) -> None:
    """Initial states (directions, batch, units) that are computed at run time bring their units along."""
    for index in states:
        key = node.inputs[index]
        reason = f"initial state of {node.op_type} at {node.name}"
        if tracer.rank(key) == _UNITS + 1:
            tracer.freeze(key, reason, range(_UNITS))
            tracer.link((key, _UNITS), first, node)
        else:
            tracer.freeze(key, reason)
            tracer.freeze(first[0], reason, [first[1]])


def _is_zero(graph: GraphView, name: str) -> bool:
    """Whether a tensor that is computed at run time holds nothing but zeros: no initial state at all means the same.

    That of a constant is not known if callers may override it.
    """
    seen, pending = {name}, [name]
    while pending:
        tensor = pending.pop()
        maker = graph.makers.get(tensor)
        if (value := graph.value(tensor)) is not None:
            if np.any(value) or tensor in graph.constants.overridable:
                return False
        elif maker is not None and maker.op_type == "ConstantOfShape":
            filler = maker.attributes.get("value")
            if filler is not None and np.any(numpy_helper.to_array(filler)):
                return False
        elif maker is not None and maker.op_type in _KEEP_ZERO:
            sources = maker.inputs if maker.op_type == "Concat" else maker.inputs[:1]
            pending += [source for source in sources if source not in seen]
            seen.update(sources)
        else:
            return False
    return True


def reverse_sequence(tracer: Tracer, node: Node) -> None:
    """Every sample's sequence is turned round, as far as it is long; all but time and batch pass."""
    data, out = node.inputs[0], node.outputs[0]
    turned = {int(node.attributes.get("batch_axis", 1)), int(node.attributes.get("time_axis", 0))}
    reason = f"time or batch of ReverseSequence at {node.name}"
    for tensor in (data, out):
        tracer.freeze(tensor, reason, turned)
    tracer.freeze(tracer.operand(node, 1), f"lengths of sequences: ReverseSequence at {node.name}")
    tracer.pass_through(node, data, out, set(range(tracer.rank(data) or 0)) - turned)


RULES = dict.fromkeys(GATES, recurrent) | {"ReverseSequence": reverse_sequence}
