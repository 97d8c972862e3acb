"""What operator rules write into: links between axes, frozen slots, consumers and producers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.quantised import constant_use
from ucpe_onnx.analysis.slots import AxisKey, IntArray, SlotTable, TensorKey

_LONGEST_AXIS = 1 << 22
"""No axis of more positions holds channels; following each of them would take memory without end."""


@dataclass(frozen=True)
class Link:
    """Positions of a target axis that carry the same slots as positions of a source axis.

    The target's layout follows the source's: target positions are emitted in the order of (outer, emitted place of
    the source position, target position).

    Attributes:
        source: the axis that the layout comes from.
        target: the axis that follows.
        source_positions: linked source positions, None for all of an equally long axis in order.
        target_positions: the target position of each, None likewise.
        outer: slower-running index of each target position (merging axes ``(outer, channels)``), None for none.
        free: the target's layout does not follow: the node that stands between gathers whatever order is wanted.
    """

    source: AxisKey
    target: AxisKey
    source_positions: IntArray | None = None
    target_positions: IntArray | None = None
    outer: IntArray | None = None
    free: bool = False


@dataclass(frozen=True)
class EqualParts:
    """An axis whose parts of equal length must keep equal numbers of positions, one part after the other.

    Attributes:
        axis: the axis.
        parts: how many parts (the groups of a convolution).
    """

    axis: AxisKey
    parts: int


@dataclass(frozen=True)
class WeightUse:
    """A node and the constant weight by which it reads or makes channels.

    Attributes:
        node: the node.
        tensor_axis: the data axis that is read (consumer) or made (producer).
        weight_input: the input of the node that the weight comes in by.
        weight: name of the constant; it may lie behind a DequantizeLinear.
        constant: the use of that constant: (node index, input index).
        weight_axis: the weight's axis that runs over those channels.
        groups: number of convolution groups; a consumer with groups > 1 has C_in/groups positions on that axis.
        recurrence: of a recurrent layer that reads the channels which it makes itself, its name as a consumer; it takes
            all of them, as they are laid out. Empty for all others.
    """

    node: Node
    tensor_axis: AxisKey
    weight_input: int
    weight: str
    constant: tuple[int, int]
    weight_axis: int
    groups: int = 1
    recurrence: str = ""

    @property
    def name(self) -> str:
        """What the consumer is called: like its node, but for a recurrence."""
        return self.recurrence or self.node.name


class NotFollowedError(Exception):
    """A rule can't follow a node; the message says why."""


class NodeEdit(Protocol):
    """What a node's :data:`Rewrite` may ask and change when the graph is emitted."""

    def size(self, axis: AxisKey) -> int:
        """Number of positions that an axis has in the emitted graph."""

    def kept(self, axis: AxisKey) -> IntArray:
        """Original positions of an axis in emitted order."""

    def set_input(self, index: int, value: npt.NDArray[np.generic]) -> None:
        """Replace an input of the node by a constant."""

    def leave_out_input(self, index: int) -> None:
        """Do without an optional input of the node."""

    def patch_input(self, index: int, values: Sequence[int | None]) -> None:
        """Replace the elements of an input, a list of integers, where a value is given; the others stay."""

    def set_attribute(self, name: str, value: int | Sequence[int] | None) -> None:
        """Replace an attribute of the node; None removes it."""

    def become(self, op_type: str, inputs: Sequence[str | IntArray], attributes: Mapping[str, Any]) -> None:
        """Turn the node into another that makes its first output from tensors and constants."""


@dataclass(frozen=True)
class Rewrite:
    """How a node's attributes or shape inputs are adapted to the emitted sizes.

    Attributes:
        adapt: the function that does it.
        sources: tensors whose emitted sizes it depends on, besides the node's own inputs and outputs.
    """

    adapt: Callable[[NodeEdit], None]
    sources: frozenset[str] = frozenset()


