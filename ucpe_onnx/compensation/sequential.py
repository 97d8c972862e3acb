"""Refit a pruned network layer by layer: to what the original makes, on what the pruned network reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer, find_layers, why_no_layer
from ucpe_onnx.activations.moments import Moments
from ucpe_onnx.activations.store import Store
from ucpe_onnx.activations.walk import Walk, reads
from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.compensation.biases import Bias, bias_of, following, shortcut_of
from ucpe_onnx.compensation.samples import SampleNumbers, takes_nan
from ucpe_onnx.compensation.solve import refit
from ucpe_onnx.masked import masked_model
from ucpe_onnx.masks import Mask
from ucpe_onnx.runtime.session import RunOptions

Array = npt.NDArray[Any]

MOST_FEATURES = 5_000
"""A layer that reads more is left as it is: its moments would take more memory than there may be."""

_HELD_OUT = 5
"""Every 5th sample chooses the ridge and is not fitted to."""

_MOST_WORK = 2e10
"""Floating-point operations for the moments of a layer, beyond which output positions are sampled ..."""

_ROWS_PER_FEATURE = 20
"""... but not to fewer rows than this for each feature."""

_MOST_BYTES = 2**26
"""Of rows at once."""

_FLAT = 1e-3
"""A batch normalisation multiplies by less than this share of its mean slope: such a channel says nothing."""


@dataclass(frozen=True)
class LayerFit:
    """What refitting did to one layer.

    Attributes:
        name: of the layer.
        ridge: strength of the ridge; None if the weights stayed.
        before: error of its outputs before, over their variance, on samples that were held out, if there were any.
        after: error after.
    """

    name: str
    ridge: float | None
    before: float
    after: float


@dataclass(frozen=True)
class Compensation:
    """New values of a model's initializers.

    Attributes:
        weights: by initializer, in its shape and type; those that stay as they are are not among them.
        layers: what was done, in graph order.
        left: layers that could not be refitted, and why.
    """

    weights: Mapping[str, Array] = field(default_factory=dict)
    layers: tuple[LayerFit, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


class _Unfit(Exception):
    """Why a layer stays as it is."""


def compensate(
    trace: Trace,
    masks: Mapping[str, Mask],
    feeds: Sequence[Mapping[str, Array]],
    options: RunOptions,
    *,
    real: Sequence[int] | None = None,
    source: str = "the data",
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Compensation:
    """Refit all layers that lose a channel, or that read what such a layer has made.

    The target of a layer is its output in the original network; if it is added to a shortcut, it makes up for what the
    shortcut lacks as well, so that the error of the block's output is what is minimised.

    Args:
        trace: the analysed model.
        masks: what each consumer keeps.
        feeds: calibration samples, an array per input in each; the first axis is samples.
        options: how onnxruntime runs the network.
        real: how many samples of each feed don't just pad it; None if all don't.
        source: where the samples come from, for messages.
        seed: of the output positions that are looked at where there are too many.
        progress: told the share that is done.

    Raises:
        DataError: an input is NaN, or a layer's output in the original network is not finite.
        ModelError: a part of the model can't be run by itself.
    """
    dropping = {name: mask for name, mask in masks.items() if not mask.all()}
    if not dropping or not feeds:
        return Compensation()
    graph, samples = trace.graph, SampleNumbers(feeds, real, source)
    if not takes_nan(graph.model):
        samples.check_inputs(feeds)
    with Store() as store:
        weights: dict[str, Array] = {}
        original = Walk(graph, feeds, store, options)
        # Also layers that are not refitted must be masked for what is behind them.
        pruned = Walk(
            graph, feeds, store, options, weights=weights, model=masked_model(graph.unfolding.source, dropping)
        )
        job = _Sequence(graph, dropping, weights, original, pruned, samples, np.random.default_rng(seed))
        # What overflows is not finite afterwards, and looked for there.
        with np.errstate(over="ignore", invalid="ignore"):
            return job.run(progress or (lambda share: None))


@dataclass
class _Sequence:
    """What all layers of one network share, and what has been found for those that are done."""

    graph: GraphView
    masks: Mapping[str, Mask]
    weights: dict[str, Array]
    original: Walk
    pruned: Walk
    samples: SampleNumbers
    random: np.random.Generator
    left: dict[str, str] = field(default_factory=dict)
    fits: list[LayerFit] = field(default_factory=list)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The layers that can be refitted, in graph order."""
        return find_layers(self.graph)

    def run(self, progress: Callable[[float], None]) -> Compensation:
        """Go through the layers."""
        for node in self.graph.nodes:
            if node.name in self.masks and node.name not in self.layers:
                self.left[node.name] = why_no_layer(self.graph, node)
        todo = self._affected()
        for done, (layer, shortcut) in enumerate(todo):
            progress(done / len(todo))
            try:
                self._refit(layer, shortcut)
            except _Unfit as reason:
                self.left[layer.name] = str(reason)
        return Compensation(dict(self.weights), tuple(self.fits), dict(self.left))

    def _affected(self) -> list[tuple[Layer, str | None]]:
        """The layers that make other outputs than they did, or are added to such, with their shortcuts."""
        other: set[str] = set()
        for node in self.graph.nodes:
            if node.name in self.masks or not other.isdisjoint(reads(node.proto)):
                other.update(name for name in node.outputs if name)
        found = []
        for layer in self.layers.values():
            shortcut = shortcut_of(self.graph, layer)
            shortcut = shortcut if shortcut in other else None
            if layer.out in other or shortcut:
                found.append((layer, shortcut))
        return found

    def _refit(self, layer: Layer, shortcut: str | None) -> None:
        if layer.features > MOST_FEATURES:
            raise _Unfit(f"it reads {layer.features} features, more than {MOST_FEATURES}")
        offsets, bias = self._offsets(layer), bias_of(self.graph, layer)
        behind = [shortcut] if shortcut else []
        self.pruned.advance(layer.node.index, [layer.data, *behind])
        self.original.advance(layer.node.index + 1, [layer.out, *behind])
        mask = self.masks.get(layer.name)
        keep = None if mask is None or layer.groups > 1 else np.flatnonzero(mask)
        columns = slice(None) if keep is None else (keep[:, None] * layer.taps + np.arange(layer.taps)).reshape(-1)
        kept = None if mask is None else self._columns(layer, mask)
        fitted, held_out = self._moments(layer, keep, None if kept is None or keep is not None else kept, shortcut)

        value = self._weight(layer.weight)
        matrices = layer.matrices(value).astype(np.float64)
        matrices = matrices if kept is None else matrices * kept
        last = offsets.reshape(layer.groups, -1, 1)
        found = refit(fitted, held_out, np.concatenate([matrices[:, :, columns], last], axis=2), bias=bias is not None)
        if not math.isfinite(found.before):
            raise _Unfit("what it reads or makes is too large to add up")
        if found.ridge is not None:
            matrices[:, :, columns] = found.matrices[:, :, :-1]
            stored = layer.stored(matrices, value)
            if not (np.isfinite(stored).all() and np.isfinite(found.matrices.astype(np.float32)).all()):
                raise _Unfit("its new weights are too large")
            self.weights[layer.weight] = stored
            if bias is not None:
                self._set_bias(bias, found.matrices[:, :, -1].reshape(-1))
        self.fits.append(LayerFit(layer.name, found.ridge, found.before, found.after))

    def _offsets(self, layer: Layer) -> Array:
        """The bias that is an input of the layer, zeros without one."""
        if not layer.bias:
            return np.zeros(layer.made)
        value = self.weights.get(layer.bias, self.graph.value(layer.bias))
        if value is None:
            raise _Unfit("its bias is computed at run time")
        if value.size > 1 and value.shape[-1] != value.size:
            raise _Unfit("its bias differs between rows")
        return np.broadcast_to(value.reshape(-1).astype(np.float64), layer.made)

    def _columns(self, layer: Layer, mask: Mask) -> Array:
        """1 for a feature that is kept, 0 for one that is not: (groups, 1, features)."""
        return np.repeat(mask.astype(np.float32), layer.taps).reshape(layer.groups, 1, layer.features)

    def _weight(self, name: str) -> Array:
        return self.weights[name] if name in self.weights else np.asarray(self.graph.value(name))

    def _set_bias(self, bias: Bias, fitted: Array) -> None:
        value = self._weight(bias.tensor)
        total = fitted if bias.inside else value.reshape(-1) + bias.sign * fitted
        self.weights[bias.tensor] = np.ascontiguousarray(total.reshape(value.shape), dtype=value.dtype)

    def _moments(
        self, layer: Layer, keep: Array | None, scale: Array | None, shortcut: str | None
    ) -> tuple[Moments, Moments]:
        """Moments of the samples to fit to, and of those held out."""
        features = layer.features if keep is None else keep.size * layer.taps
        width = layer.made // layer.groups
        parts = tuple(Moments.empty(layer.groups, features, width) for _ in range(2))
        for data, target, numbers in self._batches(layer, shortcut):
            count = layer.positions(data.shape)
            positions = self._positions(layer, count, features)
            for start in range(0, len(data), step := self._step(layer, count, positions, features)):
                part = slice(start, start + step)
                rows = layer.rows(data[part], positions, keep)
                rows = rows if scale is None else rows * scale[:, None]
                wanted = layer.outputs(target[part], positions)
                held = numbers[part] % _HELD_OUT == _HELD_OUT - 1
                for moments, chosen in zip(parts, (~held, held), strict=True):
                    moments.add(
                        rows[:, chosen].reshape(layer.groups, -1, features),
                        wanted[:, chosen].reshape(layer.groups, -1, width),
                    )
        if not parts[0].rows:  # a single sample may be one of those to hold out
            parts = parts[::-1]
        if not parts[0].rows:
            raise _Unfit("it makes nothing on the samples")
        return parts[0], parts[1]

    def _batches(self, layer: Layer, shortcut: str | None) -> Iterator[tuple[Array, Array, Array]]:
        """What the layer reads in the pruned network, what it ought to make of it, and of which samples, by feeds."""
        outputs = self.original.arrays(layer.out)
        lacks = self._lacking(layer, shortcut) if shortcut else None
        for feed, (data, out) in enumerate(zip(self.pruned.arrays(layer.data), outputs, strict=True)):
            lacking = None if lacks is None else next(lacks)
            read = data[None] if data.ndim == 1 else data
            made = out.reshape(len(read), -1) if data.ndim == 1 else out
            if not made.size:
                continue
            if len(read) != len(made) or layer.positions(read.shape) * len(read) * layer.made != made.size:
                raise _Unfit("in the pruned network it reads a tensor of another shape")
            numbers = self.samples.numbers(feed, len(made))
            read, made = read[: len(numbers)], made[: len(numbers)]
            self.samples.check(f"tensor {layer.out!r}", made, numbers)
            if not np.isfinite(read).all():
                raise _Unfit("what it reads in the pruned network is NaN or infinite")
            if lacking is not None and lacking.shape == out.shape:
                made = made + lacking[: len(numbers)]
            yield read, made, numbers

    def _lacking(self, layer: Layer, shortcut: str) -> Iterator[Array]:
        """What a layer must make besides, so that the sum with the shortcut is what it was."""
        slope = following(self.graph, layer).slope
        flat = np.abs(slope) <= _FLAT * np.abs(slope).mean()
        inverse = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, slope)).astype(np.float32)
        for whole, pruned in zip(self.original.arrays(shortcut), self.pruned.arrays(shortcut), strict=True):
            shaped = inverse.reshape(-1, *[1] * (whole.ndim - 2)) if layer.window else inverse
            yield (whole - pruned) * shaped if whole.shape == pruned.shape else np.zeros(0)

    def _positions(self, layer: Layer, count: int, features: int) -> Array | None:
        """Some of the output positions, where all would take too long or too much memory; None for all."""
        most_work = max(_MOST_WORK, 2.0 * layer.groups * _ROWS_PER_FEATURE * features**3)
        rows = int(most_work / (2.0 * layer.groups * features**2) / max(self.samples.count, 1))
        affordable = max(1, min(rows, _MOST_BYTES // (4 * features * layer.groups)))
        return None if affordable >= count else np.sort(self.random.permutation(count)[:affordable])

    @staticmethod
    def _step(layer: Layer, count: int, positions: Array | None, features: int) -> int:
        """SampleNumbers whose rows fit in memory at once."""
        count = count if positions is None else positions.size
        return max(1, _MOST_BYTES // (4 * max(count, 1) * features * layer.groups))
