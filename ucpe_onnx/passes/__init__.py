"""Graph rewrites, one per file; together they turn a model and a plan into the emitted model."""

from ucpe_onnx.passes.adapt_nodes import AdaptNodes
from ucpe_onnx.passes.declare_constants import DeclareConstants
from ucpe_onnx.passes.emit import emission_passes, emit
from ucpe_onnx.passes.infra import Emission, Pass, PassResult, run_passes
from ucpe_onnx.passes.name_nodes import NameNodes
from ucpe_onnx.passes.prune_weights import PruneWeights
from ucpe_onnx.passes.refresh_shapes import RefreshShapes
from ucpe_onnx.passes.remove_orphans import RemoveOrphans
from ucpe_onnx.passes.select_channels import SelectChannels

__all__ = [
    "AdaptNodes",
    "DeclareConstants",
    "Emission",
    "NameNodes",
    "Pass",
    "PassResult",
    "PruneWeights",
    "RefreshShapes",
    "RemoveOrphans",
    "SelectChannels",
    "emission_passes",
    "emit",
    "run_passes",
]
