"""How far a network's outputs are from another's, on the user's samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx.runtime.session import RunOptions, as_session, run
from ucpe_onnx.samples.dataset import Dataset

Array = npt.NDArray[Any]

_MOST_SAMPLES, _MOST_ELEMENTS = 32, 2**20
"""In a batch, of all inputs together: what a network makes of large images on the way takes far more memory."""


def output_errors(
    original: onnx.ModelProto, others: dict[str, onnx.ModelProto], dataset: Dataset, options: RunOptions
) -> dict[str, float]:
    """How far outputs are from those of the original.

    Of an output of floats, the squared distance over the variance of the original's: 0 is equal, 1 as bad as always
    answering the mean. Of an output of other numbers, the share that differs. The mean over all outputs; what is not
    finite in the original's is left out.

    Args:
        original: what the others are compared with.
        others: models with the same inputs and outputs, by name.
        dataset: the samples.
        options: how onnxruntime runs the models.

    Returns:
        By name; infinite for a model whose outputs are not finite where the original's are, NaN if there is nothing to
        compare.

    Raises:
        ModelError: a model can't be run.
    """
    reference = as_session(original, options)
    sessions = {name: as_session(model, options) for name, model in others.items()}
    wholes = [_Whole() for _ in reference.get_outputs()]
    apart = {name: np.zeros(len(wholes)) for name in others}
    for feed, real in dataset.counted_batches(_batch(dataset)):
        expected = [_numbers(value, real, dataset.batch or real) for value in run(reference, feed)]
        for whole, value in zip(wholes, expected, strict=True):
            whole.add(value)
        for name, session in sessions.items():
            found = (_numbers(value, real, dataset.batch or real) for value in run(session, feed))
            apart[name] += [_apart(value, wanted) for value, wanted in zip(found, expected, strict=True)]
    known = np.array([whole.count > 0 for whole in wholes], dtype=bool)
    if not known.any():
        return dict.fromkeys(others, math.nan)
    scale = np.array([whole.scale for whole in wholes])[known]
    errors = {name: float(np.mean(values[known] / scale)) for name, values in apart.items()}
    return {name: value if math.isfinite(value) else math.inf for name, value in errors.items()}


def _batch(dataset: Dataset) -> int:
    """Samples in a batch."""
    elements = sum(value.size for value in dataset.parts[0].values() if isinstance(value, np.ndarray))
    return int(np.clip(_MOST_ELEMENTS * dataset.counts[0] // max(elements, 1), 1, _MOST_SAMPLES))


@dataclass
class _Whole:
    """Sums over all that the original makes of one output."""

    floats: bool = True
    count: int = 0
    total: float = 0.0
    square: float = 0.0

    def add(self, value: Array | None) -> None:
        if value is None:
            return
        finite = value[np.isfinite(value)].astype(np.float64) if value.dtype.kind == "f" else value.reshape(-1)
        self.floats = value.dtype.kind == "f"
        self.count += finite.size
        if self.floats:
            self.total += float(finite.sum())
            self.square += float(np.square(finite).sum())

    @property
    def scale(self) -> float:
        """What distances are divided by."""
        if not self.floats:
            return float(self.count)
        return max(self.square - self.total**2 / max(self.count, 1), 1e-12 * self.square + 1e-30)


def _apart(value: Array | None, wanted: Array | None) -> float:
    """Distance of an output from the original's on one batch."""
    if wanted is None or not wanted.size:
        return 0.0
    same = value is not None and value.shape == wanted.shape
    if wanted.dtype.kind != "f":
        return float(np.count_nonzero(value != wanted)) if same else float(wanted.size)
    finite = np.isfinite(wanted)
    exact = wanted[finite].astype(np.float64)
    if not exact.size:
        return 0.0
    if not same:  # as many boxes as were found, say: no better than the mean
        return float(np.square(exact - exact.mean()).sum())
    assert value is not None
    return float(np.square(value[finite] - exact).sum())


def _numbers(value: object, real: int, fed: int) -> Array | None:
    """An output without what comes from padding; None if it holds no numbers."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return None
    return value[:real] if value.ndim and len(value) == fed else value
