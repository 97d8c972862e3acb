"""Put a Gather or a Slice in front of consumers that read a part of what is emitted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ucpe_onnx.naming import fresh_name, tensor_names
from ucpe_onnx.passes.infra import Emission, PassResult
from ucpe_onnx.passes.insertion import insert_before


@dataclass(frozen=True)
class SelectChannels:
    """Insert the selections of the plan; consumers that select the same from a tensor share one.

    A selection stands directly in front of its consumer, so below every pool, activation and depthwise convolution on
    the way. One that would select everything is never inserted.
    """

    emission: Emission
    name: str = "select-channels"

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Insert nodes and rewire the consumers' data inputs."""
        names = {node.name for node in draft.graph.node}
        taken = tensor_names(draft.graph)
        made: dict[tuple[str, int, tuple[int, ...]], str] = {}
        nodes = {node.name: node for node in draft.graph.node}
        before: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for name, plan in self.emission.plan.consumers.items():
            use = self.emission.trace.consumers[name].use
            tensor, axis = str(use.tensor_axis[0]), use.tensor_axis[1]
            layout = self.emission.layout(use.tensor_axis)
            if len(plan.read) == layout.size:
                continue
            place = np.full(plan.channels, -1, dtype=np.int64)
            place[layout] = np.arange(layout.size)
            places = place[list(plan.read)]
            key = (tensor, axis, tuple(places.tolist()))
            if key not in made:
                made[key] = fresh_name(f"{tensor}_kept_by_{name}", taken)
                node = self._selection(draft, key, made[key], taken)
                node.name = fresh_name(f"{name}_select", names)
                before[name].append(node)
            target = nodes[name]
            data = next(i for i, t in enumerate(use.node.inputs) if t == tensor and i != use.weight_input)
            target.input[data] = made[key]
        insert_before(draft, before)
        return PassResult(len(made))

    def _selection(
        self, draft: onnx.ModelProto, key: tuple[str, int, tuple[int, ...]], out: str, taken: set[str]
    ) -> onnx.NodeProto:
        tensor, axis, places = key
        contiguous = places[-1] - places[0] + 1 == len(places) and list(places) == sorted(places)
        dims = self.emission.trace.graph.shape(tensor) or ()
        length = dims[axis] if axis < len(dims) else None
        if not contiguous or (self.emission.trace.graph.opset == 10 and not isinstance(length, int)):
            # onnx's inference for Slice of opset 10 keeps a symbolic length, which onnxruntime then trusts
            indices = _constant(draft, f"{out}_indices", places, taken)
            return onnx.helper.make_node("Gather", [tensor, indices], [out], axis=axis)
        start, end = places[0], places[-1] + 1
        if self.emission.trace.graph.opset < 10:
            return onnx.helper.make_node("Slice", [tensor], [out], starts=[start], ends=[end], axes=[axis])
        bounds = (("starts", start), ("ends", end), ("axes", axis))
        inputs = [_constant(draft, f"{out}_{field}", (value,), taken) for field, value in bounds]
        return onnx.helper.make_node("Slice", [tensor, *inputs], [out])


def _constant(draft: onnx.ModelProto, name: str, values: tuple[int, ...], taken: set[str]) -> str:
    name = fresh_name(name, taken)
    draft.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.int64), name))
    return name
