"""The networks that ``benchmarks.accuracy`` prunes, with their calibration and test samples."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from models.recipes.wide_data import calibration_samples, held_out_samples, wide_model
from ucpe_onnx.analysis.counts import ModelStats, model_stats
from ucpe_onnx.runtime.accuracy import predicted_classes, top1_accuracy
from ucpe_onnx.runtime.session import RunOptions, as_session
from ucpe_onnx.samples.dataset import Dataset, load_data
from ucpe_onnx.samples.inputs import input_specs

Array = npt.NDArray[Any]

LABELS = "labels"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

MODELS = Path(__file__).parents[1] / "models"
DATA_FOLDER = Path(__file__).parents[2] / "shared" / "data"
"""Where files of data are looked for by default."""


@dataclass(frozen=True)
class Images:
    """Stored images of one kind.

    Attributes:
        calibration: file of those that may be calibrated on.
        test: file of those that accuracy is measured on, and nothing else.
        samples: how many are calibrated on by default.
    """

    calibration: str
    test: str
    samples: int


CIFAR = Images("cifar10_train_2000.npz", "cifar10_test_2000.npz", 1024)
IMAGENET = Images("imagenet_calib_300.npz", "imagenet_test_600.npz", 300)

STORED: Mapping[str, tuple[str, Images]] = {
    "resnet20": ("resnet20_cifar10.onnx", CIFAR),
    "resnet56": ("resnet56_cifar10.onnx", CIFAR),
    "mobilenetv2": ("mobilenetv2_imagenet.onnx", IMAGENET),
}
"""Networks that need the folder of data: file in its folder ``models``, and images."""

SHIPPED = ("digits", "wide_resnet", "densenet")
"""Networks that come with the repository, or are trained on what comes with it."""

NEEDED = f"""\
{", ".join(STORED)} need a folder of data (--data-folder):
models/: {", ".join(name for name, _ in STORED.values())}
{CIFAR.calibration}, {CIFAR.test}: CIFAR-10, `images` uint8 (N, 32, 32, 3), `labels`
{IMAGENET.calibration}, {IMAGENET.test}: ImageNet, JPEG files in one buffer `jpeg`, from `offsets` on, `labels`"""


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its samples.

    Attributes:
        name: of the network.
        model: the unpruned model.
        calibration: array of the input, by its name: what criteria and compensation look at.
        test: the same with ``labels``, of other samples: what accuracy is measured on.
        threads: that onnxruntime may use.
    """

    name: str
    model: onnx.ModelProto
    calibration: Mapping[str, Array]
    test: Mapping[str, Array]
    threads: int = 1

    @property
    def feed(self) -> dict[str, Array]:
        """One calibration sample, to measure latency with."""
        return {name: array[:1] for name, array in self.calibration.items()}

    @property
    def options(self) -> RunOptions:
        """How onnxruntime runs models."""
        return RunOptions(threads=self.threads)

    @cached_property
    def stats(self) -> ModelStats:
        """The unpruned model in numbers, at batch 1."""
        return self.weigh(self.model)

    @cached_property
    def unpruned(self) -> float:
        """Accuracy of the unpruned model."""
        return self.accuracy(self.model)

    def weigh(self, model: onnx.ModelProto) -> ModelStats:
        """A model in numbers, at batch 1."""
        return model_stats(model, {name: array.shape for name, array in self.feed.items()})

    def macs_left(self, model: onnx.ModelProto) -> float:
        """Share of the multiply-accumulates that a model has left.

        Raises:
            ValueError: they can't be counted.
        """
        before, after = self.stats.macs, self.weigh(model).macs
        if not before or after is None:
            raise ValueError(f"{self.name}: a shape can't be inferred, so that nothing can be counted")
        return after / before

    def accuracy(self, model: onnx.ModelProto) -> float:
        """Top-1 accuracy on the test samples."""
        return top1_accuracy(as_session(model, self.options), self._tested)

    def agreement(self, model: onnx.ModelProto) -> float:
        """Share of the test samples of which it names the same class as the unpruned model."""
        return float(np.mean(predicted_classes(as_session(model, self.options), self._tested) == self._classes))

    @cached_property
    def _classes(self) -> Array:
        return predicted_classes(as_session(self.model, self.options), self._tested)

    @cached_property
    def _tested(self) -> Dataset:
        return load_data(dict(self.test), input_specs(self.model))


def load_case(name: str, folder: Path, samples: int | None, threads: int) -> Case:
    """Read a network and its samples.

    Args:
        name: of ``STORED`` or ``SHIPPED``.
        folder: the folder of data.
        samples: how many to calibrate on at most; None for the default.
        threads: that onnxruntime may use.

    Raises:
        OSError: a file is missing.
        RuntimeError: a network can't be trained.
        ImportError: images can't be read.
    """
    if name in STORED:
        file, images = STORED[name]
        model = onnx.load(str(folder / "models" / file))
        entry = model.graph.input[0].name
        calibration, _ = read_images(folder / images.calibration, samples or images.samples)
        pixels, labels = read_images(folder / images.test)
        return Case(name, model, {entry: calibration}, {entry: pixels, LABELS: labels}, threads)
    if name == "digits":
        model, calibration_set, test = MODELS / "digits.onnx", _stored("digits_calib"), _stored("digits_test")
    else:
        model, calibration_set, test = wide_model(name), calibration_samples(), held_out_samples()
    cut = {key: array[:samples] for key, array in calibration_set.items()}
    return Case(name, onnx.load(str(model)), cut, test, threads)


def read_images(path: Path, most: int | None = None) -> tuple[Array, Array]:
    """Images as the networks take them, (N, 3, H, W) float32, and their classes, (N,).

    Args:
        path: an ``.npz`` file with ``images``, uint8 (N, H, W, 3), or with JPEG files in a buffer ``jpeg`` that begin
            at ``offsets``; and ``labels``.
        most: how many to read; None for all.
    """
    with np.load(path) as stored:
        labels = stored[LABELS][:most]
        pixels = stored["images"][:most] if "images" in stored else _decoded(stored["jpeg"], stored["offsets"], most)
    normalised = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), labels


def _decoded(buffer: Array, offsets: Array, most: int | None) -> Array:
    try:
        from PIL import Image  # noqa: PLC0415  # only these images need it
    except ModuleNotFoundError as error:
        raise ImportError("JPEG images need pillow: pip install pillow") from error
    files, pieces = buffer.tobytes(), list(pairwise(int(offset) for offset in offsets))[:most]
    return np.stack([np.asarray(Image.open(io.BytesIO(files[a:b])).convert("RGB")) for a, b in pieces])


def _stored(name: str) -> dict[str, Array]:
    with np.load(MODELS / f"{name}.npz") as stored:
        return dict(stored)
