"""Weights that are read through Identity, Cast and Transpose: edited where they are, if that takes less room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.builders import Net, check_emission
from tests.passes.emitting import PLAIN, stored
from ucpe_onnx.analysis.counts import model_stats


def elements(model: onnx.ModelProto) -> int:
    return model_stats(model, {}).parameters


def tied(names: Sequence[str], *, value_infos: bool = False) -> onnx.ModelProto:
    """Layers in a row that read one matrix, some of them its transpose, and a head."""
    net = Net()
    shared = net.weight(net.normal(8, 8), "shared")
    y = net.op("Relu", net.gemm(net.input("x", (1, 4)), 8, name="a"))
    for name in names:
        turned = name.startswith("turned")
        weight = net.op("Transpose", net.op("Identity", shared)) if turned else shared
        y = net.op("Relu", net.op("Gemm", y, weight, transB=1 - turned, name=name))
    model = net.output(net.gemm(y, 3, name="head")).model()
    return onnx.shape_inference.infer_shapes(model) if value_infos else model


@pytest.mark.parametrize("value_infos", [False, True])
def test_a_weight_and_its_transpose_stay_one(value_infos: bool) -> None:
    model = tied(["plain", "turned"], value_infos=value_infos)
    kept = [0, 2, 3, 7]
    emitted = check_emission(model, {"plain": kept, "turned": kept, "head": kept}, target=PLAIN)
    assert np.array_equal(stored(emitted)["shared"], stored(model)["shared"][np.ix_(kept, kept)])
    assert sum(value.shape == (4, 4) for value in stored(emitted).values()) == 2  # and the first layer's
    assert any(node.op_type == "Transpose" for node in emitted.graph.node)


def test_zeros_find_their_axis() -> None:
    """The two keep different channels of one another's axes, so that what is read has zeros in both."""
    model = tied(["turned1", "turned2"])
    kept = [0, 2, 3]
    check_emission(model, {"turned1": kept, "turned2": kept}, target=PLAIN, lowering="union")


def test_readers_that_differ_get_copies() -> None:
    model = tied(["plain", "turned"])
    emitted = check_emission(model, {"plain": [0, 1, 2], "turned": [3, 4], "head": [5, 6, 7]}, target=PLAIN)
    assert "shared" not in stored(emitted)


def test_one_that_keeps_everything_keeps_the_weight() -> None:
    """The copy is for the other."""
    model = tied(["plain", "turned"])
    emitted = check_emission(model, {"head": [0, 1]}, target=PLAIN)
    assert np.array_equal(stored(emitted)["shared"], stored(model)["shared"])


def test_half_precision_stays_half_precision() -> None:
    """A weight is stored as float16 and cast where it is read."""
    net = Net()
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    half = net.weight(net.normal(4, 8, 1, 1).astype(np.float16), "half")
    model = net.output(net.conv_with(y, net.op("Cast", half, to=TensorProto.FLOAT), name="b")).model()
    emitted = check_emission(model, {"b": [1, 2]}, target=PLAIN)
    assert stored(emitted)["half"].dtype == np.float16 and stored(emitted)["half"].shape == (4, 2, 1, 1)


def test_a_subgraphs_reader_keeps_the_weight_behind_a_chain() -> None:
    """So does an output of the graph: it has to stay what it was."""
    net = Net()
    shared = net.weight(net.normal(4, 8, 1, 1), "shared")
    y = net.op("Relu", net.conv(net.input("x", (1, 3, 4, 4)), 8, name="a"))
    seen = net.op("Identity", shared)
    net.output(*[net.conv_with(y, net.op("Identity", seen), name=name) for name in "bc"], seen)
    emitted = check_emission(net.model(), {"b": [1, 2], "c": [1, 2]}, target=PLAIN)
    assert stored(emitted)["shared"].shape == (4, 8, 1, 1)
    assert elements(emitted) == elements(net.model()) - 6 * 3 - 6 + 4 * 2
