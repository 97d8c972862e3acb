"""One pass over the user's samples through onnxruntime that gathers what consumers read, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.activations.grams import Gram, choose_grams
from ucpe_onnx.activations.layers import Layer, find_layers
from ucpe_onnx.activations.statistics import ConsumerStatistics, Statistics
from ucpe_onnx.analysis.layer_ops import LAYER_OPS, REAL
from ucpe_onnx.analysis.slots import AxisKey
from ucpe_onnx.analysis.trace import Consumer, Trace
from ucpe_onnx.errors import DataError
from ucpe_onnx.runtime.session import RunOptions, Session, make_session, run
from ucpe_onnx.samples.dataset import Dataset

Array = npt.NDArray[Any]

MOST_RANKED = 256
"""Samples whose maps' ranks are computed: a singular value decomposition for each channel."""

_BATCH_BYTES = 2**27
"""Of the tensors that one run of the model hands out."""

_MOST_BATCH = 64

_PIECE = 2**22
"""Elements that are taken to double precision at once."""

_NUMERIC = frozenset(
    getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "UINT16")
)
"""Types of tensors that numpy can hold and that channels come in."""


def collect(
    model: onnx.ModelProto,
    trace: Trace,
    dataset: Dataset,
    options: RunOptions,
    *,
    ranks: bool = False,
    progress: Callable[[float], None] | None = None,
    seed: int = 0,
    names: Collection[str] | None = None,
) -> Statistics:
    """Gather statistics of what consumers read, over all samples and positions.

    Memory does not grow with the number of samples. Padding of a last batch does not count, as far as samples are on
    the first axis of a tensor (alone, or slower-running than what is merged with them) or on the second of a sequence.
    Where the gram of a consumer would take more than about 5e10 floating point operations, it is that of positions
    drawn at random, evenly spread.

    Args:
        model: the model that was traced; not changed.
        trace: its analysis.
        dataset: the samples.
        options: how onnxruntime runs the model.
        ranks: compute the rank of each channel's feature maps too, of the first 256 samples.
        progress: told the share of the samples that is done.
        seed: of the positions that are drawn.
        names: the consumers to look at; all that have prunable channels by default.

    Returns:
        Statistics of those consumers whose tensor holds numbers. Grams tell the taps of a window apart up to 2048
        features and 512 MiB for all together, the smallest first.

    Raises:
        DataError: there are no samples, or a tensor is NaN or infinite on one.
        ModelError: onnxruntime can't run the model on the samples.
    """
    if dataset.samples < 1:
        raise DataError(f"{dataset.source}: holds no samples; give at least one")
    consumers = [c for name, c in trace.consumers.items() if (c.prunable.any() if names is None else name in names)]
    collector = _Collector(trace, [c for c in consumers if _is_numeric(trace, c)], ranks, dataset.samples, seed)
    if not collector.tensors:
        return Statistics({}, dataset.samples)
    watched = _watching(model, collector.tensors - set(trace.graph.inputs))
    outputs = [output.name for output in watched.graph.output]
    session = make_session(watched, options)
    done = 0
    for feed, real in dataset.counted_batches(_batch_size(session, dataset)):
        batch = _Batch(dataset.source, done, dataset.batch or real, real)
        collector.add(batch, feed | dict(zip(outputs, run(session, feed), strict=True)))
        done += real
        if progress is not None:
            progress(done / dataset.samples)
    return Statistics(collector.result(), dataset.samples)


def _is_numeric(trace: Trace, consumer: Consumer) -> bool:
    tensor = consumer.use.tensor_axis[0]
    if tensor in trace.graph.unfolding.inside:  # a body hands out nothing else than what it says
        return False
    return isinstance(tensor, str) and trace.graph.types.get(tensor, onnx.TensorProto.FLOAT) in _NUMERIC


def _watching(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with tensors as further outputs, whose types onnxruntime infers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(set(tensors) - there))
    return copy


