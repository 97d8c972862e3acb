"""Chains of Reshape, Transpose and their like that do no more than pick and reorder channels, or transpose.

Such a chain is executed once on the numbers of its elements. Where the result equals a Gather along one axis of the
input (channel shuffle), the chain as a whole carries the channels: in whatever order is wanted, since emission replaces
the chain by that Gather if channels have gone. Where it equals a Transpose of the input (PyTorch merges batch and heads
to transpose the keys of an attention), it is that Transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ucpe_onnx.analysis.graph import GraphView, Node
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.tracer import NodeEdit, Tracer

_MOST_ELEMENTS = 1 << 22
_MOST_NODES = 16
_STAND_INS = (2, 3, 5, 7, 11)
"""Lengths for dynamic axes: any will do, since a chain moves axes in the same way whatever their lengths are."""


@dataclass(frozen=True)
class Exit:
    """A tensor that holds chosen positions of one axis of another, or is its transpose.

    Attributes:
        source: the tensor that the chain starts from.
        node: the node that makes the result.
        axis: the axis.
        positions: for each position of the result that of the source.
        order: for each axis of a transpose that of the source; empty for chosen positions.
    """

    source: str
    node: Node
    axis: int = 0
    positions: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    order: tuple[int, ...] = ()


@dataclass
class Rearrangements:
    """All such chains of a graph.

    Attributes:
        exits: by the index of the node that makes the result.
        inner: indices of the nodes in between, which carry nothing on their own.
    """

    exits: dict[int, Exit] = field(default_factory=dict)
    inner: set[int] = field(default_factory=set)


def find_rearrangements(graph: GraphView) -> Rearrangements:
    """Search a graph for chains that begin with a Reshape in front of a Transpose."""
    found = Rearrangements()
    for node in graph.nodes:
        if node.op_type != "Reshape" or node.index in found.inner or node.inputs[0] in graph.constants:
            continue
        readers = graph.readers[node.outputs[0]]
        if readers and all(reader.op_type == "Transpose" for reader, _ in readers):
            chain = _executed(graph, node)
            if chain is not None:
                found.exits.update({exit_.node.index: exit_ for exit_ in chain[0]})
                found.inner.update(chain[1])
    return found


def rearranged(tracer: Tracer, node: Node, chains: Rearrangements) -> bool:
    """Whether a node belongs to a chain; its end is linked to the chain's start."""
    if node.index in chains.inner:
        return True
    end = chains.exits.get(node.index)
    if end is None:
        return False
    out = node.outputs[0]
    if end.order:
        for to, axis in enumerate(end.order):
            tracer.link((end.source, axis), (out, to), node)
        tracer.rewrite(node, lambda edit: edit.become("Transpose", [end.source], {"perm": end.order}), {end.source})
        return True
    for axis in range(tracer.rank(out) or 0):
        if axis != end.axis:
            tracer.link((end.source, axis), (out, axis), node)
    source, target = (end.source, end.axis), (out, end.axis)
    tracer.link_positions(source, end.positions, target, np.arange(end.positions.size), free=True)
    gather_follows(tracer, node, end.source, end.axis, end.positions)
    return True


def gather_follows(tracer: Tracer, node: Node, source: str, axis: int, positions: IntArray) -> None:
    """Have a node replaced by a Gather of what remains, in the order that is wanted, when channels have gone."""
    out = node.outputs[0]

    def rewrite(edit: NodeEdit) -> None:
        kept = edit.kept((source, axis))
        place = np.zeros(tracer.size((source, axis)) or 0, dtype=np.int64)
        place[kept] = np.arange(kept.size)
        edit.become("Gather", [source, place[positions[edit.kept((out, axis))]]], {"axis": axis})

    tracer.rewrite(node, rewrite, {source})


def _executed(graph: GraphView, first: Node) -> tuple[list[Exit], set[int]] | None:
    """The chain's ends and inner nodes; None if an end is no Gather of one axis, or lengths are unknown."""
    source = first.inputs[0]
    lengths = _Lengths(graph)
    shape = lengths.of(source)
    if shape is None or math.prod(shape) > _MOST_ELEMENTS or 0 in shape:
        return None
    numbers = {source: np.arange(math.prod(shape), dtype=np.int64).reshape(shape)}
    exits: list[Exit] = []
    inner: set[int] = set()
    pending = [first]
    while pending:
        node = pending.pop()
        move = _MOVES.get(node.op_type)
        if move is None or len(inner) > _MOST_NODES or len(node.outputs) != 1:
            return None
        try:
            moved = move(graph, node, numbers[node.inputs[0]], lengths)
        except (ValueError, IndexError, KeyError, TypeError):
            return None
        out = node.outputs[0]
        numbers[out] = moved
        taken = _taken(numbers[source], moved)
        order = _transposed(numbers[source], moved) if taken is None and len(inner) > 1 else ()
        if taken is not None and not _known(graph, source, out, *taken):
            return None
        if taken is not None or order:
            exits.append(Exit(source, node, order=order) if taken is None else Exit(source, node, *taken))
            continue
        readers = graph.readers[out]
        if not readers or out in graph.outputs or out in graph.captured or any(at != 0 for _, at in readers):
            return None
        inner.add(node.index)
        pending.extend(reader for reader, _ in readers)
    return exits, inner


