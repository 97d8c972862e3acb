"""Weights in files of our own: results don't tell, nothing stays behind, nothing else is taken for them."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.builders import Net, feeds_for, run
from ucpe_onnx import ModelError, masked_model, prune
from ucpe_onnx.analysis.constants import Constants
from ucpe_onnx.model import offload as offload_module
from ucpe_onnx.model.files import check_model, load_model, save_model
from ucpe_onnx.model.offload import Offload, complete, has_offloaded, is_offloaded, tensor_value
from ucpe_onnx.run import trials
from ucpe_onnx.runtime.session import make_session
from ucpe_onnx.runtime.session import run as run_session


@pytest.fixture
def offload(monkeypatch, tmp_path):
    """Everything of 16 KiB and more is offload_module, in a folder of the test's."""
    monkeypatch.setattr(offload_module, "LEAST_MODEL", 0)
    monkeypatch.setattr(offload_module, "LEAST_TENSOR", 2**14 + 1)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def layers() -> onnx.ModelProto:
    """Layers of which one computes its weight from a constant, and two share theirs."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("x", (1, 3, 6, 6)), 96, 3, name="stem"))
    turned = net.op("Transpose", net.weight(net.normal(96, 64, 1, 1), "turned"), perm=[1, 0, 2, 3])
    x = net.op("Relu", net.conv_with(x, turned, name="computed"))
    x = net.op("Relu", net.conv(x, 96, name="own"))
    shared = net.weight(net.normal(96, 96, 1, 1), "shared")
    for name in ("left", "right"):
        x = net.op("Relu", net.conv_with(x, shared, name=name))
    net.ops("GlobalAveragePool", net.conv(x, 64, name="head"), outputs=["y"])
    return net.output("y").model()


def written(folder, external: bool) -> str:
    save_model(layers(), folder / "in.onnx", external_data=external)
    return str(folder / "in.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_a_run_gives_the_same_with_parked_weights(offload, tmp_path, monkeypatch, external):
    path = written(tmp_path, external)
    with monkeypatch.context() as patch:
        patch.setattr(Offload, "store", lambda self, model: model)
        patch.setattr("ucpe_onnx.model.external_data.LEAST_MODEL", 2**60)
        expected = prune(path, ratio=0.25, bench_seconds=0)
    loaded = []
    monkeypatch.setattr(
        "ucpe_onnx.runtime.session.has_offloaded", lambda model: loaded.append(has_offloaded(model)) or loaded[-1]
    )
    monkeypatch.setattr("ucpe_onnx.model.external_data.LEAST_MODEL", 0)
    monkeypatch.setattr("ucpe_onnx.model.external_data.LEAST_TENSOR", offload_module.LEAST_TENSOR)
    result = prune(path, ratio=0.25, bench_seconds=0)
    assert loaded and all(loaded), "every session was made of an offloaded model"
    assert result.model == expected.model and not has_offloaded(result.model)
    assert result.plan.masks().keys() == expected.plan.masks().keys()
    for key in ("before", "after", "verification", "kept"):
        assert result.report.to_dict()[key] == expected.report.to_dict()[key]
    assert os.listdir(offload) == []


def test_what_is_given_in_memory_is_not_changed(offload):
    model, before = layers(), layers()
    assert not has_offloaded(prune(model, bench_seconds=0).model)
    assert model == before and os.listdir(offload) == []


def test_nothing_stays_behind_when_a_run_fails(offload, monkeypatch):
    def fail(*_, **__):
        assert os.listdir(offload)
        raise ModelError("no")

    monkeypatch.setattr(trials, "verify", fail)
    with pytest.raises(ModelError, match="no"):
        prune(layers(), bench_seconds=0)
    assert os.listdir(offload) == []


def test_without_a_place_to_write_to_weights_stay_in_memory(offload, monkeypatch, tmp_path):
    expected = prune(layers(), bench_seconds=0).model
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert prune(layers(), bench_seconds=0).model == expected


def test_weights_that_find_the_disk_full_stay_in_memory(offload, monkeypatch):
    """The first weight is written, the next one half."""
    left = [3]

    class Full(offload_module.io.BufferedWriter):
        def write(self, data):
            left[0] -= 1
            if left[0] < 0:
                super().write(data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(offload_module.io, "BufferedWriter", Full)
    with Offload() as place:
        light = place.store(layers())
        assert [is_offloaded(t) for t in light.graph.initializer if tensor_value(t).size > 4096] == [
            True,
            False,
            False,
            False,
        ]
        assert complete(light) == layers()


def test_parked_models_run_save_and_load_as_whole_ones(offload, tmp_path):
    model = layers()
    feeds = feeds_for(model)
    with Offload() as place:
        light = place.store(model)
        assert light.ByteSize() < model.ByteSize() / 2
        assert np.array_equal(run_session(make_session(light), feeds)[0], run(model, feeds)[0])
        for external in (False, True):
            save_model(light, tmp_path / "out.onnx", external_data=external)
            assert load_model(tmp_path / "out.onnx") == model
        masks = {"own": np.arange(64) % 2 == 0, "left": np.arange(96) > 3}
        assert complete(masked_model(light, masks)) == masked_model(model, masks)


def test_constants_are_read_and_computed_from_the_file(offload):
    model = layers()
    computed = next(node.output[0] for node in model.graph.node if node.op_type == "Transpose")
    with Offload() as place:
        found, expected = Constants(place.store(model)), Constants(model)
        for name in ("turned", "shared", computed):
            assert found.shape(name) == expected.value(name).shape and found.value(name).dtype == np.float32
            assert np.array_equal(found.value(name), expected.value(name))
            assert isinstance(found.value(name).base, np.memmap)


def test_types_that_numpy_does_not_know(offload):
    model = layers()
    model.graph.initializer.append(TensorProto(name="b", dims=[9000], data_type=TensorProto.BFLOAT16))
    model.graph.initializer[-1].raw_data = np.arange(9000, dtype=np.uint16).tobytes()
    with Offload() as place:
        tensor = place.store(model).graph.initializer[-1]
        assert is_offloaded(tensor)
        assert np.array_equal(tensor_value(tensor), numpy_helper.to_array(model.graph.initializer[-1]))


def test_only_plain_weights_are_parked(offload):
    """Data that does not fit, or in another field, is left for others to read or to complain of."""
    model = layers()
    tensors = {t.name: t for t in model.graph.initializer}
    tensors["turned"].raw_data += b"more"
    value = numpy_helper.to_array(tensors["shared"])
    tensors["shared"].ClearField("raw_data")
    tensors["shared"].float_data.extend(value.ravel().tolist())
    with Offload() as place:
        light = {t.name: t for t in place.store(model).graph.initializer}
        assert light["turned"] == tensors["turned"] and light["shared"] == tensors["shared"]


def test_the_checker_looks_at_parked_models_too(offload):
    model = layers()
    model.graph.node[-1].op_type = "Nope"
    with Offload() as place, pytest.raises(ModelError, match=r"m\.onnx: onnx\.checker refuses it: .*Nope"):
        check_model(place.store(model), "m.onnx")
    model = layers()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    with Offload() as place, pytest.raises(ModelError, match=r"m\.onnx: onnx\.checker refuses it"):
        check_model(place.store(model), "m.onnx")


def test_a_model_can_not_claim_to_be_parked(offload, tmp_path):
    """An absolute path in a model that was loaded without its data is never opened."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 96 * 96))
    model = layers()
    tensor = next(t for t in model.graph.initializer if t.name == "shared")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", str(secret)), ("offset", "0"), ("length", str(secret.stat().st_size))):
        tensor.external_data.add(key=key, value=value)
    with Offload() as place:
        place.store(layers())
        assert not is_offloaded(tensor)
        with pytest.raises(ModelError, match="shared"):
            Constants(model).value("shared")


def test_discarding_keeps_what_others_need(offload):
    with Offload() as place:
        source = place.store(layers())
        masked = place.store(masked_model(source, {"own": np.arange(64) > 8}))
        assert len(list(next(offload.iterdir()).glob("weights-*"))) == 2
        place.discard(masked, source)
        assert complete(source) == layers()
        assert len(list(next(offload.iterdir()).glob("weights-*"))) == 1
