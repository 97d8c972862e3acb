"""What stands for an If, a Loop or a Scan in a graph into which their bodies have been unfolded.

An If becomes one node behind the nodes of both branches; a Loop or a Scan becomes two, one in front of its body and one
behind it. These markers are of a domain of their own, and nobody runs them.

* ``If``: condition, outputs of the branch that runs if it is true, of the other; its outputs are the If's.
* ``Enter``: the inputs of the Loop or Scan; its outputs are the inputs of the body.
* ``Exit``: the outputs of the body, then its inputs, so that nobody drops one marker without the other; its outputs are
  the Loop's or Scan's.

The attribute ``control`` of a marker is the name of the If, Loop or Scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

DOMAIN = "ucpe.bodies"
IF, ENTER, EXIT = f"{DOMAIN}::If", f"{DOMAIN}::Enter", f"{DOMAIN}::Exit"
"""The markers, as ``Node.op_type`` has them."""

CONTROL = frozenset({"If", "Loop", "Scan"})
_CONTROL = "control"
_FIRST_SCAN = 9
"""The opset from which on Scan has no batch axis of its own."""


@dataclass(frozen=True)
class Form:
    """How many inputs and outputs of a Loop or Scan are what.

    Attributes:
        before: inputs of the body in front of the states: a Loop's iteration number and condition.
        states: values that one iteration hands to the next.
        scanned: inputs of which an iteration gets a slice each.
        conditions: outputs of the body in front of the states: a Loop's condition.
        gathered: outputs that are made of one slice for each iteration.
        scanned_axes: the axes along which these inputs are cut.
        gathered_axes: the axes along which these outputs are put together.
    """

    before: int
    states: int
    scanned: int
    conditions: int
    gathered: int
    scanned_axes: tuple[int, ...]
    gathered_axes: tuple[int, ...]

    @classmethod
    def of(cls, node: onnx.NodeProto, body: onnx.GraphProto) -> Form:
        """The form of a Loop or Scan with a body."""
        given: Mapping[str, Any] = {
            a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type != onnx.AttributeProto.GRAPH
        }
        if node.op_type == "Loop":
            states = len(body.input) - 2
            gathered = len(body.output) - 1 - states
            return cls(2, states, 0, 1, gathered, (), (0,) * gathered)
        scanned = int(given.get("num_scan_inputs", 0))
        states = len(body.input) - scanned
        gathered = len(body.output) - states
        inside = tuple(given.get("scan_input_axes", ())) or (0,) * scanned
        outside = tuple(given.get("scan_output_axes", ())) or (0,) * gathered
        return cls(0, states, scanned, 0, gathered, inside, outside)


def bodies_of(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """The bodies of a node by the names of their attributes; of an If the one for a true condition first."""
    found = [(a.name, a.g) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sorted(found, key=lambda body: body[0] != "then_branch")


def has_bodies(node: onnx.NodeProto) -> bool:
    """Whether a node has bodies of any kind."""
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def control_of(node: onnx.NodeProto) -> str:
    """The name of the If, Loop or Scan that a marker stands for."""
    return next(bytes(a.s) for a in node.attribute if a.name == _CONTROL).decode()


def marker(op_type: str, name: str, control: str, inputs: Iterable[str], outputs: Iterable[str]) -> onnx.NodeProto:
    """Make a marker."""
    given = {_CONTROL: control}
    return onnx.helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=DOMAIN, **given)


def is_followed(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the bodies of a node can be unfolded: known operators that make what they hand out."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in CONTROL:
        return False
    if node.op_type == "Scan" and opset < _FIRST_SCAN:
        return False
    bodies = [body for _, body in bodies_of(node)]
    if len(bodies) != (2 if node.op_type == "If" else 1) or not all(_is_plain(body, opset) for body in bodies):
        return False
    if node.op_type == "If":
        return all(len(body.output) == len(node.output) for body in bodies)
    form = Form.of(node, bodies[0])
    axes = len(form.scanned_axes) == form.scanned and len(form.gathered_axes) == form.gathered
    fits = len(node.input) == form.before + form.states + form.scanned
    counts = min(form.states, form.gathered) >= 0 and len(node.output) <= form.states + form.gathered
    return fits and axes and counts


def _is_plain(body: onnx.GraphProto, opset: int) -> bool:
    """Whether a body's nodes make all of its outputs, it declares nothing else, and nothing is beyond unfolding."""
    made = [name for inner in body.node for name in inner.output if name]
    outputs = [value.name for value in body.output]
    defined = [value.name for value in body.input] + [tensor.name for tensor in body.initializer] + made
    declared = [value.name for value in body.value_info]
    return (
        set(made).issuperset(outputs)
        and set(defined).issuperset(declared)
        and all(len(set(names)) == len(names) for names in (outputs, defined, declared))
        and not body.sparse_initializer
        and not body.quantization_annotation
        and all(is_followed(inner, opset) for inner in body.node if has_bodies(inner))
    )