def _batch_size(session: Session, dataset: Dataset) -> int:
    """Samples in a run, as far as that is open."""
    if dataset.batch or dataset.whole:
        return 1
    outputs = run(session, next(dataset.batches(1)))
    size = sum(output.nbytes for output in outputs if isinstance(output, np.ndarray))
    return int(np.clip(_BATCH_BYTES // max(size, 1), 1, _MOST_BATCH))


@dataclass(frozen=True)
class _Batch:
    """The samples of one run.

    Attributes:
        source: where they come from.
        start: number of the first.
        fed: how many the model was given.
        real: how many of these are no padding.
    """

    source: str
    start: int
    fed: int
    real: int

    def checked(self, tensor: str, value: Array, axis: int) -> Array:
        """A tensor without what the model made of padding.

        Args:
            tensor: its name.
            value: its value.
            axis: of its channels.

        Raises:
            DataError: it is not finite.
        """
        samples = self._axis_of_samples(value, axis)
        each = 0 if samples is None else value.shape[samples] // self.fed
        if samples is not None and self.real < self.fed:
            value = value[(slice(None),) * samples + (slice(each * self.real),)]
        if value.dtype.kind == "f" and not (finite := np.isfinite(value)).all():
            sample = self.start
            if samples is not None:
                others = tuple(other for other in range(value.ndim) if other != samples)
                sample += int(np.argmin(finite.all(axis=others))) // each
            raise DataError(
                f"tensor {tensor!r} is NaN or infinite on sample {sample} of {self.source} (counted from 0);"
                " leave that sample out, or scale the data as for training"
            )
        return value

    def _axis_of_samples(self, value: Array, channels: int) -> int | None:
        """The first axis, or the second of a sequence if that alone is as long as the batch; None if it is unknown."""
        if value.ndim == 3 and channels == 2 and value.shape[1] == self.fed != value.shape[0]:
            return 1
        return 0 if channels and value.shape[0] and value.shape[0] % self.fed == 0 else None


class _Collector:
    """Adds up batches, once for consumers that read the same."""

    def __init__(self, trace: Trace, consumers: list[Consumer], ranks: bool, samples: int, seed: int) -> None:
        self._graph, self._consumers, self._samples = trace.graph, consumers, samples
        self._random = np.random.default_rng(seed)
        self._channels = {c.use.tensor_axis: _Channels(c.channels, ranks) for c in consumers}
        found = find_layers(trace.graph)
        self._gram_of = choose_grams(found[c.name] for c in consumers if c.name in found and _fits(found[c.name], c))
        self._grams: dict[AxisKey, dict[int, Gram]] = {key: {} for key in self._channels}
        for consumer in consumers:
            if (gram := self._gram_of.get(consumer.name)) is not None:
                self._grams[consumer.use.tensor_axis][id(gram)] = gram
        self.tensors = {str(tensor) for tensor, _ in self._channels}

    def add(self, batch: _Batch, values: Mapping[str, Array]) -> None:
        """Add what the model made of a batch."""
        for key, channels in self._channels.items():
            name, axis = str(key[0]), key[1]
            value = batch.checked(name, values[name], axis)
            channels.add(value, axis)
            for gram in self._grams[key].values():
                gram.add(value, self._samples / batch.real, self._random)

    def result(self) -> dict[str, ConsumerStatistics]:
        """The statistics by consumer; nothing can be added any more."""
        grams = {number: gram.finish() for found in self._grams.values() for number, gram in found.items()}
        statistics = {}
        for consumer in self._consumers:
            channels = self._channels[consumer.use.tensor_axis]
            coding = self._coding(consumer)
            if coding is None:
                continue
            (scale, zero), (mean, energy) = coding, channels.means()
            if zero or scale != 1.0:
                mean, energy = scale * (mean - zero), scale**2 * (energy - 2.0 * zero * mean + zero**2)
            gram = self._gram_of.get(consumer.name)
            moments, feature_mean = (None, None) if gram is None else grams[id(gram)]
            statistics[consumer.name] = ConsumerStatistics(
                self._samples, channels.values, mean, energy, moments, feature_mean, channels.ranks()
            )
        return statistics

    def _coding(self, consumer: Consumer) -> tuple[float, float] | None:
        """Step and zero of the integers that a consumer reads; (1, 0) of real numbers, None if it is not known."""
        op = LAYER_OPS.get(consumer.use.node.op_type)
        coding = REAL if op is None else op.data_coding
        scale, zero = self._number(consumer, coding.scale, 1.0), self._number(consumer, coding.zero_point, 0.0)
        return None if scale is None or zero is None else (scale, zero)

    def _number(self, consumer: Consumer, at: int | None, otherwise: float) -> float | None:
        """The only element of an input; another number where it is left out, None if it is not known."""
        inputs = consumer.use.node.inputs
        if at is None or at >= len(inputs) or not inputs[at]:
            return otherwise
        value = self._graph.value(inputs[at])
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


class _Channels:
    """Sums over all values of each channel of a tensor."""

    def __init__(self, channels: int, ranks: bool) -> None:
        self.values = 0
        self._sums = np.zeros((2, channels))
        self._ranks, self._ranked = np.zeros(channels), 0
        self._left = MOST_RANKED if ranks else 0

    def add(self, value: Array, axis: int) -> None:
        """Add a tensor with its channels on an axis."""
        if self._left and value.ndim == 4 and axis == 1 and value.dtype.kind == "f":
            self._rank(value[: self._left])
        moved = np.moveaxis(value, axis, 0)
        moved = moved.reshape(len(moved), -1) if moved.ndim < 3 else moved
        step = max(1, _PIECE * moved.shape[1] // max(moved.size, 1))
        for start in range(0, moved.shape[1], step):
            piece = moved[:, start : start + step].astype(np.float64).reshape(len(moved), -1)
            self._sums += piece.sum(axis=1), np.einsum("ij,ij->i", piece, piece)
            self.values += piece.shape[1]

    def _rank(self, maps: Array) -> None:
        step = max(1, _PIECE * len(maps) // max(maps.size, 1))
        for start in range(0, len(maps), step):
            piece = maps[start : start + step]
            piece = piece.astype(np.float32) if piece.dtype == np.float16 else piece
            self._ranks += np.linalg.matrix_rank(piece).sum(axis=0)
        self._ranked += len(maps)
        self._left -= len(maps)

    def means(self) -> Array:
        """Mean and mean square of each channel, shape (2, channels)."""
        return np.asarray(self._sums / max(self.values, 1))

    def ranks(self) -> Array | None:
        """Mean rank of each channel's maps; None if there were none."""
        return self._ranks / self._ranked if self._ranked else None


def _fits(layer: Layer, consumer: Consumer) -> bool:
    """Whether the layer reads what the trace says that the consumer reads."""
    return layer.data == consumer.use.tensor_axis[0] and layer.channels == consumer.channels
