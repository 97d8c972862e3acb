"""The models that ``benchmarks.lowerings`` runs on: built, read from a file, or quantised and kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from models import ARCHITECTURES, build
from ucpe_onnx.runtime.random_feeds import random_feeds
from ucpe_onnx.samples.inputs import Feed, input_specs

DEFAULT = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mnasnet1_0",
    "squeezenet1_0",
    "googlenet",
)
CALIBRATION_FEEDS = 4
PRECISIONS = ("float32", "int8")


def load(name: str, precision: str) -> onnx.ModelProto:
    """A model by the name of its architecture or by its path, quantised if asked to be.

    Quantised models are kept in the system's folder for temporary files.
    """
    if precision == "float32":
        return build(name) if name in ARCHITECTURES else onnx.load(name)
    kept = Path(tempfile.gettempdir()) / "ucpe-int8" / f"{Path(name).stem}-7bit-onnxruntime-{ort.__version__}.onnx"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        # Batch normalisations that stay between quantisations keep whole layers in float.
        model = build(name, fold_bn=True) if name in ARCHITECTURES else onnx.load(name)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            quantised = quantise(model, Path(folder))
            os.replace(quantised, kept)
    return onnx.load(kept)


def quantise(model: onnx.ModelProto, folder: Path) -> Path:
    """Quantise to int8 with QuantizeLinear and DequantizeLinear, scales per channel, calibrated on random inputs."""
    from onnxruntime import quantization  # noqa: PLC0415  # slow to import

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Random feeds, one after the other."""

        def __init__(self) -> None:
            specs = input_specs(model)
            self._feeds: Iterator[Feed] = (random_feeds(specs, seed) for seed in range(CALIBRATION_FEEDS))

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(model, str(source))
    quantization.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        reduce_range=True,  # processors without VNNI add products of 8 bits up in 16, which overflow
    )
    return target
