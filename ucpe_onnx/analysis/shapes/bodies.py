"""Shapes in a graph with unfolded bodies: onnx's inference, with nodes that it knows in place of the markers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from ucpe_onnx.analysis.shapes.partial import Shape
from ucpe_onnx.analysis.shapes.refine import dimensions
from ucpe_onnx.model.bodies.markers import DOMAIN, Form, bodies_of
from ucpe_onnx.model.skeleton import inferred

_ROUNDS = 4
"""Of assuming that branches and iterations agree, and giving up on those that turn out not to; then on all."""

_AXES_AS_INPUT = 13
"""The opset from which on Unsqueeze takes its axes as an input."""

_UNKNOWN = "ucpe.bodies.unknown"
"""An input that stands for what only a run can tell."""


def inferred_with_bodies(light: onnx.ModelProto, controls: Mapping[str, onnx.NodeProto]) -> onnx.ModelProto:
    """A model with inferred shapes, inside of bodies too.

    Branches are taken to hand out the same shapes, and states to keep theirs. Where these then turn out to differ along
    an axis, its length is unknown, and all is inferred again.

    Args:
        light: an unfolded model without its large weights.
        controls: the nodes that had the bodies, by name.

    Raises:
        Exception: of onnx's, of unrelated types, where inference stops.
    """
    open_axes: dict[str, Shape | None] = {}
    found = light
    for round_ in range(_ROUNDS):
        found = inferred(_standing_in(light, controls, open_axes))
        shapes = _shapes(found)
        differing: dict[str, Shape | None] = {}
        for node in light.graph.node:
            for name, sources in _agreeing(node, controls):
                merged = _merged([shapes.get(source) for source in sources])
                if merged != shapes.get(name) and open_axes.get(name, ()) is not None:
                    differing[name] = merged if round_ < _ROUNDS - 2 else None
        if not differing:
            break
        open_axes.update(differing)
    return found


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    tensors = ((value.name, value.type.tensor_type) for value in values if value.type.HasField("tensor_type"))
    return {name: dimensions(tensor.shape) for name, tensor in tensors if tensor.HasField("shape")}


def _merged(shapes: list[Shape | None]) -> Shape | None:
    """What several shapes have in common."""
    first, *others = shapes
    if first is None or any(other is None or len(other) != len(first) for other in others):
        return None
    columns = zip(*(shape for shape in shapes if shape is not None), strict=True)
    return tuple(dims[0] if len(set(dims)) == 1 else None for dims in columns)


def _agreeing(node: onnx.NodeProto, controls: Mapping[str, onnx.NodeProto]) -> Iterator[tuple[str, list[str]]]:
    """For the outputs of a marker what they should agree with."""
    if node.domain != DOMAIN or node.op_type == "Enter":
        return
    count = len(node.output)
    if node.op_type == "If":
        for place, out in enumerate(node.output):
            yield out, [node.input[1 + place], node.input[1 + count + place]]
        return
    form = _form(node, controls)
    first, handed = form.conditions, form.conditions + form.states + form.gathered
    for place in range(form.states):
        state = node.input[handed + place]
        yield state, [state, node.input[first + place]]


def _form(node: onnx.NodeProto, controls: Mapping[str, onnx.NodeProto]) -> Form:
    control = controls[node.name.removesuffix("/enter")]
    return Form.of(control, bodies_of(control)[0][1])


def _standing_in(
    light: onnx.ModelProto, controls: Mapping[str, onnx.NodeProto], open_axes: Mapping[str, Shape | None]
) -> onnx.ModelProto:
    """The model with nodes of ONNX in place of the markers, and inputs for what has turned out to vary."""
    model = onnx.ModelProto()
    model.CopyFrom(light)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*light.graph.value_info, *light.graph.input, *light.graph.output)
    }
    del model.graph.node[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info(_UNKNOWN, onnx.TensorProto.BOOL, [None]))
    for node in light.graph.node:
        if node.domain != DOMAIN:
            model.graph.node.append(node)
            continue
        for made in _nodes(node, controls, opset):
            name = made.output[0]
            if name not in open_axes:
                model.graph.node.append(made)
            elif types.get(name):
                shape = open_axes[name]
                model.graph.input.append(onnx.helper.make_tensor_value_info(name, types[name], shape))
    given = {value.name for value in model.graph.input}
    kept = [value for value in model.graph.value_info if value.name not in given]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def _nodes(node: onnx.NodeProto, controls: Mapping[str, onnx.NodeProto], opset: int) -> Iterator[onnx.NodeProto]:
    """For each output of a marker a node that makes what has its shape."""
    make = onnx.helper.make_node
    if node.op_type == "If":
        yield from (make("Identity", [node.input[1 + i]], [out]) for i, out in enumerate(node.output) if out)
        return
    form = _form(node, controls)
    if node.op_type == "Enter":
        scans = form.before + form.states
        yield from (make("Identity", [node.input[i]], [node.output[i]]) for i in range(form.before, scans))
        for place, axis in enumerate(form.scanned_axes, scans):
            index = f"{node.output[place]}.index"
            yield make("Constant", [], [index], value=onnx.helper.make_tensor("", onnx.TensorProto.INT64, [], [0]))
            yield make("Gather", [node.input[place], index], [node.output[place]], axis=axis)
        return
    for place, out in enumerate(node.output):
        source = node.input[form.conditions + place]
        if not out:
            continue
        if place < form.states:
            yield make("Identity", [source], [out])
            continue
        axis, axes, whole = form.gathered_axes[place - form.states], f"{out}.axes", f"{out}.slice"
        if opset < _AXES_AS_INPUT:
            yield make("Unsqueeze", [source], [whole], axes=[axis])
        else:
            yield make("Constant", [], [axes], value_ints=[axis])
            yield make("Unsqueeze", [source, axes], [whole])
        yield make("Compress", [whole, _UNKNOWN], [out], axis=axis)
