"""Pruning during training: PDP, and baselines with the same interface. Needs torch."""

from ucpe_onnx.train.pruning.baselines import GradualMagnitude, OneShot
from ucpe_onnx.train.pruning.blocks import BlockLayer
from ucpe_onnx.train.pruning.discover import layers_of
from ucpe_onnx.train.pruning.groups import GroupLayer, axis_index, channel_index
from ucpe_onnx.train.pruning.layers import Member, PrunableLayer, WeightLayer
from ucpe_onnx.train.pruning.pdp import PDP
from ucpe_onnx.train.pruning.pruner import Pruner, Sparsity
from ucpe_onnx.train.pruning.ratios import Allotment, allot
from ucpe_onnx.train.pruning.schedule import Schedule

__all__ = [
    "PDP",
    "Allotment",
    "BlockLayer",
    "GradualMagnitude",
    "GroupLayer",
    "Member",
    "OneShot",
    "PrunableLayer",
    "Pruner",
    "Schedule",
    "Sparsity",
    "WeightLayer",
    "allot",
    "axis_index",
    "channel_index",
    "layers_of",
]
