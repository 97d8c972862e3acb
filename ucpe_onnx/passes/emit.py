"""Apply a plan: the passes in their order."""

from __future__ import annotations

import onnx

from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.passes.adapt_nodes import AdaptNodes
from ucpe_onnx.passes.declare_constants import DeclareConstants
from ucpe_onnx.passes.infra import Emission, Pass, run_passes
from ucpe_onnx.passes.name_nodes import NameNodes
from ucpe_onnx.passes.prune_weights import PruneWeights
from ucpe_onnx.passes.refresh_shapes import RefreshShapes
from ucpe_onnx.passes.remove_orphans import RemoveOrphans
from ucpe_onnx.passes.select_channels import SelectChannels
from ucpe_onnx.plan import Plan


def emission_passes(emission: Emission) -> tuple[Pass, ...]:
    """The passes that emit a model, in order.

    The passes up to AdaptNodes address nodes by their index in the input graph; SelectChannels inserts nodes, so it
    comes after them.
    """
    return (
        NameNodes(),
        PruneWeights(emission),
        AdaptNodes(emission),
        SelectChannels(emission),
        RefreshShapes(emission),
        RemoveOrphans(emission),
        DeclareConstants(),
    )


def emit(model: onnx.ModelProto, trace: Trace, plan: Plan) -> onnx.ModelProto:
    """Write the model that a plan describes.

    The model proto itself is copied and edited, field by field: what the passes don't know (metadata, functions, custom
    domains, sparse initializers, quantisation annotations ...) they can't lose.

    Args:
        model: the model that was traced; not changed.
        trace: its analysis.
        plan: the decisions.

    Returns:
        The emitted model.
    """
    draft = onnx.ModelProto()
    draft.CopyFrom(model)
    run_passes(draft, emission_passes(Emission(trace, plan)))
    return draft
