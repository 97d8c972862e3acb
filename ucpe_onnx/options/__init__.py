"""Everything a user can ask for, declared and checked once."""

from ucpe_onnx.options.options import (
    BUDGETS,
    CHECKS,
    CHOICE,
    DEFECTS,
    LAYOUT,
    LIMITS,
    MODES,
    SAMPLES,
    SCOPES,
    Options,
)

__all__ = [
    "BUDGETS",
    "CHECKS",
    "CHOICE",
    "DEFECTS",
    "LAYOUT",
    "LIMITS",
    "MODES",
    "SAMPLES",
    "SCOPES",
    "Options",
]
