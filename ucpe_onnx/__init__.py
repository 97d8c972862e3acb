"""Structured pruning of ONNX models for people who deploy them.

>>> import ucpe_onnx
>>> result = ucpe_onnx.prune("in.onnx", ratio=0.25)  # doctest: +SKIP
>>> result.report.faster, result.plan.masks()  # doctest: +SKIP
"""

__version__ = "0.1.0"

from ucpe_onnx.errors import (
    DataError,
    MaskError,
    ModelError,
    NotFasterError,
    UcpeError,
    UsageError,
    VerificationError,
)
from ucpe_onnx.io import load_model, save_model
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import load_masks, save_masks
from ucpe_onnx.pipeline import Result, prune
from ucpe_onnx.plan import Plan

__all__ = [
    "DataError",
    "MaskError",
    "ModelError",
    "NotFasterError",
    "Plan",
    "Result",
    "UcpeError",
    "UsageError",
    "VerificationError",
    "load_masks",
    "load_model",
    "masked_model",
    "prune",
    "save_masks",
    "save_model",
]
