"""What the coverage tables rest on: families, shares of weights, reasons, and what another tool's output should be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from benchmarks.coverage import farthest, masked_as
from benchmarks.families import family, kind, weights_of
from benchmarks.files import family_lines, less_than_half
from models import build
from tests.builders import Net
from tests.comparing import run_model
from ucpe_onnx.analysis.trace import trace


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("espcn_x3", "CNN"),
        ("llama", "transformer"),
        ("deberta", "transformer"),
        ("t5", "transformer"),
        ("crnn", "recurrent"),
        ("silero_vad", "control flow"),
    ],
)
def test_family_of_an_architecture(name, expected):
    assert family(build(name, image=40 if name == "crnn" else None)) == expected


def test_a_softmax_of_classes_makes_no_transformer():
    net = Net()
    y = net.conv(net.input(), 5)
    assert family(net.output(net.op("Softmax", y, axis=1)).model()) == "CNN"


def test_reasons_lose_their_names():
    assert kind("channel-mixing op Softmax at /head/Softmax") == "channel-mixing op Softmax"
    assert kind("graph input x") == "graph input"


def test_shares_of_a_chain():
    """The first convolution makes what the depthwise and the last one have: all of them can lose weights."""
    net = Net()
    y = net.depthwise(net.conv(net.input(), 6))
    model = net.output(net.conv(y, 5)).model()
    counted = weights_of(model, trace(model))
    assert counted.share == counted.share_of_all == 1.0
    assert not counted.staying


def test_shares_of_one_layer():
    """It reads an input and makes an output."""
    net = Net()
    model = net.output(net.conv(net.input(), 5)).model()
    counted = weights_of(model, trace(model))
    assert counted.share == counted.share_of_all == 0.0
    assert counted.staying == {"graph input": 1.0}


def test_weights_that_no_consumer_reads_stay():
    model = build("llama")
    counted = weights_of(model, trace(model))
    assert counted.staying["no consumer's: a weight of Gather"] == pytest.approx(1000 * 192 / 1_171_200, abs=1e-3)
    assert counted.share_of_all == pytest.approx(1 - sum(counted.staying.values()), abs=1e-3)
    assert counted.share_of_all < counted.share


def test_tables():
    rows = {
        "good": {"family": "CNN", "prunable": 0.9, "of_all": 0.8, "staying": {}, "lowerings": {}},
        "wrong": {
            "family": "CNN",
            "prunable": 0.4,
            "of_all": 0.2,
            "staying": {"graph input": 0.6},
            "lowerings": {"union": {"result": "failed", "reason": "x"}},
        },
        "no": {"family": "CNN", "refused": "it is no model"},
    }
    assert family_lines(rows) == [["CNN", "2", "1", "1 (50%)", "65%", "1 (50%)", "50%"]]
    assert less_than_half(rows) == [
        "wrong (CNN): 40% of its consumers' weights, 20% of all; stay: 60% graph input",
        "no: it is no model",
    ]


def test_a_masked_model_is_made_from_the_weights_of_a_pruned_one():
    net = Net()
    y = net.conv(net.input(), 8, name="a")
    model = net.output(net.conv(net.op("Relu", y), 5, name="b")).model()
    kept = [0, 2, 3, 7]
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    inputs = {node.name: list(node.input) for node in model.graph.node}
    cut = {inputs["b"][1]: (slice(None), kept), **dict.fromkeys(inputs["a"][1:], (kept,))}
    for tensor in pruned.graph.initializer:
        if tensor.name in cut:
            tensor.CopyFrom(from_array(np.ascontiguousarray(to_array(tensor)[cut[tensor.name]]), tensor.name))
    del pruned.graph.value_info[:]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 8, 4, 4), dtype=np.float32)}
    found, expected, whole = (run_model(m, feeds) for m in (pruned, masked_as(model, pruned), model))
    assert farthest(found, expected) < 1e-5
    assert farthest(found, whole) > 1e-2
