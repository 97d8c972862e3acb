"""Lowerings: how a consumer gets its channels. What is known of each is said here, once.

Planning, the passes and the reports ask these facts and know no names. What a lowering costs is the solver's affair: a
lowering names the kind of reading (`KIND_FACTS` in :mod:`ucpe_onnx.solve.blocks.problem`) that it carries out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Reads(Enum):
    """What a consumer reads: the whole tensor, a selection of it, blocks of it, or what its own producers make."""

    WHOLE = "whole"
    SELECTION = "selection"
    BLOCKS = "blocks"
    OWN = "own"


class Need(Enum):
    """What a consumer has to be able to do; the value completes "consumer 'x': ..." where it is not."""

    SELECT = "its channels are bound to convolution groups, or are its own hidden units, so it must read all"
    DIVIDE = "can't read blocks; choose another lowering"
    SUM = "can't be a sum over blocks; choose another lowering"
    SEPARATE = "can't have producers of its own; choose another lowering"


@dataclass(frozen=True)
class Lowering:
    """One way for a consumer to get its channels.

    Attributes:
        name: what plans, reports and ``--lowering`` call it.
        meaning: what reports say of it.
        colours: of its name in reports, on light and on dark ground.
        reads: what it reads.
        kind: the solver's kind of reading that it carries out; the lowering of the same name says what that is.
        needs: what a consumer has to be able to do, in the order in which it is asked.
        everything_kept: a reading of the whole in which every channel is kept; else some have zero weights.
        contiguous: a selection of channels that lie side by side.
        joined: several blocks are copied into one tensor; else the consumer becomes a sum with one term for each.
    """

    name: str
    meaning: str
    colours: tuple[str, str]
    reads: Reads
    kind: str
    needs: tuple[Need, ...] = ()
    everything_kept: bool = False
    contiguous: bool = False
    joined: bool = False

    @property
    def split(self) -> bool:
        """Whether every block of the segment has to be a tensor of its own."""
        return self.reads == Reads.BLOCKS

    @property
    def askable(self) -> bool:
        """Whether ``--lowering`` takes it: nobody can ask for a mask that keeps everything."""
        return not self.everything_kept


_ALL = (
    Lowering(
        "direct",
        "reads and keeps all that is emitted",
        ("#1a7f4b", "#55c98b"),
        Reads.WHOLE,
        kind="union",
        everything_kept=True,
    ),
    Lowering("union", "reads all that is emitted, no copy", ("#2f66b5", "#7fb0f5"), Reads.WHOLE, kind="union"),
    Lowering(
        "gather",
        "selects by a Gather: memory copy",
        ("#b5500f", "#f0a063"),
        Reads.SELECTION,
        kind="gather",
        needs=(Need.SELECT,),
    ),
    Lowering(
        "slice",
        "selects by a Slice: memory copy",
        ("#7d3fae", "#c99bf0"),
        Reads.SELECTION,
        kind="gather",
        needs=(Need.SELECT,),
        contiguous=True,
    ),
    Lowering(
        "partial",
        "adds up the blocks that it needs, no copy",
        ("#0f7a80", "#54c4cb"),
        Reads.BLOCKS,
        kind="partial",
        needs=(Need.SELECT, Need.DIVIDE, Need.SUM),
    ),
    Lowering(
        "concat",
        "joins the blocks that it needs: memory copy",
        ("#a3376f", "#f08fbf"),
        Reads.BLOCKS,
        kind="concat",
        needs=(Need.SELECT, Need.DIVIDE),
        joined=True,
    ),
    Lowering(
        "duplicate",
        "reads producers of its own, no copy",
        ("#6b6a14", "#cfcd62"),
        Reads.OWN,
        kind="duplicate",
        needs=(Need.SELECT, Need.SEPARATE),
    ),
)

LOWERINGS: Mapping[str, Lowering] = MappingProxyType({lowering.name: lowering for lowering in _ALL})
"""By name, in the order in which reports list them."""


def whole(*, everything_kept: bool) -> Lowering:
    """The lowering that reads a tensor as it is."""
    return next(x for x in _ALL if x.reads == Reads.WHOLE and x.everything_kept == everything_kept)


def selection(*, contiguous: bool) -> Lowering:
    """The lowering that copies what is wanted out of a tensor."""
    return next(x for x in _ALL if x.reads == Reads.SELECTION and x.contiguous == contiguous)


UNSAID = whole(everything_kept=False)
"""What holds for a consumer of which a plan says nothing, and what anyone can take."""
