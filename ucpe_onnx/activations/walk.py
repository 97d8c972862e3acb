"""A network computed on all samples, from one layer to the next, with weights that may change ahead of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from ucpe_onnx.activations.store import Chunks, Store
from ucpe_onnx.analysis.graph import GraphView, captured_by
from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.bodies import folded_nodes, unfold
from ucpe_onnx.model.offload import tensor_value
from ucpe_onnx.runtime.session import RunOptions, Session, as_session, ort_message

Array = npt.NDArray[Any]

_SEQUENCES_OF_TENSORS = ("SequenceConstruct", "SplitToSequence")
"""Operators that make sequences of what can be kept; they are cheap, and run once more where a sequence is read."""


class Walk:
    """Goes through a graph in its order and keeps just the tensors that nodes ahead still read.

    Parts of the graph between two stops become models of their own and run in onnxruntime, so that no node is computed
    more than once however often one stops.

    Args:
        graph: the model.
        feeds: the samples, an array per input in each.
        store: keeps the tensors.
        options: how onnxruntime runs the parts.
        weights: values of initializers that replace the model's; looked at when a part is computed, so that changes
            count from there on.
        model: what to compute instead of the graph's own model: the same nodes with other initializers.

    Raises:
        ModelError: an input is no tensor, or the model has other nodes.
    """

    def __init__(
        self,
        graph: GraphView,
        feeds: Sequence[Mapping[str, Array]],
        store: Store,
        options: RunOptions,
        *,
        weights: Mapping[str, Array] | None = None,
        model: onnx.ModelProto | None = None,
    ) -> None:
        self._graph, self._store, self._options = graph, store, options
        self._weights = {} if weights is None else weights
        self._unfolding = graph.unfolding if model is None else unfold(model)
        self._model = self._unfolding.model
        if len(self._model.graph.node) != len(graph.nodes):
            raise ModelError("the model calls functions of its own, which must be expanded")
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._next = 0
        self._kept: dict[str, Chunks] = {}
        self._sequences = {node.outputs[0]: node.index for node in graph.nodes if node.op_type in _SEQUENCES_OF_TENSORS}
        self._needed_until = _last_reads(graph, self._sequences)
        self._starts = _starts(graph)
        self._count = len(feeds)
        for name in graph.inputs:
            if not all(isinstance(feed[name], (np.ndarray, np.generic)) for feed in feeds):
                raise ModelError(f"input {name!r} is no tensor but a sequence or map, which is not followed")
            self._kept[name] = [store.hold(np.asarray(feed[name])) for feed in feeds]

    def advance(self, index: int, extra: Iterable[str] = ()) -> None:
        """Compute all nodes before one.

        Args:
            index: of that node in graph order. Of an If, Loop or Scan nothing is computed before all of it is.
            extra: tensors to keep although no node from there on reads them.

        Raises:
            ModelError: a part of the model can't be run by itself.
        """
        index = self._starts.get(index, index)
        if index > self._next:
            self._run(range(self._next, index), frozenset(extra))
            self._next = index
        for name in [name for name in self._kept if self._needed_until.get(name, -1) < index and name not in extra]:
            self._store.drop(self._kept.pop(name))

    def arrays(self, tensor: str) -> Iterator[Array]:
        """A tensor that has been computed and kept, feed by feed."""
        return (self._store.get(stored) for stored in self._kept[tensor])

    def has(self, tensor: str) -> bool:
        """Whether a tensor is at hand."""
        return tensor in self._kept

    def _run(self, part: range, extra: frozenset[str]) -> None:
        again = {
            self._sequences[name]
            for index in part
            for name in reads(self._model.graph.node[index])
            if name in self._sequences
        }
        numbers = [*sorted(again - set(part)), *part]
        nodes = folded_nodes(self._unfolding, [self._model.graph.node[index] for index in numbers])
        made = [name for node in nodes for name in node.output if name and name not in self._sequences]
        wanted = [name for name in made if name in extra or self._needed_until.get(name, -1) >= part.stop]
        if not wanted:
            return
        inputs = [name for name in dict.fromkeys(n for node in nodes for n in reads(node)) if name in self._kept]
        session = self._session(nodes, inputs, wanted)
        found: dict[str, Chunks] = {name: [] for name in wanted}
        for chunk in range(self._count):
            feed = {name: self._store.get(self._kept[name][chunk]) for name in inputs}
            try:
                outputs = session.run(None, feed)
            except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
                raise ModelError(f"a part of the model can't be run by itself: {ort_message(error)}") from error
            for name, value in zip(wanted, outputs, strict=True):
                if not isinstance(value, np.ndarray):
                    raise ModelError(f"tensor {name!r} is no tensor but a sequence or map, which is not followed")
                found[name].append(self._store.put(value))
        self._kept.update(found)

    def _session(self, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> Session:
        try:
            return as_session(self._part(nodes, inputs, outputs), self._options)
        except (KeyError, TypeError, ValueError) as error:  # of onnx: a type of tensor that it does not know from numpy
            raise ModelError(f"a part of the model can't be run by itself: {ort_message(error)}") from error

    def _part(self, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
        model = self._model
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        constants = [self._constant(name) for name in read if name in self._initializers]
        sparse = [t for t in model.graph.sparse_initializer if t.values.name in read]
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            [_declared(name, self._kept[name]) for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            constants,
            sparse_initializer=sparse,
        )
        part = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))
        part.functions.extend(model.functions)
        return part

    def _constant(self, name: str) -> onnx.TensorProto:
        if name in self._weights:
            return numpy_helper.from_array(self._weights[name], name)
        tensor: onnx.TensorProto = self._initializers[name]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return numpy_helper.from_array(np.asarray(tensor_value(tensor)), name)
        return tensor


def _declared(name: str, chunks: Chunks) -> onnx.ValueInfoProto:
    """An input of a part; operators that take sizes want to know how many these are."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(chunks[0].dtype)
    lengths = ({chunk.shape[axis] for chunk in chunks} for axis in range(len(chunks[0].shape)))
    return onnx.helper.make_tensor_value_info(name, kind, [each.pop() if len(each) == 1 else None for each in lengths])


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, its subgraphs included."""
    yield from (name for name in node.input if name)
    yield from captured_by(node)


def _starts(graph: GraphView) -> dict[int, int]:
    """For each node of an If, Loop or Scan, its markers included, the first of them."""
    if not graph.unfolding.bodies:
        return {}
    first: dict[str, int] = {}
    controls = [(node.index, graph.unfolding.outermost(node.proto)) for node in graph.nodes]
    return {index: first.setdefault(control, index) for index, control in controls if control}


def _last_reads(graph: GraphView, sequences: Mapping[str, int]) -> dict[str, int]:
    """For each tensor the last node that reads it; what is a graph output and nothing else is not kept.

    Sequences are not kept but put together again, so that what they hold is needed as long as they are.
    """
    last = {name: node.index for node in graph.nodes for name in reads(node.proto)}
    for name, maker in sequences.items():
        for held in filter(None, graph.nodes[maker].inputs):
            last[held] = max(last[held], last.get(name, -1))
    return last
