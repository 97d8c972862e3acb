"""The block problem of one segment as data: what an ordered partition of its channels into blocks costs, and to whom.

A *block* is a tensor of its own: the producers are split by output channels, and a reader takes the blocks that hold
what it keeps, without a copy (`partial`) or with one (`concat`). Channels that are kept by exactly the same readers
are interchangeable and form a *class*; a class may lie in several blocks. All costs are microseconds that somebody
else predicted: nothing here knows of a graph, a runtime or a machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

OPTIMAL = "OPTIMAL"
FEASIBLE = "FEASIBLE"


@dataclass(frozen=True, eq=False)
class Table:
    """Microseconds by number of channels.

    Attributes:
        step: the widths given are multiples of it; one in between costs as much as the next one.
        us: cost of `0, step, 2 * step, …` channels, shape (entries,); the last entry stands for whatever is wider.
    """

    step: int
    us: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.step < 1 or self.us.ndim != 1 or not self.us.size:
            raise ValueError(
                f"a table of shape {self.us.shape} with step {self.step}: give at least one cost, step >= 1"
            )
        if not np.isfinite(self.us).all() or (self.us < 0).any():
            raise ValueError("a table holds a cost that is negative or not finite")

    def __call__(self, width: int) -> float:
        """Cost of `width` channels."""
        return float(self.us[min(-(-width // self.step), self.us.size - 1)])

    @classmethod
    def of(cls, step: int, maximum: int, cost: Callable[[int], float]) -> Table:
        """Tabulate `cost` up to `maximum` channels; no channels cost nothing."""
        widths = [*range(step, maximum, step), maximum] if maximum else []
        return cls(step, np.array([0.0, *map(cost, widths)], dtype=np.float64))


@dataclass(frozen=True)
class Copy:
    """Microseconds of a copy: for the call, and for each channel that it writes."""

    call_us: float = 0.0
    channel_us: float = 0.0

    def __call__(self, channels: int) -> float:
        """Cost of copying so many channels."""
        return self.call_us + self.channel_us * channels


@dataclass(frozen=True)
class Price:
    """What a kind of reading costs one reader, without what readers of the same tensor share.

    Attributes:
        flat_us: All that it costs. None: it costs what reading so many channels does, and for several blocks what
            follows.
        part_us: For each block beyond the first.
        copies: For joining several blocks: if the width of each is a multiple of the problem's `joined_multiple`, and
            if it is not. None: they are not joined.
    """

    flat_us: float | None = None
    part_us: float = 0.0
    copies: tuple[Copy, Copy] | None = None

    def us(self, reading: float, blocks: int, width: int, ragged: bool) -> float:
        """The cost.

        Args:
            reading: Of reading `width` channels.
            blocks: That are read.
            width: Channels of these in all, rounded up.
            ragged: Whether the width of some block is no multiple of the problem's `joined_multiple`.
        """
        if self.flat_us is not None:
            return self.flat_us
        if blocks <= 1:
            return reading
        parts = reading + self.part_us * (blocks - 1)
        return parts if self.copies is None else parts + self.copies[ragged](width)


class Reach(Enum):
    """Which blocks of its tensor a reader reads: all of them, those that hold what it keeps, or none."""

    ALL = auto()
    NEEDED = auto()
    NONE = auto()


@dataclass(frozen=True)
class Kind:
    """How a reader may get its channels: all that the solver knows of it.

    Attributes:
        reach: Which blocks it reads. If all, and there are several, these are joined; if none, what only such readers
            keep need not be emitted.
        price: What it costs a reader; None if the reader can't do it. If no blocks are read, the price must be flat.
        reorders: Whether the tensor has to be in a layout that can be gathered from.
    """

    reach: Reach
    price: Callable[[BlockReader], Price | None]
    reorders: bool = False


def _flat(us: float | None) -> Price | None:
    return None if us is None else Price(flat_us=us)


KIND_FACTS: Mapping[str, Kind] = MappingProxyType(
    {
        "union": Kind(Reach.ALL, lambda reader: Price()),
        "gather": Kind(Reach.ALL, lambda reader: _flat(reader.select_us), reorders=True),
        "partial": Kind(Reach.NEEDED, lambda reader: Price(part_us=reader.part_us)),
        "concat": Kind(Reach.NEEDED, lambda reader: Price(copies=(reader.concat, reader.concat_ragged))),
        "duplicate": Kind(Reach.NONE, lambda reader: _flat(reader.duplicate_us)),
    }
)
"""How a reader gets its channels, in the order that settles ties."""

KINDS = tuple(KIND_FACTS)
"""Their names."""

WHOLE, BLOCKWISE, APART = (
    frozenset(name for name, kind in KIND_FACTS.items() if kind.reach == reach) for reach in Reach
)
"""Names of the kinds that read all blocks of a tensor, those that they need, and none."""

REORDERED = frozenset(name for name, kind in KIND_FACTS.items() if kind.reorders)
"""Names of the kinds that read from a layout that can be gathered from."""


@dataclass(frozen=True)
class SlotClass:
    """Interchangeable channels.

    Attributes:
        group: the group that they belong to.
        count: how many there are.
        readers: by index those that keep them; all others drop them.
        fixed: they are emitted even if nobody reads them.
    """

    group: int
    count: int
    readers: frozenset[int]
    fixed: bool = False


@dataclass(frozen=True)
class Group:
    """Channels that can be laid out freely among themselves: what one operand of a Concat holds, or all there are.

    Attributes:
        made: for each producer the cost of making w channels as one tensor.
        spare: channels of no class, which may be emitted to fill up a width.
        block_us: what each further block costs on its way to the readers: operators that don't fuse.
        splittable: whether there may be more than one block.
    """

    made: tuple[Table, ...]
    spare: int = 0
    block_us: float = 0.0
    splittable: bool = True


@dataclass(frozen=True)
class BlockTensor:
    """A tensor as the input graph has it, whole.

    Attributes:
        groups: what it holds, in order.
        reorder_us: for bringing it into a layout that can be gathered from; paid once if anybody gathers from it.
        whole_us: for joining its blocks; paid once if it has several of them and somebody needs it whole.
        ragged_us: paid on top of that if the width of some block is no multiple of the problem's `joined_multiple`.
        whole: somebody who is no reader here needs it whole.
    """

    groups: tuple[int, ...]
    reorder_us: float = 0.0
    whole_us: float = 0.0
    ragged_us: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class BlockReader:
    """A consumer.

    Attributes:
        name: for messages; unique.
        tensor: the tensor that it reads, by index.
        cost: what reading w channels costs, however it gets them.
        part_us: `partial`: for each part beyond the first.
        concat: `concat`: for joining the blocks if the width of each is a multiple of the problem's `joined_multiple`.
        concat_ragged: the same if it is not.
        select_us: `gather`: for its own selection from the whole tensor and for reading that. None: it can't.
        duplicate_us: `duplicate`: for its own producers of what it keeps and for reading that. None: it can't.
        allowed: the kinds that it may take.
    """

    name: str
    tensor: int
    cost: Table
    part_us: float = 0.0
    concat: Copy = Copy()
    concat_ragged: Copy = Copy()
    select_us: float | None = None
    duplicate_us: float | None = None
    allowed: frozenset[str] = frozenset(KINDS)

    @cached_property
    def prices(self) -> Mapping[str, Price]:
        """What each kind costs that it can take, as far as it is concerned."""
        prices = {name: kind.price(self) for name, kind in KIND_FACTS.items() if name in self.allowed}
        return {name: price for name, price in prices.items() if price is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that it can take."""
        return tuple(self.prices)

    def takes(self, kinds: frozenset[str]) -> bool:
        """Whether it can take one of these kinds."""
        return not kinds.isdisjoint(self.prices)


