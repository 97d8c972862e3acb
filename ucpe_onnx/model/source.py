"""The input of the pipeline: a model, what to call it, and the hash that plans record."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx_graphsurgeon as gs
from onnx.external_data_helper import uses_external_data

from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.model.files import check_model, file_sha256, load_model, model_sha256
from ucpe_onnx.model.functions import check_functions, inline_functions
from ucpe_onnx.model.limits import all_tensors, check_memory, check_tensors
from ucpe_onnx.model.mending import Mending, checked_or_mended
from ucpe_onnx.model.naming import node_names
from ucpe_onnx.model.offload import Offload
from ucpe_onnx.model.serialise import model_size

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | gs.Graph"


@dataclass(frozen=True)
class Source:
    """A checked input model.

    Attributes:
        model: the model with all weights in memory or offloaded, its local functions expanded, and a unique name for
            every node, without which onnxruntime would not load it.
        label: its path, or what else to call it in messages.
        sha256: of the file's bytes, or of the serialised model.
        size: bytes of the serialised model as it was given.
        mending: what was mended of what the model declares; None if nothing had to be.
        original: the model before its local functions were expanded, None if it calls none.
    """

    model: onnx.ModelProto
    label: str
    sha256: str
    size: int
    original: onnx.ModelProto | None = None
    mending: Mending | None = None

    @property
    def complete(self) -> bool:
        """Whether ``onnx.checker`` accepts the model with full shape inference."""
        return self.mending is None or self.mending.complete


def open_source(model: ModelSource, offload: Offload | None = None) -> Source:
    """Load and check an input model.

    Args:
        model: path of an ``.onnx`` file, a ModelProto, or an onnx-graphsurgeon Graph.
        offload: where large weights go; None for memory.

    Returns:
        The checked model, its functions expanded and its nodes named; what was given is not changed.

    Raises:
        ModelError: it can't be read, ``onnx.checker`` refuses it, or it asks for more memory than there is.
        UsageError: an object of another type.
    """
    if isinstance(model, gs.Graph):
        model = gs.export_onnx(model)
    if isinstance(model, onnx.ModelProto):
        check_tensors(model, "the model")
        _check_complete(model)
        label, sha256 = "the model", model_sha256(model)
        proto = model if offload is None else offload.store(model)
    elif isinstance(model, (str, os.PathLike)):
        proto, label, sha256 = load_model(model, offload), os.fspath(model), file_sha256(model)
    else:
        raise UsageError(
            f"can't prune a {type(model).__name__}: give a path, an onnx.ModelProto or a graphsurgeon Graph"
        )
    check_functions(proto, label)
    size = model_size(proto)
    proto, mending = checked_or_mended(proto, label)
    inlined = inline_functions(proto)
    if inlined is not proto:
        check_model(inlined, f"{label}: with its functions expanded", shapes=mending is None or mending.complete)
    named = _named(inlined)
    check_memory(named, label)
    return Source(named, label, sha256, size, None if inlined is proto else proto, mending)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy of it if nodes had to be named."""
    names = node_names(model.graph.node)
    if names == [node.name for node in model.graph.node]:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node, name in zip(copy.graph.node, names, strict=True):
        node.name = name
    return copy


def _check_complete(model: onnx.ModelProto) -> None:
    """Refuse a proto whose weights are still in other files: from here on nobody knows where."""
    for tensor in all_tensors(model):
        if uses_external_data(tensor):
            raise ModelError(
                f"the model's tensor {tensor.name!r} lies in another file; give the path of the model, or load"
                " its external data first"
            )
