"""Shapes in a graph with unfolded bodies: onnx's inference, with nodes that it knows in place of the markers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import onnx

from ucpe_onnx.analysis.shapes.partial import Shape
from ucpe_onnx.analysis.shapes.refine import dimensions
from ucpe_onnx.model.bodies.markers import DOMAIN, Form, bodies_of, control_of
from ucpe_onnx.model.skeleton import inferred

_ROUNDS = 4
"""Of assuming that branches and iterations agree, and opening the axes along which they turn out not to."""

_AXES_AS_INPUT = 13
"""The opset from which on Unsqueeze takes its axes as an input."""

_SOME, _INDEX = f"{DOMAIN}.some", f"{DOMAIN}.index"
"""Inputs that stand for what only a run can tell: which iterations there are, and which of them it is."""

_BEFORE = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
"""The types of what a Loop's body gets in front of its states: number of the iteration, and condition."""

_Types: TypeAlias = Mapping[str, onnx.TypeProto.Tensor]
_Opened: TypeAlias = "Mapping[str, Shape | None]"


def inferred_with_bodies(light: onnx.ModelProto, controls: Mapping[str, onnx.NodeProto]) -> onnx.ModelProto:
    """A model with inferred shapes, inside of bodies too.

    Branches are taken to hand out the same shapes, and states to keep theirs. Where these then turn out to differ along
    an axis, its length is unknown, and all is inferred again. If that does not end soon, all shapes that bodies hand on
    are unknown.

    Args:
        light: an unfolded model without its large weights.
        controls: the nodes that had the bodies, by name.

    Raises:
        Exception: of onnx's, of unrelated types, where inference stops.
    """
    found = inferred(_standing_in(light, controls, {}, _types(light)))
    opened: dict[str, Shape | None] = {}
    for _ in range(_ROUNDS):
        types = _types(found)
        differing = dict(_differing(light, controls, opened, types))
        if not differing:
            return found
        opened |= differing
        found = inferred(_standing_in(light, controls, opened, types))
    unknown = dict.fromkeys(name for node in light.graph.node for name, _ in _agreeing(node, controls))
    return inferred(_standing_in(light, controls, unknown, _types(found)))


def _types(model: onnx.ModelProto) -> _Types:
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}


def _differing(
    light: onnx.ModelProto, controls: Mapping[str, onnx.NodeProto], opened: _Opened, types: _Types
) -> Iterator[tuple[str, Shape | None]]:
    """What claims more of a shape than all that it comes from have in common, and what these have."""
    shapes = {name: dimensions(tensor.shape) for name, tensor in types.items() if tensor.HasField("shape")}
    for node in light.graph.node:
        for name, sources in _agreeing(node, controls):
            claimed, common = shapes.get(name), _merged([shapes.get(source) for source in sources])
            if claimed is None:
                continue
            if common is None or len(common) != len(claimed):
                yield name, None
                continue
            earlier = opened.get(name) or claimed
            triples = list(zip(claimed, common, earlier, strict=True))
            shape = tuple(dim if before is not None and dim == other else None for dim, other, before in triples)
            if any(dim is not None and dim != other and before is not None for dim, other, before in triples):
                yield name, shape


def _merged(shapes: list[Shape | None]) -> Shape | None:
    """What several shapes have in common."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) != 1:
        return None
    return tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*known, strict=True))


def _agreeing(node: onnx.NodeProto, controls: Mapping[str, onnx.NodeProto]) -> Iterator[tuple[str, list[str]]]:
    """For what markers hand on all that it may come from: either branch, or what an iteration gets or makes."""
    if node.domain != DOMAIN or node.op_type == "Enter":
        return
    count = len(node.output)
    if node.op_type == "If":
        for place, out in enumerate(node.output):
            yield out, [node.input[1 + place], node.input[1 + count + place]]
        return
    form = _form(node, controls)
    first = form.conditions + form.states + form.gathered + form.before
    for place in range(form.states):
        state, handed = node.input[first + place], node.input[form.conditions + place]
        yield state, [state, handed]
        if place < count and node.output[place]:
            yield node.output[place], [state, handed]


def _form(node: onnx.NodeProto, controls: Mapping[str, onnx.NodeProto]) -> Form:
    control = controls[control_of(node)]
    return Form.of(control, bodies_of(control)[0][1])


def _standing_in(
    light: onnx.ModelProto, controls: Mapping[str, onnx.NodeProto], opened: _Opened, types: _Types
) -> onnx.ModelProto:
    """The model with nodes of ONNX in place of the markers, and inputs for what has turned out to vary."""
    model = onnx.ModelProto()
    model.CopyFrom(light)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    del model.graph.node[:]
    value_info = onnx.helper.make_tensor_value_info
    inputs = [value_info(_SOME, onnx.TensorProto.BOOL, [None]), value_info(_INDEX, onnx.TensorProto.INT64, [])]
    for node in light.graph.node:
        if node.domain != DOMAIN:
            model.graph.node.append(node)
            continue
        if node.op_type == "Enter":
            before = zip(node.output[: _form(node, controls).before], _BEFORE, strict=False)
            inputs += [value_info(name, kind, _declared(types.get(name))) for name, kind in before]
        for made in _nodes(node, controls, opset):
            name = made.output[0]
            if name not in opened:
                model.graph.node.append(made)
            elif name in types:
                inputs.append(value_info(name, types[name].elem_type, opened[name]))
    model.graph.input.extend(inputs)
    given = {value.name for value in inputs}
    kept = [value for value in model.graph.value_info if value.name not in given]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def _declared(tensor: onnx.TypeProto.Tensor | None) -> Shape | None:
    return dimensions(tensor.shape) if tensor is not None and tensor.HasField("shape") else None


def _nodes(node: onnx.NodeProto, controls: Mapping[str, onnx.NodeProto], opset: int) -> Iterator[onnx.NodeProto]:
    """For each output of a marker a node that makes what has its shape, though not its value."""
    make = onnx.helper.make_node
    if node.op_type == "If":
        yield from (make("Identity", [node.input[1 + i]], [out]) for i, out in enumerate(node.output) if out)
        return
    form = _form(node, controls)
    if node.op_type == "Enter":
        scans = form.before + form.states
        yield from (make("Identity", [node.input[i]], [node.output[i]]) for i in range(form.before, scans))
        for place, axis in enumerate(form.scanned_axes, scans):
            yield make("Gather", [node.input[place], _INDEX], [node.output[place]], axis=axis)
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
        yield make("Compress", [whole, _SOME], [out], axis=axis)