@dataclass(frozen=True)
class BlockProblem:
    """What to lay out, for whom, at what cost.

    A class is *required* if it is fixed or if a reader that is not duplicated keeps it. Required channels are emitted,
    others may be to fill up. Every block holds a required channel, so that a group of which nothing is required has
    none. A block's width is a multiple of `width_multiple` and at least `minimum`; a group's only block may have any
    width, filled up to a multiple as far as channels last.

    * `union` reads all blocks of its tensor, joined.
    * `gather` selects from all blocks of its tensor, joined.
    * `partial` reads each block that holds a channel which it keeps; what it drops of them has zero weights.
    * `concat` joins the same blocks and reads them in one go; a single one needs no copy.
    * `duplicate` reads none.

    Widths read are rounded up to `width_multiple` block by block. Costs had better not fall with the width: nothing
    goes wrong if they do, but the optimum may be missed and is then not called so.

    Attributes:
        classes: the channels.
        groups: what is laid out.
        readers: who reads.
        tensors: what they read.
        width_multiple: of the width of a block, and the step of every table.
        minimum: of the width of a block.
        joined_multiple: widths for which joining blocks is cheap.
        max_blocks: per group.

    Raises:
        ValueError: an index, a count, a cost or a kind makes no sense, or a reader can take no kind.
    """

    classes: tuple[SlotClass, ...]
    groups: tuple[Group, ...]
    readers: tuple[BlockReader, ...]
    tensors: tuple[BlockTensor, ...]
    width_multiple: int = 4
    minimum: int = 16
    joined_multiple: int = 16
    max_blocks: int = 8

    def __post_init__(self) -> None:
        if min(self.width_multiple, self.minimum, self.joined_multiple, self.max_blocks) < 1:
            raise ValueError("width_multiple, minimum, joined_multiple and max_blocks must be at least 1")
        for index, tensor in enumerate(self.tensors):
            if len(set(tensor.groups)) < len(tensor.groups) or not set(tensor.groups) <= set(range(len(self.groups))):
                raise ValueError(f"tensor {index}: its groups {tensor.groups} are unknown or repeated")
            _check_costs(f"tensor {index}", tensor.reorder_us, tensor.whole_us, tensor.ragged_us)
        for index, group in enumerate(self.groups):
            if group.spare < 0 or any(table.step != self.width_multiple for table in group.made):
                raise ValueError(f"group {index}: spare is negative, or the step of a table is not width_multiple")
            _check_costs(f"group {index}", group.block_us)
        if len({reader.name for reader in self.readers}) < len(self.readers):
            raise ValueError("two readers have the same name")
        for reader in self.readers:
            self._check_reader(reader)
        for index, members in enumerate(self.classes):
            self._check_class(index, members)

    def _check_reader(self, reader: BlockReader) -> None:
        if reader.tensor not in range(len(self.tensors)) or reader.cost.step != self.width_multiple:
            raise ValueError(
                f"reader {reader.name!r}: its tensor is unknown, or its table's step is not width_multiple"
            )
        if not reader.allowed <= set(KINDS) or not reader.kinds:
            raise ValueError(
                f"reader {reader.name!r}: allowed {sorted(reader.allowed)} leaves no kind or an unknown one"
            )
        copies = [cost for copy in (reader.concat, reader.concat_ragged) for cost in (copy.call_us, copy.channel_us)]
        _check_costs(
            f"reader {reader.name!r}", reader.part_us, reader.select_us or 0.0, reader.duplicate_us or 0.0, *copies
        )

    def _check_class(self, index: int, members: SlotClass) -> None:
        if members.group not in range(len(self.groups)) or members.count < 1:
            raise ValueError(f"class {index}: group {members.group} is unknown or count {members.count} is below 1")
        for reader in members.readers:
            if (
                reader not in range(len(self.readers))
                or members.group not in self.tensors[self.readers[reader].tensor].groups
            ):
                raise ValueError(f"class {index}: reader {reader} is unknown or doesn't read group {members.group}")


