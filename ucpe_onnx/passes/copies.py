"""Initializers that the rewrite adds: of what comes from one constant, equal copies are written once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.shared_weights import origin
from ucpe_onnx.model.naming import fresh_name, tensor_names
from ucpe_onnx.passes.weights import Array


@dataclass
class Copies:
    """Adds initializers to a draft.

    A weight behind an Identity, a Cast or a Transpose for each of its readers is a constant for each of them, mostly
    cut to the same. What comes from different constants stays apart, even if it is equal.

    Attributes:
        graph: the graph of the input model.
        draft: the model that gets the initializers.
        taken: names of tensors.
        known: names of what was added, by where it comes from and what it holds.
    """

    graph: GraphView
    draft: onnx.ModelProto
    taken: set[str] = field(default_factory=set)
    known: dict[tuple[str, str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = tensor_names(self.draft.graph)

    def fresh(self, stem: str) -> str:
        """A new name for a tensor."""
        return fresh_name(stem, self.taken)

    def add(self, stem: str, value: Array) -> str:
        """Add an initializer; its name."""
        name = self.fresh(stem)
        self.draft.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def copy(self, constant: str, stem: str, value: Array) -> str:
        """Add an edited copy of a constant, unless there is the same already; its name."""
        value = np.ascontiguousarray(value)
        digest = hashlib.sha256(np.atleast_1d(value).view(np.uint8).data if value.size else b"").digest()
        key = origin(self.graph, constant).name, str(value.dtype), value.shape, digest
        if key not in self.known:
            self.known[key] = self.add(stem, value)
        return self.known[key]
