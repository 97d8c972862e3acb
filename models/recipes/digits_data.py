"""The 8x8 handwritten digits bundled with scikit-learn, split for training, calibration and testing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_SIZE = 500
CALIBRATION_SIZE = 256
MAX_PIXEL = 16.0


@dataclass(frozen=True)
class DigitsSplit:
    """One deterministic split of the 1,797 images.

    Attributes:
        train_images: Training images, ``(1297, 1, 8, 8)``, float32 in [0, 1].
        train_labels: Their classes, int64.
        calibration_images: A class-balanced subset of ``train_images``.
        test_images: Held-out images, never trained on nor calibrated with.
        test_labels: Their classes, int64.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    calibration_images: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_split(seed: int = 0) -> DigitsSplit:
    """Split the digits, stratified by class.

    Calibration samples come from the training part: calibrating on test images would make every
    accuracy measured after pruning look better than it is.

    Args:
        seed: Seed of both the train/test and the calibration draw.

    Returns:
        The same arrays for the same seed.
    """
    digits = load_digits()
    images = (digits.images[:, None] / MAX_PIXEL).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SIZE, stratify=labels, random_state=seed
    )
    calibration_images, _ = train_test_split(
        train_images, train_size=CALIBRATION_SIZE, stratify=train_labels, random_state=seed
    )
    return DigitsSplit(train_images, train_labels, calibration_images, test_images, test_labels)