def _check_costs(owner: str, *costs: float) -> None:
    if any(not math.isfinite(cost) or cost < 0 for cost in costs):
        raise ValueError(f"{owner}: a cost is negative or not finite")


@dataclass(frozen=True)
class Block:
    """One piece of a group.

    Attributes:
        channels: (class, how many of its channels), without repeats.
        spare: how many of the group's spare channels fill it up.
    """

    channels: tuple[tuple[int, int], ...]
    spare: int = 0

    @property
    def width(self) -> int:
        """Channels in all."""
        return sum(count for _, count in self.channels) + self.spare


@dataclass(frozen=True)
class Choice:
    """How a reader gets its channels.

    Attributes:
        kind: one of `KINDS`.
        blocks: what it reads, in the order of its tensor, as (group, place among the group's blocks).
    """

    kind: str
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class BlockSolution:
    """A layout, and how good it is.

    Attributes:
        groups: for each group its blocks.
        choices: for each reader its choice.
        objective: predicted microseconds in all.
        bound: no layout is predicted to take less.
        status: `OPTIMAL` if the objective is proven to be the minimum (to within 1e-5), else `FEASIBLE`.
        seconds: time spent.
    """

    groups: tuple[tuple[Block, ...], ...]
    choices: tuple[Choice, ...]
    objective: float
    bound: float
    status: str
    seconds: float

    @property
    def gap(self) -> float:
        """Share of the objective that is not proven to be needed."""
        return (self.objective - self.bound) / self.objective if self.objective else 0.0
