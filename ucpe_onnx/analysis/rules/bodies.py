"""Rules for the markers of unfolded bodies: what goes into and comes out of an If, a Loop or a Scan.

Both branches of an If, and all iterations of a Loop or Scan, hand out the same channels: what one of them lacks can't
be there in another. A state is the same before, between and after the iterations.
"""

from __future__ import annotations

from collections.abc import Sequence

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.slots import TensorKey
from ucpe_onnx.analysis.tracer import Tracer
from ucpe_onnx.model.bodies import ENTER, EXIT, IF
from ucpe_onnx.model.bodies.markers import Form, bodies_of, control_of


def branches(tracer: Tracer, node: Node) -> None:
    """The outputs of an If are those of its branches."""
    tracer.freeze(tracer.operand(node, 0), f"condition of {_told(tracer, node)}")
    count, condition = len(node.outputs), tracer.graph.value(node.inputs[0])
    for place, out in enumerate(node.outputs):
        handed = [tracer.operand(node, 1 + place), tracer.operand(node, 1 + count + place)]
        if condition is not None:  # as where a tensor's rank decides; the other branch never runs
            taken = 0 if bool(condition.item()) else 1
            tracer.freeze(handed.pop(1 - taken), f"branch that is never taken: {_told(tracer, node)}")
        _same(tracer, node, handed, out)


def entered(tracer: Tracer, node: Node) -> None:
    """What a body reads: states as they are at first, and slices of what is scanned."""
    form = _form(tracer, node)
    for place in range(form.before):
        for tensor in (tracer.operand(node, place), node.outputs[place]):
            tracer.freeze(tensor, f"iterations of {_told(tracer, node)}")
    for place in range(form.before, form.before + form.states):
        _same(tracer, node, [tracer.operand(node, place)], node.outputs[place])
    for place, axis in enumerate(form.scanned_axes, form.before + form.states):
        _sliced(tracer, node, tracer.operand(node, place), node.outputs[place], axis)


def left(tracer: Tracer, node: Node) -> None:
    """What a body hands out: states as they are at last, and its slices put together."""
    form = _form(tracer, node)
    for place in range(form.conditions):
        tracer.freeze(tracer.operand(node, place), f"iterations of {_told(tracer, node)}")
    first = form.conditions + form.states + form.gathered + form.before
    for place in range(form.states):
        before, after = tracer.operand(node, first + place), tracer.operand(node, form.conditions + place)
        final = node.outputs[place] if node.has(place) else None
        _same(tracer, node, [before, after], final)
    for place, axis in enumerate(form.gathered_axes):
        part = tracer.operand(node, form.conditions + form.states + place)
        whole = node.outputs[form.states + place] if node.has(form.states + place) else None
        if whole is None:
            tracer.freeze(part, f"{_told(tracer, node)} hands it to nobody")
        else:
            _sliced(tracer, node, whole, part, axis, outwards=True)


def _told(tracer: Tracer, node: Node) -> str:
    """The node with the body, as reasons name it."""
    name = control_of(node.proto)
    return f"{tracer.graph.unfolding.controls[name].op_type} at {name}"


def _form(tracer: Tracer, node: Node) -> Form:
    control = tracer.graph.unfolding.controls[control_of(node.proto)]
    (_, body), *_ = bodies_of(control)
    return Form.of(control, body)


def _same(tracer: Tracer, node: Node, sources: Sequence[TensorKey | None], out: str | None) -> None:
    """Several tensors, of which one is handed on, have the same channels; a state that is handed out may be missing."""
    reason = f"{_told(tracer, node)} hands on different shapes"
    present = [source for source in sources if source is not None]
    given = [*present, *([out] if out else [])]
    ranks = {tracer.rank(tensor) for tensor in given}
    inner = any(isinstance(tensor, tuple) for tensor in present) and node.op_type != ENTER
    if len(ranks) != 1 or None in ranks or inner or len(present) < len(sources):
        told = f"{_told(tracer, node)} hands on a constant" if inner else reason
        for tensor in given:
            tracer.freeze(tensor, told)
        return
    for axis in range(len(tracer.dims(given[0]) or ())):
        if len({tracer.size((tensor, axis)) for tensor in given}) > 1 or tracer.size((given[0], axis)) is None:
            for tensor in given:
                tracer.freeze(tensor, reason, [axis])
            continue
        first, *others = given if out is None else present
        for target in others if out is None else ():
            tracer.link((first, axis), (target, axis), node)
        for source in present if out else ():
            tracer.link((source, axis), (str(out), axis), node)


def _sliced(
    tracer: Tracer,
    node: Node,
    whole: TensorKey | None,
    part: TensorKey | None,
    axis: int,
    *,
    outwards: bool = False,
) -> None:
    """A tensor and its slices along an axis, which has as many positions as there are iterations."""
    reason = f"{_told(tracer, node)} runs along the axis, or cuts what has no known shape"
    rank = None if whole is None else tracer.rank(whole)
    if whole is None or part is None or rank is None or tracer.rank(part) != rank - 1 or isinstance(part, tuple):
        tracer.freeze(whole, reason)
        tracer.freeze(part, reason)
        return
    axis %= rank
    tracer.freeze(whole, reason, [axis])
    for inner, outer in enumerate(place for place in range(rank) if place != axis):
        source, target = ((part, inner), (whole, outer)) if outwards else ((whole, outer), (part, inner))
        tracer.link(source, target, node)


RULES = {IF: branches, ENTER: entered, EXIT: left}
