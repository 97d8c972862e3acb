"""Structured pruning of ONNX models for people who deploy them.

>>> import ucpe_onnx
>>> result = ucpe_onnx.prune("in.onnx", ratio=0.25)  # doctest: +SKIP
>>> result.report.faster, result.plan.masks()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ucpe_onnx.version import __version__ as __version__

if TYPE_CHECKING:
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

_HOMES = {
    "masked": ("masked_model",),
    "masks": ("load_masks", "save_masks"),
    "model.files": ("load_model", "save_model"),
    "pipeline": ("Result", "prune"),
    "plan": ("Plan",),
}
"""Where the names are made, but for the errors; each module is imported when somebody asks for one of its names."""


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
