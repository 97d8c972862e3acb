"""Give new constants the form that models of IR version 3 and below ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import numpy_helper

from ucpe_onnx.passes.infra import PassResult


@dataclass(frozen=True)
class DeclareConstants:
    """Turn initializers that are no graph inputs into Constant nodes where the IR version forbids them (before 4).

    The alternative, declaring them as inputs, would change the model's interface.
    """

    name: ClassVar[str] = "declare-constants"

    def run(self, draft: onnx.ModelProto) -> PassResult:
        """Move undeclared initializers to the front of the graph, as nodes."""
        if draft.ir_version >= 4:
            return PassResult()
        declared = {value.name for value in draft.graph.input}
        undeclared = [tensor for tensor in draft.graph.initializer if tensor.name not in declared]
        opset = max((o.version for o in draft.opset_import if o.domain in ("", "ai.onnx")), default=1)
        constants = [node for tensor in undeclared for node in _as_nodes(tensor, opset)]
        kept = [tensor for tensor in draft.graph.initializer if tensor.name in declared]
        nodes = [*constants, *draft.graph.node]
        if constants:
            _replace(draft.graph.initializer, kept)
            _replace(draft.graph.node, nodes)
        return PassResult(tuple(tensor.name for tensor in undeclared))


def _as_nodes(tensor: onnx.TensorProto, opset: int) -> list[onnx.NodeProto]:
    """A Constant node; before opset 9 it holds floats only, so integers are cast."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    name = f"{tensor.name}_constant"
    if opset >= 9 or tensor.data_type in floats:
        return [onnx.helper.make_node("Constant", [], [tensor.name], name=name, value=tensor)]
    value = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), name)
    return [
        onnx.helper.make_node("Constant", [], [name], name=name, value=value),
        onnx.helper.make_node("Cast", [name], [tensor.name], name=f"{tensor.name}_cast", to=tensor.data_type),
    ]


def _replace(field: object, values: list[onnx.TensorProto] | list[onnx.NodeProto]) -> None:
    """Set a repeated protobuf field to messages that may come from that very field."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