class Tracer:
    """Collects what the rules say about each node; :mod:`ucpe_onnx.analysis.trace` makes a Trace of it.

    Args:
        graph: the graph under analysis.
        choices: for a node that splits an axis, which axis of its output carries the channels, or why none can; for one
            that contracts several with a constant, which of them its mask is for.

    Attributes:
        links: in graph order, so that a source's layout is known before its target's.
        consumers: weight uses that read channels, in graph order.
        producers: weight uses that make channels, in graph order.
        choices: None while it is still open which axes carry the channels behind splits, or are read by contractions.
        open_splits: for a node that splits an axis, the output's axes that may carry the channels.
        open_reads: for a node that contracts several axes with a constant, those that its mask may be for.
        partitions: axes whose parts must stay equally long.
        rewrites: by node index, how attributes or shape inputs are adapted to the emitted sizes.
        stopped: why nodes were not followed at all.
    """

    def __init__(self, graph: GraphView, choices: Mapping[int, int | str] | None = None) -> None:
        self.graph = graph
        self.choices = choices
        self.open_splits: dict[int, list[int]] = {}
        self.open_reads: dict[int, list[int]] = {}
        self.table = SlotTable()
        self.links: list[Link] = []
        self.consumers: list[WeightUse] = []
        self.producers: list[WeightUse] = []
        self.rewrites: dict[int, Rewrite] = {}
        self.partitions: list[EqualParts] = []
        self.stopped: list[str] = []
        self._live: set[AxisKey] = set()
        self._reason: dict[AxisKey, str] = {}
        self._source: dict[AxisKey, AxisKey] = {}

    def operand(self, node: Node, index: int) -> TensorKey | None:
        """The key of an input: the tensor's name, None if it is left out.

        For a constant it is the place where it is used, (node index, input index): here, or at the QuantizeLinear or
        DequantizeLinear that it has to pass first.
        """
        if index >= len(node.inputs) or not node.inputs[index]:
            return None
        return constant_use(self.graph, node, index) or node.inputs[index]

    def dims(self, tensor: TensorKey) -> tuple[int | str | None, ...] | None:
        """Shape of a tensor or constant, None if the rank is unknown."""
        if isinstance(tensor, tuple):
            return self.graph.constants.shape(self.graph.nodes[tensor[0]].inputs[tensor[1]])
        return self.graph.shape(tensor)

    def rank(self, tensor: TensorKey) -> int | None:
        """Number of axes, None if unknown."""
        dims = self.dims(tensor)
        return None if dims is None else len(dims)

    def size(self, axis: AxisKey) -> int | None:
        """Length of an axis, None if it is dynamic or too long to hold channels."""
        dims = self.dims(axis[0])
        size = dims[axis[1]] if dims is not None and axis[1] < len(dims) else None
        return size if isinstance(size, int) and size <= _LONGEST_AXIS else None

    def ids(self, axis: AxisKey) -> IntArray | None:
        """Slot ids of an axis, None if it is dynamic."""
        size = self.size(axis)
        return None if size is None else self.table.add(axis, size)

    def revive(self, axis: AxisKey) -> None:
        """Follow an axis as if a producer made it."""
        if self.ids(axis) is not None:
            self._live.add(axis)

    def is_live(self, axis: AxisKey) -> bool:
        """Whether an axis comes from a producer and nothing has frozen it on the way: it is worth following."""
        return axis in self._live

    def freeze(self, tensor: TensorKey | None, reason: str, axes: Iterable[int] | None = None) -> None:
        """Freeze axes of a tensor (default: all of them) for a reason that the user will read."""
        if tensor is None:
            return
        for axis in range(self.rank(tensor) or 0) if axes is None else axes:
            self._live.discard((tensor, axis))
            if (ids := self.ids((tensor, axis))) is not None:
                self.table.freeze(ids, reason)
                self._reason.setdefault((tensor, axis), reason)

    def reason(self, axis: AxisKey) -> str:
        """Why an axis, or the one that it comes from, has been frozen so far; "" if it has not."""
        while axis not in self._reason and axis in self._source:
            axis = self._source[axis]
        return self._reason.get(axis, "")

    def of_unknown_rank(self, node: Node) -> str:
        """The reason for freezing a node that works on a tensor of unknown rank: who made the first such tensor."""
        pending = [name for name in (*node.outputs, *node.inputs) if name and self.rank(name) is None]
        first = node
        while pending and (maker := self.graph.makers.get(pending.pop())) is not None:
            first = maker
            pending = [name for name in maker.inputs if name and self.rank(name) is None]
        return f"tensor of unknown rank: {first.op_type} at {first.name}"

    def freeze_node(self, node: Node, reason: str) -> None:
        """Freeze everything that a node touches."""
        self.stopped.append(reason)
        for index in range(len(node.inputs)):
            self.freeze(self.operand(node, index), reason)
        for name in node.outputs:
            if name:
                self.freeze(name, reason)

    def link(self, source: AxisKey, target: AxisKey, node: Node) -> None:
        """The two axes carry the same slots, position by position."""
        a, b = self.ids(source), self.ids(target)
        if a is None or b is None or a.size != b.size:
            if a is not None or b is not None:
                reason = f"axis of unknown or changed length: {node.op_type} at {node.name}"
                self.freeze(source[0], reason, [source[1]])
                self.freeze(target[0], reason, [target[1]])
            return
        self._add(Link(source, target), a, b)

    def link_positions(
        self,
        source: AxisKey,
        source_at: IntArray,
        target: AxisKey,
        target_at: IntArray,
        *,
        outer: IntArray | None = None,
        free: bool = False,
    ) -> None:
        """Position ``source_at[i]`` of the source and ``target_at[i]`` of the target carry the same slot.

        Several source positions may share a target position: they then stay or go together.
        """
        a, b = self.ids(source), self.ids(target)
        if a is None or b is None:
            raise ValueError(f"link_positions needs axes of known length: {source}, {target}")
        self._add(Link(source, target, source_at, target_at, outer, free), a[source_at], b[target_at])

    def tie(self, axis: AxisKey, labels: IntArray) -> None:
        """Positions with the same label stay or go together; labels run from 0 in order of first appearance."""
        ids = self.ids(axis)
        if ids is not None:
            _, first = np.unique(labels, return_index=True)
            self.table.join(ids[first[labels]], ids)

    def partition(self, axis: AxisKey, parts: int) -> None:
        """The parts of an axis must keep equal numbers of positions."""
        self.partitions.append(EqualParts(axis, parts))

    def _add(self, link: Link, left: IntArray, right: IntArray) -> None:
        self.links.append(link)
        self._source.setdefault(link.target, link.source)
        self.table.join(left, right)
        if link.source in self._live:
            self._live.add(link.target)

    def pass_through(self, node: Node, source: TensorKey, target: TensorKey, axes: Iterable[int] | None = None) -> None:
        """Axes (default: all) of the target are the same axes of the source."""
        rank = self.rank(source)
        if rank is None or rank != self.rank(target):
            self.freeze(source, self.of_unknown_rank(node))
            self.freeze(target, self.of_unknown_rank(node))
            return
        for axis in range(rank) if axes is None else axes:
            self.link((source, axis), (target, axis), node)

    def weight_use(
        self, node: Node, tensor_axis: AxisKey, weight_input: int, weight_axis: int, groups: int = 1
    ) -> WeightUse:
        """Describe how a node uses a constant weight.

        Raises:
            ValueError: the input is not constant.
        """
        key = self.operand(node, weight_input)
        if not isinstance(key, tuple):
            raise ValueError(f"{node.name}: input {weight_input} is not constant")
        weight = self.graph.nodes[key[0]].inputs[key[1]]
        return WeightUse(node, tensor_axis, weight_input, weight, key, weight_axis, groups)

    def consume(self, use: WeightUse) -> None:
        """A node reads the channels of an axis through a constant weight.

        Raises:
            NotFollowedError: the weight is computed from lengths, which are constant only as far as these are known: no
                mask is for it.
        """
        if use.weight in self.graph.constants.measured:
            raise NotFollowedError("weight computed from lengths")
        self.consumers.append(use)
        self.ids(use.tensor_axis)

    def produce(self, use: WeightUse, *followers: AxisKey) -> None:
        """A node makes the channels of an axis; the followers (axes of its weight and bias) keep step with it."""
        self.producers.append(use)
        self.ids(use.tensor_axis)
        self._live.add(use.tensor_axis)
        for follower in followers:
            self.link(use.tensor_axis, follower, use.node)

    def rewrite(self, node: Node, adapt: Callable[[NodeEdit], None], sources: Iterable[str] = ()) -> None:
        """Have a node's attributes or shape inputs adapted when the graph is emitted; see :class:`Rewrite`."""
        self.rewrites[node.index] = Rewrite(adapt, frozenset(sources))
