"""More values for the inputs that choose a branch: what no feed takes is not verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import onnx

from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.session import Session, run
from ucpe_onnx.samples.inputs import Array, Feed, InputSpec

MOST = 4
"""Feeds, besides the others."""

_COMPARING = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_KEEPING = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators behind which a single value is what it was."""


def feeds_of_branches(model: onnx.ModelProto, specs: Sequence[InputSpec], first: Feed, session: Session) -> list[Feed]:
    """Feeds with which Ifs of the outermost graph choose other branches, on which the model runs too.

    A sampling rate, say, that an If compares with a constant takes the value of that constant, and the next smaller
    and larger ones; a flag is true and false.

    Args:
        model: the model.
        specs: its inputs.
        first: a feed that it runs on.
        session: the model.

    Returns:
        At most four feeds; none if no input decides alone.
    """
    found: list[Feed] = []
    values = {spec.name: first[spec.name] for spec in specs if isinstance(first.get(spec.name), np.ndarray)}
    for name, wanted in dict.fromkeys(_deciding(model, set(values))):
        value = values[name]
        changed: Array = np.full_like(value, wanted)
        if np.array_equal(changed, value) or len(found) == MOST:
            continue
        feed = {**first, name: changed}
        with suppress(ModelError):
            run(session, feed)
            found.append(feed)
    return found


def _deciding(model: onnx.ModelProto, inputs: set[str]) -> Iterator[tuple[str, float | bool]]:
    """The inputs on which conditions depend, with values that may turn them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    conditions = [node.input[0] for node in model.graph.node if node.op_type == "If" and node.domain in ("", "ai.onnx")]
    if not conditions:
        return
    constants = Constants(model)
    left, seen = list(conditions), set[str]()
    while left:
        name = left.pop(0)
        maker = makers.get(name)
        if name in seen:
            continue
        seen.add(name)
        if name in inputs:
            yield from ((name, flag) for flag in (True, False))
        elif maker is not None and maker.op_type in _COMPARING:
            yield from _turning(maker, makers, inputs, constants)
        elif maker is not None:
            left += [read for read in maker.input if read]


def _turning(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], inputs: set[str], constants: Constants
) -> Iterator[tuple[str, float]]:
    """Values at which a comparison of an input with a constant turns."""
    for read, other in (node.input, reversed(node.input)):
        source = read
        while source in makers and makers[source].op_type in _KEEPING:
            source = makers[source].input[0]
        limit = constants.value(other)
        if source in inputs and limit is not None and limit.size == 1 and limit.dtype.kind in "iuf":
            turn = float(limit.reshape(-1)[0])
            yield from ((source, value) for value in (turn, turn - 1, turn + 1))
