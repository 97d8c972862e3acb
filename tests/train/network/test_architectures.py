"""Whole networks compute what onnxruntime computes, and all their weights get gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from models import ARCHITECTURES, DEEP, build
from tests.models.test_builders import LARGE, feeds
from tests.train.network.running import check_equal, projected, tensors
from ucpe_onnx import load_model
from ucpe_onnx.errors import ModelError
from ucpe_onnx.runtime.random_feeds import find_feeds
from ucpe_onnx.train.network import Network

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data" / "models"
FILES = sorted(SHARED.glob("*.onnx"))
STEPS = 40
"""Length of sequences for networks that take any."""


OTHERS = {"BatchNormalization": (3, 5), "Clip": (1, 3), "Pad": (2, 3)}
"""Inputs that are no weights, though they may have axes."""


BRANCHED = ["silero_vad"]
FREQUENCIES = {"/model/rotary_emb/Constant_output_0"}
"""A constant that a MatMul reads: trained like any other, though it is no weight."""


def small(name: str) -> int:
    if name in LARGE:
        return 32
    architecture = {**ARCHITECTURES, **DEEP}[name]
    return STEPS if architecture.axes[-1] == 80 or "image" not in architecture.axes[-1:] else architecture.small


def weights_of(model: onnx.ModelProto) -> set[str]:
    """What the field's tables count: float initializers that are neither scalars, statistics nor bounds."""
    others = {name for node in model.graph.node for name in node.input[slice(*OTHERS.get(node.op_type, (0, 0)))]}
    return {t.name for t in model.graph.initializer if t.data_type == 1 and t.dims} - others


@pytest.mark.parametrize("name", [name for name in (*ARCHITECTURES, *DEEP) if name not in BRANCHED])
def test_equals_onnxruntime(name: str) -> None:
    model = build(name, image=small(name), opset=17)
    # Single precision is itself 1e-4 from the truth after 152 layers of random weights, in torch and in onnxruntime.
    network = check_equal(model, feeds(model), limit=3e-4 if name == "resnet152" else 1e-4)
    assert set(network.attribute_of) - FREQUENCIES == weights_of(model)


@pytest.mark.parametrize("name", BRANCHED)
def test_branches_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is a If, which can't be trained through yet"):
        Network(build(name))


OPSETS = [
    "convnext_tiny",
    "deepspeech2_gru",
    "edsr_baseline_x2",
    "mobilenet_v3_large",
    "resnet50_gn",
    "swin_t",
    "yolov8n",
]


@pytest.mark.parametrize("opset", [13, 22])
@pytest.mark.parametrize("name", OPSETS)
def test_at_other_opsets(name: str, opset: int) -> None:
    model = build(name, image=small(name), opset=opset)
    assert set(check_equal(model, feeds(model)).attribute_of) == weights_of(model)


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenet_v2", "densenet121"])
def test_gradients_with_and_without_normalisations(name: str, fold_bn: bool) -> None:
    model = build(name, image=32, batch=4, fold_bn=fold_bn)
    network = Network(model).train()
    check_reached(network, tensors(feeds(model, batch=4)))
    assert set(network.attribute_of) == weights_of(model)


@pytest.mark.parametrize("name", ["bert", "lstm_acoustic", "swin_t", "vit_tiny_patch16_224"])
def test_gradients_of_sequences(name: str) -> None:
    model = build(name, image=small(name))
    check_reached(Network(model).train(), tensors(feeds(model)))


def check_reached(network: Network, given: dict[str, object]) -> None:
    """Every weight has a gradient, finite and not zero."""
    projected(network(given)).backward()
    for name, attribute in network.attribute_of.items():
        gradient = network.weights.get_parameter(attribute).grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


def test_digits() -> None:
    model = load_model(ROOT / "models" / "digits.onnx")
    with np.load(ROOT / "models" / "digits_test.npz") as samples:
        given = {"input": samples["input"][:64]}
    check_reached(check_equal(model, given).train(), tensors(given))


@pytest.mark.skipif(not FILES, reason="no files beside the checkout")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_trained_files(file: Path) -> None:
    model = load_model(file)
    given = {name: np.abs(value) % 1 for name, value in find_feeds(model, batch=2).items()}
    network = check_equal(model, given).train()
    check_reached(network, tensors(given))
    assert set(network.attribute_of) == weights_of(model)
