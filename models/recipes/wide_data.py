"""The two wide networks as files, and the handwritten digits at twice their resolution; nothing here needs torch.

The networks are too large for the repository and lie in the user's cache directory. Of the samples nothing new is
stored: they come from ``models/digits_calib.npz`` and ``models/digits_test.npz``, and those that the networks were
trained on from the same split (``digits_data.py``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs

NETWORKS = ("wide_resnet", "densenet")

FACTOR = 2
"""8x8 becomes 16x16, so that two halvings leave 4x4."""

INPUT = "input"

Array = npt.NDArray[np.float32]

_FOLDER = Path(__file__).parents[1]


def cached(network: str) -> Path:
    """Where a trained network lies, or would."""
    return Path(platformdirs.user_cache_dir("ucpe-onnx")) / "models" / f"{network}_digits.onnx"


def wide_model(network: str) -> Path:
    """The file of a trained network, which is trained now if it hasn't been before.

    Args:
        network: one of ``NETWORKS``.

    Raises:
        RuntimeError: it can't be trained; says what is missing.
    """
    path = cached(network)
    if not path.exists():
        # In a process of its own: torch brings threads and memory that would disturb measurements.
        command = [sys.executable, "-m", "models.recipes.wide_digits", network]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_FOLDER.parent)
        if done.returncode or not path.exists():
            raise RuntimeError(f"{network} was not trained: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return path


def upsample(images: Array) -> Array:
    """Bilinear interpolation to ``FACTOR`` times the height and the width, pixels as squares.

    Args:
        images: shape (N, 1, H, W).

    Returns:
        Shape (N, 1, FACTOR * H, FACTOR * W), float32.
    """
    rows, columns = (_weights(size) for size in images.shape[2:])
    return np.ascontiguousarray(rows @ images @ columns.T, dtype=np.float32)


def calibration_samples() -> dict[str, Array]:
    """256 training images, as ``{"input": (256, 1, 16, 16)}``."""
    with np.load(_FOLDER / "digits_calib.npz") as stored:
        return {INPUT: upsample(stored[INPUT])}


def held_out_samples() -> dict[str, npt.NDArray[np.generic]]:
    """500 images that nothing is trained or calibrated on, as ``{"input": (500, 1, 16, 16), "labels": (500,)}``."""
    with np.load(_FOLDER / "digits_test.npz") as stored:
        return {INPUT: upsample(stored[INPUT]), "labels": stored["labels"]}


def _weights(size: int) -> Array:
    """What each new pixel takes of the old ones, shape (FACTOR * size, size); the border goes on."""
    centres = (np.arange(size * FACTOR) + 0.5) / FACTOR - 0.5
    distances = np.abs(np.clip(centres, 0, size - 1)[:, None] - np.arange(size))
    return np.maximum(0, 1 - distances).astype(np.float32)
