"""Large models written by hand: the same as protobuf's own, whatever they hold."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.models_small import branches
from ucpe_onnx.model import offload as offload_module
from ucpe_onnx.model.offload import Offload, copy_model
from ucpe_onnx.model.serialise import model_size, write_model

UNKNOWN = bytes([0xC2, 0x3E, 3]) + b"new"
"""A field 1000, as a later ONNX might have one, that holds three bytes."""


def annotated() -> onnx.ModelProto:
    """A model with something in most places, and weights around the lengths at which a varint grows."""
    model = branches()
    model.producer_name, model.doc_string, model.graph.doc_string = "p", "", "graph"
    model.metadata_props.add(key="k", value="v")
    model.graph.metadata_props.add(key="k", value="v")
    for size in (31, 32, 127, 128, 4095, 4096, 2**19, 2**20):
        tensor = numpy_helper.from_array(np.arange(size, dtype=np.uint8), f"weight{size}")
        tensor.doc_string = "weight"
        model.graph.initializer.append(tensor)
    return model


@pytest.fixture(params=[False, True])
def model(request, monkeypatch):
    """The model, in memory and offloaded."""
    monkeypatch.setattr(offload_module, "LEAST_TENSOR", 32)
    monkeypatch.setattr(offload_module, "LEAST_MODEL", 0)
    with Offload() as offload:
        yield offload.store(annotated()) if request.param else annotated()


def test_size_and_bytes(model):
    stream = io.BytesIO()
    write_model(model, stream.write)
    assert onnx.load_from_string(stream.getvalue()) == annotated()
    assert model_size(model) == len(stream.getvalue()) == annotated().ByteSize()


@pytest.mark.parametrize("where", ["model", "graph", "initializer"])
def test_fields_of_a_later_onnx_survive(monkeypatch, where):
    monkeypatch.setattr(offload_module, "LEAST_TENSOR", 32)
    model = annotated()
    parts = {"model": model, "graph": model.graph, "initializer": model.graph.initializer[-1]}
    parts[where].MergeFromString(UNKNOWN)
    stream = io.BytesIO()
    write_model(model, stream.write)
    assert UNKNOWN in stream.getvalue() and len(stream.getvalue()) == model.ByteSize() == model_size(model)
    assert onnx.load_from_string(stream.getvalue()) == model


def test_a_hollow_copy_says_nothing_of_the_value_and_all_else():
    model = annotated()
    copy = copy_model(model, [0])
    assert not copy.graph.initializer[0].HasField("raw_data") and model.graph.initializer[0].HasField("raw_data")
    copy.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data
    assert copy == model
