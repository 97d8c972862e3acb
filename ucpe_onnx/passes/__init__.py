"""Graph rewrites, one per file; together they turn a model and a plan into the emitted model."""

from ucpe_onnx.passes.adapt_nodes import AdaptNodes
from ucpe_onnx.passes.declare_constants import DeclareConstants
from ucpe_onnx.passes.emit import PASS_NAMES, emission_passes, emission_steps, emit
from ucpe_onnx.passes.fix_lengths import FixLengths
from ucpe_onnx.passes.infra import Emission, Pass, PassResult, run_passes
from ucpe_onnx.passes.name_nodes import NameNodes
from ucpe_onnx.passes.prune_weights import PruneWeights
from ucpe_onnx.passes.refresh_shapes import RefreshShapes
from ucpe_onnx.passes.remove_orphans import RemoveOrphans
from ucpe_onnx.passes.route_channels import RouteChannels
from ucpe_onnx.passes.views import Views
from ucpe_onnx.passes.watch import Watch, dump_path

__all__ = [
    "PASS_NAMES",
    "AdaptNodes",
    "DeclareConstants",
    "Emission",
    "FixLengths",
    "NameNodes",
    "Pass",
    "PassResult",
    "PruneWeights",
    "RefreshShapes",
    "RemoveOrphans",
    "RouteChannels",
    "Views",
    "Watch",
    "dump_path",
    "emission_passes",
    "emission_steps",
    "emit",
    "run_passes",
]
