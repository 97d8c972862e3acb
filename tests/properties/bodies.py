"""Random bodies: some nodes of a graph move into an If, a Loop or a Scan that does what they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ucpe_onnx.analysis.graph import captured_by

Choose = Callable[[int], int]

_MOST = 6
"""Nodes that move at once."""
_FLOATS = (TensorProto.FLOAT,)


def outlined(model: onnx.ModelProto, choose: Choose) -> onnx.ModelProto:
    """Move some nodes that follow on each other into a body; the model as it is where that can't be done.

    The other branch of an If holds the same nodes with some weights negated. A Loop or Scan makes what the nodes made
    as states, which are zeros before. Weights that only the body reads move along, or don't.

    Args:
        model: the model; not changed.
        choose: draws a number below another.
    """
    nodes = model.graph.node
    first = choose(len(nodes))
    moved = list(nodes[first : first + 1 + choose(_MOST)])
    rest = [node for node in nodes if not any(node is other for other in moved)]
    made = [name for node in moved for name in node.output if name]
    wanted = {name for node in rest for name in (*node.input, *captured_by(node))}
    wanted |= {value.name for value in model.graph.output}
    handed = [name for name in made if name in wanted]
    told = _told(model)
    if not handed or any(name not in told or told[name].elem_type not in _FLOATS for name in handed):
        return model
    if any(_has_body(node) or node.domain for node in moved):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outliner = _Outliner(copy, moved, handed, choose)
    made_instead = [outliner.branches, outliner.loop, outliner.branches][choose(3)]()
    if made_instead is None:
        return model
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes[:first], *made_instead, *nodes[first + len(moved) :]])
    inner = set(made) - set(handed)
    kept = [value for value in copy.graph.value_info if value.name not in inner]
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(kept)
    return copy


def _told(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}


def _has_body(node: onnx.NodeProto) -> bool:
    return any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)


class _Outliner:
    def __init__(
        self, model: onnx.ModelProto, moved: Sequence[onnx.NodeProto], handed: Sequence[str], choose: Choose
    ) -> None:
        self._graph, self._moved, self._handed, self._choose = model.graph, moved, handed, choose
        self._told = _told(model)
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def branches(self) -> list[onnx.NodeProto] | None:
        """An If, and what makes its condition: a constant, or the sign of the first input's sum."""
        values = [value for value in self._graph.input if value.type.tensor_type.elem_type in _FLOATS]
        bodies = [self._body("then", []), self._body("else", [], negate=True)]
        self._graph.initializer.append(numpy_helper.from_array(np.bool_(self._choose(2)), "outlined_flag"))
        before, condition = [], "outlined_flag"
        if values and self._choose(4):
            self._graph.initializer.append(numpy_helper.from_array(np.float32(0), "outlined_zero"))
            before = [
                helper.make_node("ReduceSum", [values[0].name], ["outlined_sum"], keepdims=0),
                helper.make_node("Less", ["outlined_sum", "outlined_zero"], ["outlined_less"]),
            ]
            condition = "outlined_less"
        if self._choose(2):
            bodies.reverse()
        node = helper.make_node("If", [condition], self._handed, then_branch=bodies[0], else_branch=bodies[1])
        return [*before, node]

    def loop(self) -> list[onnx.NodeProto] | None:
        """A Loop of one or two trips, or a Scan over as many slices of a constant."""
        shapes = {name: self._told[name].shape.dim for name in self._handed}
        if any(not dim.dim_value for dims in shapes.values() for dim in dims):
            return None
        states = []
        for place, dims in enumerate(shapes.values()):
            name = f"outlined_state{place}"
            zeros = np.zeros([dim.dim_value for dim in dims], np.float32)
            self._graph.initializer.append(numpy_helper.from_array(zeros, name))
            states.append(name)
        trips = 1 + self._choose(2)
        inputs = [
            helper.make_tensor_value_info(f"outlined_in{place}", TensorProto.FLOAT, [dim.dim_value for dim in dims])
            for place, dims in enumerate(shapes.values())
        ]
        if self._choose(2):
            self._graph.initializer.append(numpy_helper.from_array(np.int64(trips), "outlined_trips"))
            number = helper.make_tensor_value_info("outlined_number", TensorProto.INT64, [])
            go = helper.make_tensor_value_info("outlined_go", TensorProto.BOOL, [])
            body = self._body("body", [number, go, *inputs])
            body.node.append(helper.make_node("Identity", ["outlined_go"], ["outlined_on"]))
            body.output.insert(0, helper.make_tensor_value_info("outlined_on", TensorProto.BOOL, []))
            return [helper.make_node("Loop", ["outlined_trips", "", *states], self._handed, body=body)]
        self._graph.initializer.append(numpy_helper.from_array(np.ones((trips, 2), np.float32), "outlined_slices"))
        piece = helper.make_tensor_value_info("outlined_slice", TensorProto.FLOAT, [2])
        body = self._body("body", [*inputs, piece])
        return [helper.make_node("Scan", [*states, "outlined_slices"], self._handed, body=body, num_scan_inputs=1)]

    def _body(self, name: str, inputs: list[onnx.ValueInfoProto], *, negate: bool = False) -> onnx.GraphProto:
        """The nodes with names of their own for what they make; new weights where some are negated."""
        renamed = {made: f"{made}_{name}" for node in self._moved for made in node.output if made}
        stored = []
        for weight in dict.fromkeys(read for node in self._moved for read in node.input):
            tensor = self._stored.get(weight)
            if tensor is None or tensor.data_type not in _FLOATS or self._choose(2):
                continue
            value = numpy_helper.to_array(tensor)
            renamed[weight] = f"{weight}_{name}"
            stored.append(numpy_helper.from_array(-value if negate and value.ndim > 1 else value, renamed[weight]))
        nodes = []
        for node in self._moved:
            inner = onnx.NodeProto()
            inner.CopyFrom(node)
            inner.input[:] = [renamed.get(read, read) for read in node.input]
            inner.output[:] = [renamed.get(made, made) for made in node.output]
            nodes.append(inner)
        outputs = [onnx.ValueInfoProto(name=renamed[handed]) for handed in self._handed]
        for value, handed in zip(outputs, self._handed, strict=True):
            value.type.tensor_type.elem_type = self._told[handed].elem_type
            if self._told[handed].HasField("shape") and self._choose(2):
                value.type.tensor_type.shape.CopyFrom(self._told[handed].shape)
        return helper.make_graph(nodes, name, inputs, outputs, stored)
