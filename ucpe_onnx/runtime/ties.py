"""Outputs behind a rounding: classes, places, integers, of which some differ where two programs round otherwise.

Two programs that sum in another order differ in the last digits of their floats, and an ArgMax, a TopK or a Round makes
another integer of that where it is a tie. What has to agree are the floats in front of the last such step, and what the
step makes of them. So the end of the network from there, its *tail*, is run once more, on the floats of the emitted
model: if these are within the tolerance of the reference's, and the tail makes of them what the emitted model has
given, then the outputs differ only where the floats tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ucpe_onnx.analysis.graph import captured_by
from ucpe_onnx.analysis.layer_ops import GATES, LAYER_OPS
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.compare import Difference, compare
from ucpe_onnx.runtime.session import RunOptions, as_session, run

_STEPS = frozenset(
    {
        *("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Hardmax", "Unique", "Multinomial", "Bernoulli"),
        *("Round", "Floor", "Ceil", "Sign", "Mod", "QuantizeLinear", "DynamicQuantizeLinear"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "IsInf", "IsNaN"),
    }
)
"""Operators that make a jump of the smallest difference; and Cast to a type without fractions."""

_LAYERS = frozenset(LAYER_OPS) | GATES.keys() | {"Einsum"}
"""Operators that end the tail: what lies in front of them is pruned, and goes through further layers."""

_FRACTIONS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.STRING}
)


@dataclass(frozen=True)
class Tail:
    """The end of a network.

    Attributes:
        nodes: from the rounding steps on, in graph order.
        inputs: the tensors that they read, but for initializers.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]


def tail_of(model: onnx.ModelProto, outputs: Iterable[str]) -> Tail | None:
    """The nodes from the last rounding steps in front of some outputs on; None if there are no such steps.

    Args:
        model: the model.
        outputs: names of outputs of the graph.
    """
    nodes = model.graph.node
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    behind_layers: set[int] = set()
    waiting = list(outputs)
    while waiting:
        index = makers.get(waiting.pop())
        if index is None or index in behind_layers or _type(nodes[index]) in _LAYERS:
            continue
        behind_layers.add(index)
        waiting += _read(nodes[index])
    tail: list[onnx.NodeProto] = []
    made: set[str] = set()
    for index in sorted(behind_layers):
        node = nodes[index]
        if _rounds(node) or any(name in made for name in _read(node)):
            tail.append(node)
            made.update(name for name in node.output if name)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = dict.fromkeys(name for node in tail for name in _read(node) if name not in made and name not in stored)
    return Tail(tuple(tail), tuple(inputs)) if tail else None


def explained(
    emitted: onnx.ModelProto,
    reference: onnx.ModelProto,
    outputs: Sequence[str],
    feeds: Mapping[int, Mapping[str, Any]],
    options: RunOptions,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> dict[int, Difference]:
    """How the floats in front of the last rounding differ, on the feeds on which that is why some outputs do.

    Args:
        emitted: the model in question.
        reference: the model that is right by definition.
        outputs: names of the outputs that differ.
        feeds: what they differ on, by number.
        options: how to run the models.
        rtol: relative tolerance of the floats, as :func:`ucpe_onnx.runtime.compare.compare` has it.
        atol: absolute tolerance; likewise.

    Returns:
        By feed the worst difference of the floats, which passes; feeds that rounding does not explain are left out.
    """
    tail = tail_of(reference, outputs)
    if tail is None:
        return {}
    inner = [name for name in tail.inputs if all(name not in feed for feed in feeds.values())]
    try:
        expected = _run(_showing(reference, inner), feeds, options)
        found = _run(_showing(emitted, [*inner, *outputs]), feeds, options)
        worst = {}
        for number, values in found.items():
            differences = [compare(a, b, rtol=rtol, atol=atol) for a, b in zip(values, expected[number], strict=False)]
            worst[number] = max(differences, key=lambda each: each.severity, default=Difference(0.0, 0.0))
        near = {number: difference for number, difference in worst.items() if difference.passed}
        if not near:
            return {}
        seen = {n: {**dict(zip(inner, found[n], strict=False)), **_of(feeds[n], tail.inputs)} for n in found}
        again = _run(_alone(reference, tail, next(iter(seen.values())), outputs), seen, options)
    except (
        ModelError,
        KeyError,
        TypeError,
        ValueError,
    ):  # the emitted graph has no such tensors, or not arrays
        return {}
    return {
        number: difference
        for number, difference in near.items()
        if all(
            compare(a, b, rtol=rtol, atol=atol).passed
            for a, b in zip(found[number][len(inner) :], again[number], strict=True)
        )
    }


def _of(feed: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: np.asarray(feed[name]) for name in names if name in feed}


def _type(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _rounds(node: onnx.NodeProto) -> bool:
    if node.op_type != "Cast":
        return _type(node) in _STEPS
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0) not in _FRACTIONS


def _read(node: onnx.NodeProto) -> list[str]:
    return [name for name in (*node.input, *sorted(captured_by(node))) if name]


def _run(model: onnx.ModelProto, feeds: Mapping[int, Mapping[str, Any]], options: RunOptions) -> dict[int, list[Any]]:
    session = as_session(model, options)
    return {number: run(session, feed) for number, feed in feeds.items()}


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with some of its tensors as outputs, in place of its own."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown


def _alone(
    model: onnx.ModelProto, tail: Tail, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]
) -> onnx.ModelProto:
    """The tail as a model."""
    read = {name for node in tail.nodes for name in _read(node)}
    graph = helper.make_graph(
        tail.nodes,
        "tail",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))
    alone.functions.extend(model.functions)
    return alone
