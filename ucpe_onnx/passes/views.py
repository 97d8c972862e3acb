"""Which parts of which tensors the emitted graph makes: worked out backwards from what is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from ucpe_onnx.analysis.graph import Node
from ucpe_onnx.analysis.layer_ops import FUSING
from ucpe_onnx.analysis.restriction import Restrictions
from ucpe_onnx.analysis.slots import AxisKey, IntArray
from ucpe_onnx.analysis.structure import Consumer
from ucpe_onnx.lowerings import Reads
from ucpe_onnx.passes.infra import Emission

BLOCK, OWN, SELECTED = "block", "own", "selected"
"""A block of a split segment; what a duplicated producer makes for one consumer; what a consumer selects."""

SELECTED_BY = "kept_by_"
"""How the label of a selection begins, before its first reader's name."""

_ALWAYS_BEHIND = frozenset({"DequantizeLinear"})
"""Operators that onnxruntime fuses with a consumer, between which nothing may stand."""


@dataclass(frozen=True)
class View:
    """A part of a segment's channels, as a tensor of its own.

    Attributes:
        segment: number of the segment.
        kind: ``BLOCK``, ``OWN`` or ``SELECTED``.
        label: what its tensors' names end with.
        slots: the slots that it holds, in emitted order; for ``SELECTED`` the positions on the consumer's axis.
        axis: for ``SELECTED`` the axis that the consumer reads, should its tensor have several in the segment.
    """

    segment: int
    kind: str
    label: str
    slots: tuple[int, ...]
    axis: int = -1


Part: TypeAlias = "View | None"
"""A view of a tensor; None is the whole tensor."""


@dataclass(frozen=True)
class ReadParts:
    """How a consumer reads: the parts of its data input, and whether they are joined or summed if there are several."""

    parts: tuple[Part, ...]
    joined: bool = False

    @property
    def summed(self) -> bool:
        """Whether the consumer becomes several nodes, one for each part."""
        return len(self.parts) > 1 and not self.joined