def _known(graph: GraphView, source: str, result: str, axis: int, positions: IntArray) -> bool:
    """Whether the axis has a length that holds for every input, before and after."""
    before, after = graph.shape(source) or (), graph.shape(result) or ()
    return axis < len(before) and isinstance(before[axis], int) and after[axis : axis + 1] == (positions.size,)


def _taken(source: IntArray, result: IntArray) -> tuple[int, IntArray] | None:
    """The axis and positions by which a result is a Gather from its source."""
    if source.ndim != result.ndim or not result.size:
        return None
    differing = [a for a in range(source.ndim) if source.shape[a] != result.shape[a]]
    if len(differing) > 1:
        return None
    for axis in differing or range(1, source.ndim):
        others = math.prod(source.shape[axis + 1 :])
        positions = np.moveaxis(result, axis, 0).reshape(result.shape[axis], -1)[:, 0] // others % source.shape[axis]
        if np.array_equal(np.take(source, positions, axis=axis), result):
            return axis, positions
    return None


def _transposed(source: IntArray, result: IntArray) -> tuple[int, ...]:
    """The order of the source's axes in a result that is its transpose; empty if it is not."""
    if source.ndim != result.ndim or source.size != result.size:
        return ()
    steps = {math.prod(source.shape[axis + 1 :]): axis for axis in range(source.ndim) if source.shape[axis] > 1}
    single = iter(axis for axis in range(source.ndim) if source.shape[axis] == 1)
    order = []
    for axis, length in enumerate(result.shape):
        step = int(np.take(result, 1, axis=axis).flat[0] - result.flat[0]) if length > 1 else 0
        order.append(steps.get(step, -1) if length > 1 else next(single, -1))
    if sorted(order) != list(range(source.ndim)) or not np.array_equal(source.transpose(order), result):
        return ()
    return tuple(order)


class _Lengths:
    """Shapes as integers, dynamic lengths replaced by small primes, the same one for the same symbol."""

    def __init__(self, graph: GraphView) -> None:
        self._graph = graph
        self._primes: Iterator[int] = iter(_STAND_INS)
        self._known: dict[object, int] = {}

    def of(self, tensor: str) -> tuple[int, ...] | None:
        dims = self._graph.shape(tensor)
        if dims is None:
            return None
        sizes = []
        for axis, size in enumerate(dims):
            if isinstance(size, int):
                sizes.append(size)
                continue
            key = size if size is not None else (tensor, axis)
            if key not in self._known and (prime := next(self._primes, None)) is not None:
                self._known[key] = prime
            if key not in self._known:
                return None
            sizes.append(self._known[key])
        return tuple(sizes)

    def known(self, tensor: str) -> list[int]:
        """A target shape: lengths that are known or have a stand-in, -1 for others (NumPy takes one of them)."""
        dims = self._graph.shape(tensor)
        if dims is None:
            raise ValueError(tensor)
        return [size if isinstance(size, int) else self._known.get(size, -1) for size in dims]


def _ints(graph: GraphView, node: Node, attribute: str, index: int) -> list[int]:
    """Constant integers of an attribute or input.

    Raises:
        ValueError: they are computed at run time.
    """
    if attribute in node.attributes:
        return [int(v) for v in np.atleast_1d(node.attributes[attribute])]
    value = graph.value(node.inputs[index]) if index < len(node.inputs) else None
    if value is None:
        raise ValueError(attribute)
    return [int(v) for v in np.atleast_1d(value)]


def _reshape(graph: GraphView, node: Node, value: IntArray, lengths: _Lengths) -> IntArray:
    try:
        target = _ints(graph, node, "shape", 1)
    except ValueError:
        target = lengths.known(node.outputs[0])
    if not node.attributes.get("allowzero", 0):
        target = [value.shape[i] if t == 0 else t for i, t in enumerate(target)]
    return value.reshape(target)


def _transpose(_graph: GraphView, node: Node, value: IntArray, _lengths: _Lengths) -> IntArray:
    return np.transpose(value, node.attributes.get("perm"))


def _squeeze(graph: GraphView, node: Node, value: IntArray, _lengths: _Lengths) -> IntArray:
    return value.squeeze(tuple(_ints(graph, node, "axes", 1)))


def _gather(graph: GraphView, node: Node, value: IntArray, _lengths: _Lengths) -> IntArray:
    indices = graph.value(node.inputs[1])
    if indices is None:
        raise ValueError("indices")
    return np.take(value, indices.astype(np.int64), axis=int(node.attributes.get("axis", 0)))


def _identity(_graph: GraphView, _node: Node, value: IntArray, _lengths: _Lengths) -> IntArray:
    return value


_MOVES: Mapping[str, Callable[[GraphView, Node, IntArray, _Lengths], IntArray]] = {
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
}
