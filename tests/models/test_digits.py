"""The shipped digits network, its samples, and the split they were drawn with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "digits.onnx"
RECIPE_ACCURACY = 0.998
# Two of 500 images: another onnxruntime build may round a close call differently.
SLACK = 0.004


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(str(MODEL))


@pytest.fixture(scope="module")
def held_out() -> dict[str, np.ndarray]:
    return dict(np.load(MODELS / "digits_test.npz"))


@pytest.fixture(scope="module")
def calibration() -> np.ndarray:
    return np.load(MODELS / "digits_calib.npz")["input"]


def distinct(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_is_one_small_valid_file(model):
    assert MODEL.stat().st_size < 2_000_000
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_interface(model):
    (entry,), (result,) = model.graph.input, model.graph.output
    assert (entry.name, result.name) == ("input", "output")
    assert [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] == ["N", 1, 8, 8]
    assert [dim.dim_param or dim.dim_value for dim in result.type.tensor_type.shape.dim] == ["N", 10]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


def test_structure(model):
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Concat") == 1
    assert operators.count("Add") == 3
    assert operators.count("Conv") == operators.count("BatchNormalization") == 13
    assert operators.count("Gemm") == 1
    assert "Identity" not in operators


def test_projection_shortcuts_end_in_an_add(model):
    producers = {node.output[0]: node for node in model.graph.node}
    strides = []
    for add in (node for node in model.graph.node if node.op_type == "Add"):
        for norm in (producers[name] for name in add.input):
            conv = producers[norm.input[0]]
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in conv.attribute}
            if attributes.get("kernel_shape") == [1, 1]:
                strides.append(attributes["strides"])
    assert strides == [[2, 2], [1, 1]]


def test_weights_are_alive(model):
    """No layer has faded to nothing: the batch normalisation after it would hide that from the accuracy."""
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim > 1:
            assert np.abs(weight).max() > 1e-3, tensor.name


def test_accuracy(held_out):
    session = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["output"], {"input": held_out["input"]})
    assert (logits.argmax(axis=1) == held_out["labels"]).mean() >= RECIPE_ACCURACY - SLACK


def test_samples_are_images(held_out, calibration):
    for images, count in ((held_out["input"], 500), (calibration, 256)):
        assert images.shape == (count, 1, 8, 8)
        assert images.dtype == np.float32
        assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.bincount(held_out["labels"]).min() >= 45


def test_calibration_and_test_samples_are_disjoint(held_out, calibration):
    assert not distinct(calibration) & distinct(held_out["input"])


def test_split_is_deterministic_and_gives_the_shipped_samples(held_out, calibration):
    pytest.importorskip("sklearn")
    from models.recipes.digits_data import load_split

    first, second, other = load_split(0), load_split(0), load_split(1)
    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.test_images, other.test_images)
    np.testing.assert_array_equal(first.test_images, held_out["input"])
    np.testing.assert_array_equal(first.test_labels, held_out["labels"])
    np.testing.assert_array_equal(first.calibration_images, calibration)


def test_split_keeps_its_parts_apart():
    pytest.importorskip("sklearn")
    from models.recipes.digits_data import load_split

    split = load_split(0)
    assert distinct(split.calibration_images) <= distinct(split.train_images)
    assert not distinct(split.train_images) & distinct(split.test_images)
    assert len(split.train_images) + len(split.test_images) == 1797
