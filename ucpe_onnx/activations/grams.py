"""Second moments of the features that layers read, added up batch by batch, for as many as memory allows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ucpe_onnx.activations.layers import Layer

Array = npt.NDArray[Any]

MOST_FEATURES = 2048
"""Features of a group up to which all of a window's taps are told apart; beyond, channels alone are."""

MOST_GRAM_BYTES = 2**29
"""Of all grams that tell taps apart."""

MOST_CHANNELS = 4096
"""Channels of a group up to which there is a gram at all."""

MOST_MIXING_BYTES = 2**30
"""Of all grams that tell channels apart and no taps."""

_MOST_WORK = 2e10
"""Floating-point operations for one gram, beyond which positions are sampled ..."""

_ROWS_PER_FEATURE = 2
"""... but not to fewer rows than this for each feature."""

_ROW_BYTES = 2**26
"""Of rows of features at once."""


class Gram:
    """Sums over rows of features f: of f - s and (f - s) (f - s)', with s the mean of the first rows.

    What is constant, or nearly so, then loses nothing to the rounding of products in single precision.

    Args:
        layer: whose features these are; other layers may share them.
        taps: tell the taps of its window apart.
    """

    def __init__(self, layer: Layer, taps: bool) -> None:
        self.layer, self._window = layer, taps and bool(layer.window)
        self._width = layer.features if self._window else layer.channels // layer.groups
        self._products = np.zeros((layer.groups, self._width, self._width))
        self._sums = np.zeros((layer.groups, self._width))
        self._rows = 0
        self._shift: Array | None = None
        self._share: float | None = None

    def add(self, value: Array, batches: float, random: np.random.Generator) -> None:
        """Add what the layer reads in a batch.

        Args:
            value: the tensor.
            batches: about how many such batches there are.
            random: draws positions where there are too many.
        """
        value = value[None] if value.ndim == 1 else value
        if not value.size:
            return
        groups, count = self.layer.groups, self._count(value)
        if self._share is None:
            work = max(_MOST_WORK, 2.0 * groups * _ROWS_PER_FEATURE * self._width**3)
            self._share = work / (2.0 * groups * self._width**2 * max(len(value) * count * batches, 1.0))
        positions = None if self._share >= 1.0 else _spread(count, max(1, round(self._share * count)), random)
        for part, some in _pieces(len(value), count, positions, 4 * groups * self._width):
            rows = self._features(value[part], some).reshape(groups, -1, self._width)
            if self._shift is None:
                self._shift = rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            rows = rows - self._shift
            # Products in single precision, sums over pieces in double: pieces are small enough for that.
            self._products += np.matmul(rows.swapaxes(1, 2), rows)
            self._sums += rows.sum(axis=1, dtype=np.float64)
            self._rows += rows.shape[1]

    def _count(self, value: Array) -> int:
        """Positions of each sample that rows come from."""
        mixing = self.layer.window and not self._window
        return math.prod(value.shape[2:]) if mixing else self.layer.positions(value.shape)

    def _features(self, value: Array, positions: Array | None) -> Array:
        """Rows of features, shape (groups, N, positions, features)."""
        if self._window or not self.layer.window:
            return self.layer.rows(value, positions)
        flat = value.reshape(len(value), self.layer.groups, self._width, -1)
        return np.transpose(flat if positions is None else flat[..., positions], (1, 0, 3, 2))

    def finish(self) -> tuple[Array, Array]:
        """Means of f f', shape (groups, F, F), and of f, shape (groups, F); nothing can be added any more."""
        shift = np.zeros_like(self._sums) if self._shift is None else self._shift[:, 0].astype(np.float64)
        rows = max(self._rows, 1)
        mean = shift + self._sums / rows
        self._products += self._products.swapaxes(1, 2)  # rounding may have made the halves differ
        self._products /= 2 * rows
        # E[f f'] = E[(f - s)(f - s)'] - (E[f] - s)(E[f] - s)' + E[f] E[f]'
        self._products -= (mean - shift)[:, :, None] * (mean - shift)[:, None, :]
        self._products += mean[:, :, None] * mean[:, None, :]
        return self._products, mean


def choose_grams(layers: Iterable[Layer]) -> dict[str, Gram]:
    """By layer the gram that there is memory for; layers that read the same share one."""
    grams: dict[Hashable, Gram | None] = {}
    room = {True: MOST_GRAM_BYTES, False: MOST_MIXING_BYTES}

    def gram(layer: Layer, taps: bool) -> Gram | None:
        window = tuple(sorted(layer.window.items())) if taps else ()
        key = (layer.data, layer.groups, window, taps)
        if key not in grams:
            width = layer.features if taps else layer.channels // layer.groups
            size = 8 * layer.groups * width**2
            fits = width <= (MOST_FEATURES if taps else MOST_CHANNELS) and size <= room[taps]
            grams[key] = Gram(layer, taps) if fits else None
            room[taps] -= size if fits else 0
        return grams[key]

    found = {}
    for layer in sorted(layers, key=lambda layer: layer.groups * layer.features**2):
        chosen = gram(layer, True) or gram(layer, False)
        if chosen is not None:
            found[layer.name] = chosen
    return found


def _spread(count: int, wanted: int, random: np.random.Generator) -> Array:
    """Some of ``count`` positions, one drawn from each of equally long stretches."""
    return np.asarray((np.arange(wanted) + random.random(wanted)) * count / wanted, dtype=np.int64)


def _pieces(samples: int, count: int, positions: Array | None, row_bytes: int) -> Iterator[tuple[slice, Array | None]]:
    """Samples and positions whose rows fit in memory at once."""
    each = count if positions is None else positions.size
    most = max(1, _ROW_BYTES // row_bytes)
    if each <= most:
        step = most // max(each, 1)
        yield from ((slice(start, start + step), positions) for start in range(0, samples, step))
        return
    positions = np.arange(count) if positions is None else positions
    for sample in range(samples):
        for start in range(0, each, most):
            yield slice(sample, sample + 1), positions[start : start + most]
