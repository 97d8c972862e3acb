"""The lowerings that can be asked for, and what each leaves to the solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ucpe_onnx.lowerings import LOWERINGS, Lowering, Reads

AUTO = "auto"
"""The name for the cheapest lowering for each consumer."""


@dataclass(frozen=True)
class LoweringRule:
    """What consumers may do.

    Attributes:
        kinds: the kinds of :mod:`ucpe_onnx.solve.blocks` that they may take; they read all where they can take none.
        split: whether a segment may be made in several blocks.
        ordered: whether channels are ordered so that selections find them side by side.
    """

    kinds: frozenset[str]
    split: bool = False
    ordered: bool = False

    @classmethod
    def of(cls, lowering: Lowering) -> LoweringRule:
        """The rule that has all consumers take a lowering if they can."""
        return cls(frozenset({lowering.kind}), lowering.split, lowering.contiguous)

    @property
    def selects(self) -> bool:
        """Whether consumers read selections alone, and so make no use of channels that are there anyway."""
        return self.kinds <= {x.kind for x in LOWERINGS.values() if x.reads == Reads.SELECTION}

    @property
    def undivided(self) -> LoweringRule:
        """The same without what needs blocks, producers of a consumer's own, or an order of the channels."""
        kinds = {x.kind for x in LOWERINGS.values() if x.reads in (Reads.WHOLE, Reads.SELECTION)}
        return LoweringRule(self.kinds & kinds)


_SINGLE = {name: LoweringRule.of(lowering) for name, lowering in LOWERINGS.items() if lowering.askable}

LOWERING_RULES: Mapping[str, LoweringRule] = MappingProxyType(
    {
        AUTO: LoweringRule(
            frozenset().union(*(rule.kinds for rule in _SINGLE.values())),
            split=any(rule.split for rule in _SINGLE.values()),
            ordered=any(rule.ordered for rule in _SINGLE.values()),
        ),
        **_SINGLE,
    }
)
"""By the name that ``--lowering`` takes."""
