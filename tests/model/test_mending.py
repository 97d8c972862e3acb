"""Files that onnx.checker refuses for what they declare are taken; what they declare is written as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.builders import Net, feeds_for, run
from ucpe_onnx import ModelError, prune
from ucpe_onnx.model.mending import checked_or_mended


def network() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.conv(net.input(), 32, name="first"))
    model = net.output(net.conv(x, 4, name="second")).model()
    return onnx.shape_inference.infer_shapes(model)


def no_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def empty_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")


def other_rank(model: onnx.ModelProto) -> None:
    del model.graph.output[0].type.tensor_type.shape.dim[2:]


def wrong_inside(model: onnx.ModelProto) -> None:
    model.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 99


def old_version(model: onnx.ModelProto) -> None:
    """IR version 3 wants initializers to be inputs too."""
    model.ir_version = 3
    model.opset_import[0].version = 8


DAMAGE = (no_shape, empty_shape, other_rank, wrong_inside, old_version)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_declared_is_mended_and_written_as_it_was(damage: Callable[[onnx.ModelProto], None]) -> None:
    model = network()
    damage(model)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(model, full_check=True)
    before = model.SerializeToString(deterministic=True)
    result = prune(model, masks={"second": np.arange(32) < 16}, bench_seconds=0)
    assert model.SerializeToString(deterministic=True) == before
    assert result.report.after.parameters < result.report.before.parameters
    assert list(result.model.graph.output) == list(model.graph.output)
    assert result.model.ir_version == model.ir_version and result.model.opset_import == model.opset_import
    (warning,) = (text for text in result.report.warnings if "onnx.checker refuses it" in text)
    assert warning.endswith("onnxruntime runs it, and what it declares is written as it was")
    assert run(result.model, feeds_for(network()))[0].shape == (1, 4, 4, 4)


def test_a_sound_model_is_taken_as_it_is() -> None:
    model = network()
    checked, mending = checked_or_mended(model, "m")
    assert checked is model and mending is None


def test_what_it_computes_is_not_mended() -> None:
    model = network()
    no_shape(model)
    model.graph.node[0].attribute.append(helper.make_attribute("unheard_of", 1))
    with pytest.raises(ModelError, match="unheard_of"):
        checked_or_mended(model, "m")


@pytest.mark.parametrize("what", ["type", "version"])
def test_what_onnxruntime_does_not_bear_is_refused(what: str) -> None:
    """What is declared is written again, so mending it in memory is not enough."""
    model = network()
    if what == "type":
        model.graph.output[0].type.tensor_type.elem_type = 128
    else:
        model.ClearField("ir_version")
    with pytest.raises(ModelError, match="onnxruntime can't load it"):
        prune(model, bench_seconds=0)
