"""The lowerings that can be asked for, and what each leaves to the solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ucpe_onnx.solve.blocks.problem import CONCAT, DUPLICATE, GATHER, KINDS, PARTIAL, UNION


@dataclass(frozen=True)
class LoweringRule:
    """What consumers may do.

    Attributes:
        kinds: the kinds of :mod:`ucpe_onnx.solve.blocks` that they may take; ``union`` where they can take none.
        split: whether a segment may be made in several blocks.
        ordered: whether channels are ordered so that selections find them side by side.
    """

    kinds: frozenset[str]
    split: bool = False
    ordered: bool = False


LOWERING_RULES: Mapping[str, LoweringRule] = MappingProxyType(
    {
        "auto": LoweringRule(frozenset(KINDS), split=True, ordered=True),
        "union": LoweringRule(frozenset({UNION})),
        "gather": LoweringRule(frozenset({GATHER})),
        "slice": LoweringRule(frozenset({GATHER}), ordered=True),
        "partial": LoweringRule(frozenset({PARTIAL}), split=True),
        "concat": LoweringRule(frozenset({CONCAT}), split=True),
        "duplicate": LoweringRule(frozenset({DUPLICATE})),
    }
)
"""By the name that ``--lowering`` takes."""