@dataclass
class Views:
    """What has to be made, for one emission.

    Attributes:
        emission: trace, plan and layouts.
        parts: for each tensor the parts that are needed; None among them is the whole tensor.
        split: tensors whose whole, if it is needed at all, is joined from their blocks, with the segment of these.
        selected: for each tensor the views that are selected from the whole.
        running: indices of the nodes that run as in the input model, but for what they read.
        summed: indices of the nodes that make their whole output as a sum.
        folded: for a consumer that becomes a sum, the BatchNormalization that its parts take in.
    """

    emission: Emission
    parts: dict[str, dict[Part, None]] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)
    selected: dict[str, dict[View, None]] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    summed: set[int] = field(default_factory=set)
    folded: dict[int, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.emission.trace.graph
        self._positions: dict[tuple[View, AxisKey], IntArray] = {}
        self._selections: dict[tuple[int, int, tuple[int, ...]], View] = {}
        for node in graph.nodes:  # in this order, so that a selection is named after its first reader
            if self.restrictions.consumed_input(node) is not None:
                self.reads(node)
        for name in (*graph.outputs, *graph.captured):
            self._need(name, None)
        for node in reversed(graph.nodes):
            self._visit(node)
        for name in self.parts.keys() - graph.makers.keys():  # inputs of the graph
            self.selected[name] = {view: None for view in self.parts[name] if view is not None}

    @cached_property
    def restrictions(self) -> Restrictions:
        """What may be made in parts."""
        return Restrictions(self.emission.trace)

    @cached_property
    def blocks(self) -> dict[int, tuple[View, ...]]:
        """The blocks of every split segment."""
        return {
            s.id: tuple(View(s.id, BLOCK, f"block{i}", block) for i, block in enumerate(s.blocks))
            for s in self.emission.plan.segments
            if s.split
        }

    @cached_property
    def taken_in(self) -> frozenset[int]:
        """Indices of the nodes that others have folded in."""
        return frozenset(norm.index for norm in self.folded.values())

    def blocks_of(self, tensor: str, segment: int) -> list[View]:
        """The blocks of a split segment that a tensor holds channels of, in the order of their first channels."""
        axis = self.restrictions.channel_axis(tensor, segment)
        if axis is None or segment not in self.blocks:
            return []
        place = {channel: index for index, channel in enumerate(self.emission.layout(axis).tolist())}
        held = [(self.positions(block, axis), block) for block in self.blocks[segment]]
        first = [(place[int(at[0])], number, block) for number, (at, block) in enumerate(held) if at.size]
        return [block for _, _, block in sorted(first, key=lambda entry: entry[:2])]

    def read_channels(self, node: Node, term: int | None) -> IntArray:
        """The input channels that a consumer reads, altogether or as one term of a sum."""
        if term is None:
            return np.asarray(self.emission.plan.consumers[node.name].read, dtype=np.int64)
        return self.positions(self.reads(node).parts[term], self.emission.trace.consumers[node.name].use.tensor_axis)

    def positions(self, view: Part, axis: AxisKey) -> IntArray:
        """Original positions that a part of a tensor holds along its channel axis, in emitted order."""
        if view is None:
            return self.emission.layout(axis)
        key = (view, axis)
        if key not in self._positions:
            self._positions[key] = self._computed_positions(view, axis)
        return self._positions[key]

    def axis(self, tensor: str, view: View) -> AxisKey | None:
        """The axis of a tensor that a view is a part of."""
        axis = self.restrictions.channel_axis(tensor, view.segment)
        return (tensor, view.axis) if axis is None and view.axis >= 0 else axis

    def canonical(self, tensor: str, part: Part) -> Part:
        """None for a view that is the whole tensor."""
        axis = None if part is None else self.axis(tensor, part)
        if part is None or axis is None or np.array_equal(self.positions(part, axis), self.emission.layout(axis)):
            return None
        return part

    def made(self, tensor: str) -> Iterator[View]:
        """The parts of a tensor that are made as such, neither selected from the whole nor the whole itself."""
        for part in self.parts.get(tensor, ()):
            if part is not None and part not in self.selected.get(tensor, ()):
                yield part

    def reads(self, node: Node) -> ReadParts:
        """How a consumer gets its channels."""
        consumer = self.emission.trace.consumers[node.name]
        tensor = str(consumer.use.tensor_axis[0])
        plan = self.emission.plan.consumers[node.name]
        lowering = self.emission.plan.segments[consumer.segment].lowering(node.name)
        if lowering.reads == Reads.SELECTION:
            return ReadParts((self.canonical(tensor, self._selection(consumer, plan.read)),))
        if lowering.reads == Reads.OWN:
            slots = tuple(dict.fromkeys(consumer.slots[list(plan.read)].tolist()))
            return ReadParts((self.canonical(tensor, View(consumer.segment, OWN, f"for_{node.name}", slots)),))
        if lowering.reads == Reads.BLOCKS:
            read, axis = set(plan.read), consumer.use.tensor_axis
            wanted = [
                view for view in self.blocks_of(tensor, consumer.segment) if int(self.positions(view, axis)[0]) in read
            ]
            return ReadParts(tuple(self.canonical(tensor, view) for view in wanted), joined=lowering.joined)
        return ReadParts((None,))

    def sources(self, node: Node, view: Part) -> Iterator[tuple[int, Part]]:
        """For every data input but the one that a consumer reads, the part that a restricted node takes."""
        consumed = self.restrictions.consumed_input(node)
        for index, name in enumerate(node.inputs):
            if not name or index == consumed:
                continue
            carries = view is not None and self.restrictions.channel_axis(name, view.segment) is not None
            yield index, self.canonical(name, view) if carries else None

    def narrowed(self, view: View, tensor: str) -> View:
        """The part of a view whose slots a tensor holds: what has to be there in front of a cut."""
        axis = self.axis(tensor, view)
        assert axis is not None, "only tensors with channels have views"
        trace = self.emission.trace
        held = set(trace.segments[view.segment].local(trace.slots.axes[axis]).tolist())
        slots = tuple(slot for slot in view.slots if slot in held)
        return view if len(slots) == len(view.slots) else replace(view, slots=slots)

    def operands(self, node: Node, view: View) -> list[tuple[str, Part]]:
        """The parts of a Concat's inputs that make up a part of its output; inputs without any are left out."""
        pairs = []
        for name in node.inputs:
            axis = self.restrictions.channel_axis(name, view.segment)
            if axis is not None and self.positions(view, axis).size:
                pairs.append((name, self.canonical(name, view)))
        return pairs

    def _computed_positions(self, view: View, axis: AxisKey) -> IntArray:
        if view.kind == SELECTED:
            return np.asarray(view.slots, dtype=np.int64)
        trace = self.emission.trace
        segment = trace.segments[view.segment]
        inside = np.zeros(len(segment.classes), dtype=bool)
        inside[list(view.slots)] = True
        held = inside[segment.local(trace.slots.axes[axis])]
        if view.kind == OWN:  # nodes that make a part leave it in the order that it comes in
            return np.flatnonzero(held)
        layout = self.emission.layout(axis)
        return layout[held[layout]]

    def _selection(self, consumer: Consumer, read: tuple[int, ...]) -> View:
        """Consumers that select the same share the view."""
        axis = consumer.use.tensor_axis[1]
        view = View(consumer.segment, SELECTED, f"{SELECTED_BY}{consumer.name}", read, axis)
        return self._selections.setdefault((consumer.segment, axis, read), view)

    def _need(self, tensor: str, part: Part) -> None:
        self.parts.setdefault(tensor, {})[self.canonical(tensor, part)] = None

    def _visit(self, node: Node) -> None:
        """What the needs for a node's outputs mean for its inputs."""
        graph = self.emission.trace.graph
        outputs = [name for name in node.outputs if name]
        needed = [name for name in outputs if name in self.parts]
        if not needed and any(graph.readers.get(name) for name in outputs):
            return  # whatever read it reads other parts now
        for name in needed:
            self._settle(node, name)
        if not needed or any(None in self.parts[name] and name not in self.split for name in needed):
            self._run(node)
        for name in needed:
            for view in self.made(name):
                self._make(node, name, view)

    def _settle(self, node: Node, tensor: str) -> None:
        """Decide which parts of a tensor are made as such, and which are selected from the whole."""
        parts = self.parts[tensor]
        for segment in self.restrictions.segments(tensor):
            if self._splits(node, tensor, segment):
                self.split[tensor] = segment
                break
        alone = len(parts) == 1
        for view in [part for part in parts if part is not None]:
            whole_is_split = view.segment != self.split.get(tensor, view.segment)
            better = node.op_type in _ALWAYS_BEHIND or (alone and self.restrictions.selects_above(node, view.segment))
            moves = view.kind != SELECTED or better
            if whole_is_split or not moves or not self._makes(node, tensor, view):
                self.selected.setdefault(tensor, {})[view] = None
        if self.selected.get(tensor):
            parts[None] = None
        if tensor in self.split and None in parts:
            parts.update(dict.fromkeys(self.blocks_of(tensor, self.split[tensor])))

    def _splits(self, node: Node, tensor: str, segment: int) -> bool:
        """Whether a tensor can be made block by block, and joined from these."""
        blocks = self.blocks_of(tensor, segment)
        axis = self.restrictions.channel_axis(tensor, segment)
        graph = self.emission.trace.graph
        renamed = tensor not in graph.outputs and tensor not in graph.captured
        fewest = (
            1 if renamed and self.restrictions.cuts(node, tensor, segment) else 2
        )  # what is cut off is there already
        if axis is None or len(blocks) < fewest or not all(self._makes(node, tensor, block) for block in blocks):
            return False
        joined = np.concatenate([self.positions(block, axis) for block in blocks])
        return np.array_equal(joined, self.emission.layout(axis))

    def _makes(self, node: Node, tensor: str, view: View) -> bool:
        """Whether the node can make that part of its output by itself."""
        if self.restrictions.joins(node, view.segment):
            return view.kind != SELECTED
        if self.restrictions.cuts(node, tensor, view.segment):
            return view.kind != SELECTED
        return self.restrictions.restrictable(node, view.segment)

    def _run(self, node: Node) -> None:
        """The node runs on whole tensors, but for what it reads as a consumer."""
        consumed = self.restrictions.consumed_input(node)
        for index, name in enumerate(node.inputs):
            if name and index != consumed:
                self._need(name, None)
        (self.summed if self._read(node) else self.running).add(node.index)

    def _make(self, node: Node, tensor: str, view: View) -> None:
        """The node runs once more, for a part of its output's channels."""
        if self.restrictions.joins(node, view.segment):
            for name, part in self.operands(node, view):
                self._need(name, part)
        elif self.restrictions.cuts(node, tensor, view.segment):
            self._need(node.inputs[0], self.narrowed(view, tensor))
        else:
            for index, part in self.sources(node, view):
                self._need(node.inputs[index], part)
            self._read(node)

    def _read(self, node: Node) -> bool:
        """Note what a consumer reads, and tell whether it becomes a sum."""
        consumed = self.restrictions.consumed_input(node)
        if consumed is None:
            return False
        reads = self.reads(node)
        for part in reads.parts:
            self._need(node.inputs[consumed], part)
        if reads.summed and node.index not in self.folded and (norm := self._normalization(node)) is not None:
            self.folded[node.index] = norm
            self.running.discard(norm.index)
        return reads.summed

    def _normalization(self, node: Node) -> Node | None:
        """A BatchNormalization that alone reads the node's output, and whose parameters are constant."""
        graph = self.emission.trace.graph
        out = node.outputs[0]
        readers = graph.readers[out]
        if len(readers) != 1 or out in graph.captured or out in graph.outputs or node.op_type not in FUSING:
            return None
        norm = readers[0][0]
        constant = all(name in graph.constants for name in norm.inputs[1:])
        one = [name for name in norm.outputs if name] == [norm.outputs[0]]
        return norm if norm.op_type == "BatchNormalization" and constant and one else None
