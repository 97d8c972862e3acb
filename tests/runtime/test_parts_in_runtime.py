"""What onnxruntime makes of models whose consumers read parts: read off its own optimised graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.builders import Net, check_emission
from tests.passes.routed import nodes, routed
from tests.passes.test_selections import quantised
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.runtime.optimised import read_optimised
from ucpe_onnx.runtime.session import RunOptions, make_session
from ucpe_onnx.runtime.target import Target, target_for

CPU = target_for(("CPUExecutionProvider",), "all")
BLOCK = CPU.block
KEPT = {"b": range(3 * BLOCK), "c": range(BLOCK, 4 * BLOCK)}
BLOCKS = [range(BLOCK), range(BLOCK, 3 * BLOCK), range(3 * BLOCK, 4 * BLOCK)]

blocked = pytest.mark.skipif(not CPU.blocked, reason="onnxruntime has no blocked layout on this machine")


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    make_session(model, RunOptions(), str(folder / "optimised.onnx"))
    return onnx.load(folder / "optimised.onnx")


def fork(kernel: int, norm: bool) -> onnx.ModelProto:
    """A producer of four blocks, two consumers with what onnxruntime fuses into them behind, and a head."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 3, 8, 8)), 4 * BLOCK, 3, name="a"))
    ends = []
    for name in ("b", "c"):
        y = net.conv(a, 2 * BLOCK, kernel, name=name)
        ends.append(net.op("Relu", net.batch_norm(y) if norm else y))
    net.output(net.op("GlobalAveragePool", net.conv(net.op("Concat", *ends, axis=1), 2 * BLOCK, name="head")))
    return net.model()


@blocked
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_sums_over_blocks_cost_no_pass_of_their_own(kernel: int, norm: bool, tmp_path: Path) -> None:
    emitted = routed(fork(kernel, norm), KEPT, {"b": "partial", "c": "partial"}, BLOCKS)
    assert len(nodes(emitted, "Add")) == 2 and len(nodes(emitted, "Conv")) == 3 + 4 + 1
    graph = read_optimised(emitted)
    assert (graph.blocked, graph.plain) == (8, 0)
    assert [finding.why for finding in graph.of("reorder")] == ["for a model output"]
    left = optimised(emitted, tmp_path)
    assert not nodes(left, "Add", "Relu", "BatchNormalization", "Sum")


@blocked
def test_blocks_that_are_joined_stay_in_the_layout() -> None:
    emitted = routed(fork(3, norm=False), KEPT, {"b": "concat", "c": "concat"}, BLOCKS)
    assert len(nodes(emitted, "Concat")) == 3
    graph = read_optimised(emitted)
    assert (graph.blocked, graph.plain) == (6, 0)
    assert [finding.why for finding in graph.of("reorder")] == ["for a model output"]


@pytest.mark.parametrize("lowering", LOWERING_RULES)
def test_quantised_layers_stay_one_kernel(lowering: str) -> None:
    """Whatever is asked for, nothing comes between a convolution and its decoders."""
    kept = {"b": [0, 2, 5], "c": [1, 2, 3]}
    emitted = check_emission(quantised(), kept, optimise=False, lowering=lowering, target=Target(blocked=False))
    assert len(nodes(emitted, "Gather", "Slice")) == {"gather": 2, "slice": 2}.get(lowering, 0)
    graph = read_optimised(emitted)
    assert (graph.quantised, graph.plain, graph.blocked) == (3, 0, 0)
