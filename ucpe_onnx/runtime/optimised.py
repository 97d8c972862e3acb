"""What onnxruntime makes of a model: its optimised graph, read for what the plan of a fast model hopes for.

A model is fast where its convolutions run in the layout of channel blocks (NCHWc), nothing is reordered or copied on
the way, and Adds and activations are parts of the convolutions before them. Whether that came true stands in the graph
that onnxruntime saves when a session is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ucpe_onnx.analysis.layer_ops import LAYER_OPS
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.model.offload import trim_memory
from ucpe_onnx.runtime.optimised_checks import KINDS, Finding, find, is_convolution
from ucpe_onnx.runtime.optimised_graph import BLOCKED, OptimisedView
from ucpe_onnx.runtime.session import RunOptions, make_session
from ucpe_onnx.runtime.target import target_for

__all__ = ["KINDS", "Finding", "OptimisedGraph", "read_optimised"]

_QUANTISED = frozenset(op.name for op in LAYER_OPS.values() if op.convolution and not op.real)

_WEIGHTS_APART = {
    "session.optimized_model_external_initializers_file_name": "weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
"""Weights go to a file that nobody reads: the graph alone is small, whatever the model's size."""


@dataclass(frozen=True)
class OptimisedGraph:
    """What onnxruntime made of a model.

    Attributes:
        block: channels in a block of the blocked layout; 0 if the session has no such layout, so that none is outside.
        nodes: number of nodes.
        blocked: convolutions in the blocked layout.
        plain: convolutions in float in the plain layout.
        quantised: convolutions in int8.
        findings: what costs time beyond these, in the order of computation.
    """

    block: int
    nodes: int
    blocked: int
    plain: int
    quantised: int
    findings: tuple[Finding, ...]

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of a kind, a key of ``KINDS``."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def by_weight(self) -> tuple[Finding, ...]:
        """All findings, those first that cost most as a rule."""
        kinds = list(KINDS)
        return tuple(sorted(self.findings, key=lambda finding: kinds.index(finding.kind)))

    def counts(self) -> dict[str, int]:
        """Number of findings of every kind."""
        return {kind: len(self.of(kind)) for kind in KINDS}

    def bytes(self, kind: str) -> int | None:
        """What the findings of a kind write in one run; None where that isn't known of all."""
        sizes = [finding.bytes for finding in self.of(kind)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "block": self.block,
            "nodes": self.nodes,
            "blocked": self.blocked,
            "plain": self.plain,
            "quantised": self.quantised,
            "counts": self.counts(),
            "bytes": {kind: self.bytes(kind) for kind in ("reorder", "copy")},
            "findings": [asdict(finding) for finding in self.findings],
        }


def read_optimised(
    model: onnx.ModelProto, options: RunOptions | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> OptimisedGraph:
    """Have onnxruntime optimise a model, and read what it made of it.

    Args:
        model: the model, offloaded or not; not changed. Names of its nodes should be unique.
        options: how onnxruntime runs it; the level of optimisation and the provider matter.
        shapes: the input shapes to count bytes for, by input name.

    Raises:
        ModelError: onnxruntime can't load the model, or can't write its graph (providers that compile theirs can't).
    """
    options = options or RunOptions()
    view = OptimisedView(_optimise(model, options), model, shapes or {})
    target = target_for(options.providers, options.opt_level)
    block = target.block if target.blocked else 0
    convolutions = [node for node in view.nodes if is_convolution(view, node)]
    blocked = sum(node.domain == BLOCKED for node in convolutions)
    return OptimisedGraph(
        block=block,
        nodes=len(view.nodes),
        blocked=blocked,
        plain=len(convolutions) - blocked,
        quantised=sum(node.op_type in _QUANTISED for node in view.nodes),
        findings=find(view, block),
    )


def _optimise(model: onnx.ModelProto, options: RunOptions) -> onnx.ModelProto:
    """The graph that onnxruntime makes of a model, without its weights."""
    # Windows keeps mapped files, hence the errors to ignore.
    with TemporaryFolder() as folder:
        path = os.path.join(folder, "optimised.onnx")
        make_session(model, options, path, config=_WEIGHTS_APART)
        trim_memory()
        try:
            return onnx.load(path, load_external_data=False)
        except (OSError, DecodeError) as error:
            raise ModelError(
                f"onnxruntime's optimised graph can't be read back ({' '.join(str(error).split())}); free disk space"
            ) from error
