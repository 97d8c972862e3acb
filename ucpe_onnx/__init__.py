"""Structured pruning of ONNX models for people who deploy them.

>>> import ucpe_onnx
>>> result = ucpe_onnx.prune("in.onnx", ratio=0.25)  # doctest: +SKIP
>>> result.report.faster, result.plan.masks()  # doctest: +SKIP
"""

from ucpe_onnx.errors import (
    DataError,
    MaskError,
    ModelError,
    NotFasterError,
    UcpeError,
    UsageError,
    VerificationError,
)
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import load_masks, save_masks
from ucpe_onnx.model.files import load_model, save_model
from ucpe_onnx.pipeline import Result, prune
from ucpe_onnx.plan import Plan
from ucpe_onnx.version import __version__ as __version__

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
