"""The block problem of a segment: who reads which channels, and what everything costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import BLOCKED
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.structure import Consumer, Segment
from ucpe_onnx.lowerings import LOWERINGS, UNSAID, Lowering, Reads
from ucpe_onnx.masks import Mask
from ucpe_onnx.planning.cost import Costs, FloatArray
from ucpe_onnx.planning.lower import LoweringRule
from ucpe_onnx.planning.rounding import Rounding
from ucpe_onnx.planning.routes import Routes
from ucpe_onnx.solve.blocks import BlockProblem, BlockReader, BlockTensor, Copy, Group, SlotClass, Table


@dataclass(frozen=True)
class SegmentProblem:
    """A block problem, and what its numbers stand for.

    Attributes:
        problem: the problem.
        classes: the slots of each class.
        spare: for each group the slots that may fill a width up, best first.
        readers: names of the consumers.
    """

    problem: BlockProblem
    classes: tuple[tuple[int, ...], ...]
    spare: tuple[tuple[int, ...], ...]
    readers: tuple[str, ...]

    def undivided_us(self, width: int) -> float:
        """What it costs to make one block of so many channels, and to have everybody read them all."""
        problem = self.problem
        return sum(table(width) for table in problem.groups[0].made) + sum(r.cost(width) for r in problem.readers)


@dataclass(frozen=True)
class Question:
    """What a segment's problem is made from.

    Attributes:
        segment: the segment.
        masks: what its consumers keep; those left out keep everything.
        emitted: the slots that are emitted if nothing is split, shape (slots,).
        needed: the slots among them that somebody needs, shape (slots,).
        score: importance of each slot, shape (slots,); None: the first ones fill up.
        rounding: what the width of a block had better be.
        contiguous: consumers whose channels lie side by side if nothing is split.
        rule: what consumers may do.
        uneven: groups whose width keeps every Concat of them out of the blocked layout: each operand leaves it once,
            where it is made, and no selection from what is joined has to.
    """

    segment: Segment
    masks: Mapping[str, Mask]
    emitted: npt.NDArray[np.bool_]
    needed: npt.NDArray[np.bool_]
    score: FloatArray | None
    rounding: Rounding
    contiguous: frozenset[str]
    rule: LoweringRule
    uneven: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ProblemMaker:
    """Poses the problem of one segment."""

    costs: Costs
    routes: Routes
    question: Question
    _chains: dict[str, tuple[Node, ...]] = field(default_factory=dict)
    _plain: dict[AxisKey, bool] = field(default_factory=dict)

    def make(self) -> SegmentProblem:
        """The problem."""
        readers = [self.costs.trace.consumers[name] for name in self.segment.consumers]
        tensors = list(dict.fromkeys(self._source(reader) for reader in readers))
        classes, spare = self._classes(readers)
        rounding = self.question.rounding
        problem = BlockProblem(
            classes=tuple(entry for entry, _ in classes),
            groups=tuple(self._group(number, len(slots)) for number, slots in enumerate(spare)),
            readers=tuple(self._reader(reader, tensors.index(self._source(reader))) for reader in readers),
            tensors=tuple(self._tensor(axis) for axis in tensors),
            width_multiple=self._step,
            minimum=rounding.minimum,
            joined_multiple=rounding.joined,
        )
        return SegmentProblem(problem, tuple(slots for _, slots in classes), spare, tuple(r.name for r in readers))

    @property
    def segment(self) -> Segment:
        """The segment."""
        return self.question.segment

    @cached_property
    def _step(self) -> int:
        return self.question.rounding.step

    @cached_property
    def _widths(self) -> IntArray:
        most = -(-len(self.segment.classes) // self._step)
        return np.arange(1, most + 1, dtype=np.int64) * self._step

    def _table(self, us: FloatArray) -> Table:
        return Table(self._step, np.concatenate([[0.0], us]))

    def _classes(
        self, readers: Sequence[Consumer]
    ) -> tuple[list[tuple[SlotClass, tuple[int, ...]]], tuple[tuple[int, ...], ...]]:
        """Slots by who keeps them, and for each group those that nobody does."""
        kept = np.zeros((len(self.segment.classes), len(readers)), dtype=bool)
        for index, reader in enumerate(readers):
            mask = self.question.masks.get(reader.name)
            kept[reader.slots if mask is None else reader.slots[mask], index] = True
        by_class: dict[tuple[int, bool, bytes], list[int]] = defaultdict(list)
        spare: list[list[int]] = [[] for _ in self.segment.groups]
        for slot, row in enumerate(kept):
            group = int(self.segment.group_of[slot])
            if row.any() or self.question.needed[slot]:
                by_class[group, bool(self.segment.frozen[slot]), row.tobytes()].append(slot)
            else:
                spare[group].append(slot)
        entries = []
        for (group, fixed, _), slots in by_class.items():
            names = frozenset(np.flatnonzero(kept[slots[0]]).tolist())
            entries.append((SlotClass(group, len(slots), names, fixed), tuple(slots)))
        return entries, tuple(tuple(self._best_first(slots)) for slots in spare)

    def _best_first(self, slots: list[int]) -> list[int]:
        """Those first that are emitted anyway, then by importance."""
        score = self.question.score
        keys = {slot: (not self.question.emitted[slot], 0.0 if score is None else -score[slot], slot) for slot in slots}
        return sorted(slots, key=keys.__getitem__)

    def _group(self, number: int, spare: int) -> Group:
        frozen = bool(self.segment.frozen[self.segment.groups[number][0]])
        shared = len(self.segment.consumers) > 1 and len(self.segment.groups) <= _MOST_GROUPS
        splittable = self.question.rule.split and shared and self._splits and not frozen
        return Group((self._made[number],), spare, splittable=splittable)

    @cached_property
    def _splits(self) -> bool:
        """Whether every operator on the way can work block by block."""
        graph = self.costs.trace.graph
        for tensor in self._tensors:
            maker = graph.makers.get(tensor)
            if maker is None or not self.routes.repeats(maker, tensor, self.segment.id):
                return False
        return not self.segment.partitions

    @cached_property
    def _tensors(self) -> list[str]:
        return list(dict.fromkeys(tensor for tensor, _ in self.segment.axes if isinstance(tensor, str)))

    @cached_property
    def _made(self) -> list[Table]:
        """For each group what it costs to make so many of its channels, and to bring them to where readers part."""
        costs, trace = self.costs, self.costs.trace
        longest = max(map(len, self.segment.groups))  # no group is wider, nor is what a reader takes of one on average
        widths = self._widths[: -(-longest // self._step)]
        us = np.zeros((len(self.segment.groups), widths.size))
        private = {node.index for name in self.segment.consumers for node in self._chain(trace.consumers[name])}
        producers = self.routes.restrictions.producers
        for axis in self.segment.axes:
            tensor = axis[0]
            maker = trace.graph.makers.get(tensor) if isinstance(tensor, str) else None
            if maker is None or maker.index in private or self.routes.restrictions.joins(maker, self.segment.id):
                continue
            groups = np.unique(self.segment.group_of[self.segment.local(trace.slots.axes[axis])])
            if len(groups) > _MOST_GROUPS:
                continue
            if axis in producers:
                cost = costs.makes_us(producers[axis], widths)
            else:
                cost = costs.carries_us(maker, axis, widths)
            us[groups] += cost
            if any(self._joins_plainly(reader) for reader, _ in trace.graph.readers[str(tensor)]):
                us[groups] += costs.reorders_us(str(tensor), axis[1], widths)
        return [self._table(row) for row in us]

    def _joins_plainly(self, node: Node) -> bool:
        """Whether a node is a Concat that uneven groups keep out of the blocked layout."""
        axis = self.routes.restrictions.channel_axis(node.outputs[0], self.segment.id) if self.question.uneven else None
        return axis is not None and self.routes.restrictions.joins(node, self.segment.id) and self._is_plain(axis)

    def _is_plain(self, axis: AxisKey) -> bool:
        """Whether a tensor that a Concat made is out of the blocked layout."""
        if axis not in self._plain:
            groups = self.segment.group_of[self.segment.local(self.costs.trace.slots.axes[axis])]
            uneven = not self.question.uneven.isdisjoint(groups.tolist())
            self._plain[axis] = uneven and self._is_joined(str(axis[0]))
        return self._plain[axis]

    def _chain(self, reader: Consumer) -> tuple[Node, ...]:
        """The operators in front of a consumer that work for it alone, last one first."""
        if reader.name not in self._chains:
            self._chains[reader.name] = tuple(self._private(str(reader.use.tensor_axis[0])))
        return self._chains[reader.name]

    def _private(self, tensor: str) -> Iterator[Node]:
        graph, known = self.costs.trace.graph, self.routes.restrictions
        while len(graph.readers[tensor]) == 1 and tensor not in graph.captured and tensor not in known.made:
            node = graph.makers.get(tensor)
            if node is None or known.joins(node, self.segment.id):
                return
            carried = [name for name in node.inputs if name and known.channel_axis(name, self.segment.id) is not None]
            if len(carried) != 1:
                return
            yield node
            tensor = carried[0]

    def _source(self, reader: Consumer) -> AxisKey:
        """Where a consumer's selection stands: in front of operators that gain from it, and that work for it alone."""
        behind = self._behind(reader)
        names = behind[-1].inputs if behind else ()
        axes = [self.routes.restrictions.channel_axis(name, self.segment.id) for name in names if name]
        return next((axis for axis in axes if axis is not None), reader.use.tensor_axis)

    def _behind(self, reader: Consumer) -> tuple[Node, ...]:
        """Those of the operators in front of a consumer that work on its selection."""
        known = self.routes.restrictions
        return tuple(takewhile(lambda node: known.selects_above(node, self.segment.id), self._chain(reader)))

    def _tensor(self, axis: AxisKey) -> BlockTensor:
        tensor, costs, graph = str(axis[0]), self.costs, self.costs.trace.graph
        runs = self.segment.group_of[self.segment.local(costs.trace.slots.axes[axis])]
        groups = tuple(dict.fromkeys(runs.tolist()))
        written = self._emitted_on(axis) * costs.bytes(tensor, axis[1])
        reorder = costs.reorder_us(tensor, written)
        whole = tensor in graph.outputs or tensor in graph.captured
        joined = self._is_joined(tensor) or len(groups) == 1
        if self._is_plain(axis):
            reorder = 0.0
        return BlockTensor(
            groups=groups,
            reorder_us=reorder,
            whole_us=costs.concat_us(written) if joined else 0.0,
            ragged_us=2 * reorder if joined else 0.0,
            whole=whole,
        )

    def _is_joined(self, tensor: str) -> bool:
        """Whether a Concat stands between the groups of a tensor and its readers."""
        graph, seen = self.costs.trace.graph, set()
        while tensor not in seen:
            seen.add(tensor)
            node = graph.makers.get(tensor)
            if node is None:
                return False
            if self.routes.restrictions.joins(node, self.segment.id):
                return True
            carried = [n for n in node.inputs if n and self.routes.restrictions.channel_axis(n, self.segment.id)]
            tensor = carried[0] if carried else tensor
        return False

    def _reader(self, reader: Consumer, tensor: int) -> BlockReader:
        costs, axis = self.costs, self._source(reader)
        name, slots = str(axis[0]), max(len(np.unique(reader.slots)), 1)
        per_slot = reader.channels / slots
        mask = self.question.masks.get(reader.name)
        made = self._emitted_on(axis)
        kept = made if mask is None else self._selected(reader, int(mask.sum()), made)
        width = max(1, round(kept / per_slot))
        reading = costs.reads_us(reader, np.ceil(self._widths * per_slot).astype(np.int64))
        chain, behind = self._chain(reader), self._behind(reader)
        selected = self._table(reading + self._carried(behind))
        before = self._table(self._carried(chain[len(behind) :]))
        table = Table(selected.step, selected.us + before.us)
        if self._is_plain(axis):
            table = Table(
                table.step, table.us + np.concatenate([[0.0], costs.reorders_us(name, axis[1], self._widths)])
            )
        each = costs.bytes(name, axis[1])
        reorder = costs.reorder_us(name, each * kept)
        select_us = self._copied(reader, axis, kept) + reorder + selected(width)
        return BlockReader(
            name=reader.name,
            tensor=tensor,
            cost=table,
            part_us=costs.part_us(reader, kept) + costs.calls(chain) * costs.rates.call_us,
            concat=self._copy(each),
            concat_ragged=self._copy(each, 2 * costs.reorder_us(name, 1.0), 2 * costs.reorder_us(name, each)),
            select_us=select_us + before(max(1, round(made / per_slot))),
            duplicate_us=self._duplicate_us(reader, table, width),
            allowed=self._allowed(reader, mask),
        )

    def _emitted_on(self, axis: AxisKey) -> int:
        """Channels of a tensor if nothing is split."""
        return int(self.question.emitted[self.segment.local(self.costs.trace.slots.axes[axis])].sum())

    def _selected(self, reader: Consumer, kept: int, made: int) -> int:
        """Channels of a selection, filled up to a width that runs well."""
        target = self.costs.target
        return target.width(kept, made, target.read_multiple) if reader.use.node.op_type in BLOCKED else kept

    def _carried(self, nodes: Iterable[Node]) -> FloatArray:
        """What operators on the way cost, by the number of slots."""
        us = np.zeros(self._widths.shape)
        for node in nodes:
            axis = self.routes.restrictions.channel_axis(node.outputs[0], self.segment.id)
            if axis is not None:
                us = us + self.costs.carries_us(node, axis, self._widths)
        return us

    def _copied(self, reader: Consumer, axis: AxisKey, channels: int) -> float:
        tensor, place = str(axis[0]), axis[1]
        if reader.name in self.question.contiguous:
            return self.costs.slice_us(float(channels * self.costs.bytes(tensor, place)))
        return self.costs.gather_us(tensor, place, channels)

    def _copy(self, each: float, call: float = 0.0, channel: float = 0.0) -> Copy:
        start = self.costs.concat_us(0.0)
        return Copy(start + call, max(0.0, self.costs.concat_us(each) - start) + channel)

    def _duplicate_us(self, reader: Consumer, table: Table, width: int) -> float | None:
        if not self.routes.separable(reader):
            return None
        groups = np.unique(self.segment.group_of[reader.slots])
        share = width / max(len(groups), 1)
        return table(width) + sum(self._made[int(group)](int(np.ceil(share))) for group in groups)

    def _allowed(self, reader: Consumer, mask: Mask | None) -> frozenset[str]:
        """What the rule asks for, as far as the consumer can do it; else it reads everything."""
        possible = {x.kind for x in LOWERINGS.values() if self._is_open(reader, mask, x)}
        return frozenset(possible & self.question.rule.kinds) or frozenset({UNSAID.kind})

    def _is_open(self, reader: Consumer, mask: Mask | None, lowering: Lowering) -> bool:
        """Whether a consumer may take a lowering here, and might gain from it."""
        if lowering.reads in (Reads.SELECTION, Reads.OWN) and mask is None:
            return False
        if lowering.reads == Reads.SELECTION and not self._leaves_needed(reader, mask):
            return False
        if lowering.reads == Reads.OWN and (len(self.segment.consumers) == 1 or self.segment.partitions):
            return False  # there is nobody to part from, or the parts of what is left would get unequal
        if lowering.split and not (self._splits and self.routes.direct(reader)):
            return False
        return self.routes.unmet(reader, lowering) is None

    def _leaves_needed(self, reader: Consumer, mask: Mask | None) -> bool:
        """Whether a consumer drops channels that must be there for others; what only fills a width up it can read."""
        return mask is not None and bool(self.question.needed[reader.slots[~mask]].any())


_MOST_GROUPS = 128
"""Segments in more groups (convolutions of very many groups) are not split any further."""
