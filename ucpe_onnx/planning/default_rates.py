"""Rates to assume where none were calibrated: microseconds per amount of work (see ``kernels.AMOUNTS``).

Measured within networks, with one thread of a processor with AVX-512 (about 125 GFLOP/s).
"""

from __future__ import annotations

from collections.abc import Mapping

_COPY = {"call": 3.0, "write": 30.0}

FLOAT: Mapping[str, Mapping[str, float]] = {
    "spatial": {
        "call": 3.0, "set4": 8.0, "set1": 10.0, "set2": 8.2, "set3": 8.0, "edge": 7.0, "rows": 5.0,
        "weight": 30.0, "read": 3.0, "write": 3.0,
    },
    "pointwise": {
        "call": 3.0, "set4": 8.0, "set1": 10.0, "set2": 8.4, "set3": 8.2, "weight": 32.0, "read": 2.0, "write": 4.0,
    },
    "shallow": {
        "call": 3.0, "set4": 8.5, "set1": 8.5, "set2": 8.0, "set3": 8.0, "edge": 1.0, "rows": 5.0,
        "read": 30.0, "write": 35.0, "passes": 8.0,
    },
    "depthwise": {"call": 3.0, "mflop": 10.0, "edge": 6.0, "rows": 7.0, "read": 3.5, "write": 20.0},
    "plain": {"call": 5.0, "mflop": 9.7, "unrolled": 42.0, "weight": 39.0, "read": 6.5, "write": 6.5},
    "plain-depthwise": {"call": 5.0, "pieces": 270.0, "mflop": 87.0, "read": 15.0, "write": 15.0},
    "gemm": {"call": 5.0, "mflop": 8.4, "weight": 45.0, "read": 4.0, "write": 4.0},
    "partial": {"write": 5.0},
    "fused": {"write": 28.0},
    "partial-spatial": {"write": 1.0},
    "reorder": _COPY,
    "gather": {**_COPY, "pieces": 6.5},
    "slice": _COPY,
    "concat": _COPY,
    "add": {"call": 3.0, "write": 45.0},
    "straight": {"call": 3.0, "write": 25.0},
    "normal": {"call": 4.0, "pieces": 30.0, "write": 28.0},
    "curved": {"call": 3.0, "write": 75.0},
}  # fmt: skip
"""In float32."""

INT8: Mapping[str, Mapping[str, float]] = {
    "plain": {"call": 3.0, "mflop": 2.1, "unrolled": 26.0, "weight": 41.0, "read": 25.0, "write": 58.0},
    "plain-depthwise": {"call": 3.0, "pieces": 1.0, "mflop": 14.0, "read": 48.0, "write": 48.0},
    "gemm": {"call": 3.0, "mflop": 2.1, "weight": 41.0, "read": 25.0, "write": 58.0},
    "gather": {"call": 3.0, "pieces": 7.0, "write": 138.0},
    "slice": {"call": 3.0, "write": 68.0},
    "concat": {"call": 3.0, "write": 50.0},
    "add": {"call": 3.0, "write": 132.0},
    "straight": {"call": 3.0, "write": 60.0},
    "curved": {"call": 3.0, "write": 120.0},
}  # fmt: skip
"""Quantised, with activations of one byte; families that are not here are as in float32."""
