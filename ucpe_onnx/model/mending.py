"""Models that ``onnx.checker`` refuses for what they declare, not for what they compute: onnxruntime runs many of them.

Exporters leave output shapes out, or empty, declare shapes of tensors that are none of theirs, or keep initializers
from the inputs where IR version 3 wants them there too. None of that says anything about the numbers. It is mended in
memory, so that the checker and shape inference can do their work, and what the user's file declares is written again.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.files import check_model
from ucpe_onnx.model.offload import copy_model
from ucpe_onnx.model.skeleton import skeleton

_FIRST_WITHOUT = 4
"""The IR version from which on initializers need not be inputs."""


@dataclass(frozen=True)
class Mending:
    """What was mended in a model.

    Attributes:
        problem: what the checker says of the model as it is.
        ir_version: the model's own; None if it has none.
        outputs: the graph's outputs as they were declared.
        complete: whether shape inference, too, accepts the mended model.
    """

    problem: str
    ir_version: int | None
    outputs: tuple[onnx.ValueInfoProto, ...]
    complete: bool

    def undone(self, emitted: onnx.ModelProto) -> onnx.ModelProto:
        """A model that was made of the mended one, with what the user's declares."""
        copy = copy_model(emitted, ())
        if self.ir_version is None:
            copy.ClearField("ir_version")
        else:
            copy.ir_version = self.ir_version
        del copy.graph.output[:]
        copy.graph.output.extend(self.outputs)
        return copy


def checked_or_mended(model: onnx.ModelProto, where: str) -> tuple[onnx.ModelProto, Mending | None]:
    """Check a model, and mend what it declares if that is all that is wrong.

    Args:
        model: the model; not changed.
        where: what to call it in the message.

    Returns:
        The model, or a mended copy, and what was mended.

    Raises:
        ModelError: the checker refuses what the model computes.
    """
    try:
        check_model(model, where)
    except ModelError as error:
        mended = _mended(model)
        try:
            check_model(mended, where)
        except ModelError:
            complete = False
        else:
            complete = True
        if not complete:
            check_model(mended, where, shapes=False)
        problem = str(error).removeprefix(f"{where}: ").removesuffix(".")
        return mended, Mending(
            problem, model.ir_version if model.HasField("ir_version") else None, tuple(model.graph.output), complete
        )
    return model, None


def _mended(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without declared shapes of inner tensors, and with the outputs' as shape inference finds them."""
    copy = copy_model(model, ())
    declared = {value.name for value in copy.graph.input}
    if copy.ir_version < _FIRST_WITHOUT and any(tensor.name not in declared for tensor in copy.graph.initializer):
        copy.ir_version = _FIRST_WITHOUT
    del copy.graph.value_info[:]
    bare = skeleton(copy)
    for value in bare.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(bare).graph.output}
    except Exception:  # of unrelated types; what can't be inferred stays as it is
        return copy
    for value in copy.graph.output:
        found = inferred[value.name].type
        if found.WhichOneof("value") == "tensor_type" and found.tensor_type.HasField("shape"):
            value.type.CopyFrom(found)
    return copy
