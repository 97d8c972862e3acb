"""A weight that several consumers read gets one mask."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.builders import Masked, Net
from ucpe_onnx import prune
from ucpe_onnx.analysis.shared_weights import origin, tied_consumers
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.passes import emit
from ucpe_onnx.planning import make_plan
from ucpe_onnx.planning.make import Settings
from ucpe_onnx.runtime.target import Target
from ucpe_onnx.selection.select import Selection, select_masks
from ucpe_onnx.selection.tied import tied_scores, tied_segments

SELECTIONS = [
    Selection(ratio, scope, constrained)
    for ratio in (0.25, 0.5)
    for scope in ("local", "global")
    for constrained in (False, True)
]


def pyramid(levels: int = 3, *, chains: bool = False) -> onnx.ModelProto:
    """Convolutions in a row, and a head of two layers that is applied to what each of them makes.

    Args:
        levels: number of convolutions.
        chains: each application of the head reads its weights behind an Identity of its own.
    """
    net = Net()
    weights = net.weight(net.normal(16, 24, 3, 3), "head.weight"), net.weight(net.normal(4, 16, 1, 1), "out.weight")
    y = net.input("x", (1, 3, 8, 8))
    for level in range(levels):
        y = net.op("Relu", net.conv(y, 24, 3, name=f"level{level}"))
        first, second = (net.op("Identity", weight) if chains else weight for weight in weights)
        head = net.op("Relu", net.conv_with(y, first, name=f"head{level}"))
        net.output(net.conv_with(head, second, name=f"out{level}"))
    return net.model()


def random_scores(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.random(consumer.channels) for name, consumer in trace(model).consumers.items()}


@pytest.mark.parametrize("chains", [False, True])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_one_mask_and_one_weight(selection: Selection, *, chains: bool) -> None:
    model = pyramid(chains=chains)
    traced, scores = trace(model), tied_scores(trace(model), random_scores(model))
    masks = select_masks(traced, scores, selection)
    for layer in ("head", "out"):
        assert all(np.array_equal(masks[f"{layer}0"], masks[f"{layer}{level}"]) for level in (1, 2))
    settings = Settings(Target(), lowering="union", fill=selection.constrained)
    plan = make_plan(traced, masks, settings, scores)
    emitted = emit(model, traced, plan)
    Masked(model, plan.masks()).check(emitted)
    shapes = [tuple(tensor.dims) for tensor in emitted.graph.initializer]
    assert [shape[0] for shape in shapes if len(shape) == 4].count(4) == 1  # the second layer's, by its outputs


@pytest.mark.parametrize("constrained", [False, True])
def test_exactly_the_ratio_goes(constrained: bool) -> None:
    model = pyramid()
    masks = select_masks(trace(model), random_scores(model), Selection(0.5, constrained=constrained))
    assert [int(masks[name].sum()) for name in ("head0", "head2", "out0", "out2")] == [12, 12, 8, 8]


def test_what_one_use_has_to_keep_all_keep() -> None:
    net = Net()
    weight = net.weight(net.normal(6, 8, 1, 1))
    x = net.input("x", (1, 8, 4, 4))
    y = net.op("Relu", net.conv(x, 8, name="a"))
    model = net.output(net.conv_with(x, weight, name="b"), net.conv_with(y, weight, name="c")).model()
    for constrained in (False, True):
        assert not select_masks(trace(model), random_scores(model), Selection(0.5, constrained=constrained))
    masks = select_masks(trace(pyramid()), random_scores(pyramid()), Selection(0.5, ignore=("out1",)))
    assert not masks.keys() & {"out0", "out1", "out2"}


def test_other_axes_and_other_slots_are_not_tied() -> None:
    """A weight and its transpose are, if the same axis reads; and flattened channels are not whole ones."""
    net = Net()
    weight = net.weight(net.normal(8, 8))
    turned = net.op("Transpose", weight, perm=[1, 0])
    y = net.op("Relu", net.gemm(net.input("x", (1, 4)), 8, name="a"))
    y = net.op("Relu", net.op("Gemm", y, weight, transB=1, name="b"))
    y = net.op("Relu", net.op("Gemm", y, turned, name="c"))
    y = net.op("Relu", net.op("Gemm", y, turned, transB=1, name="d"))
    flat = net.op("Flatten", net.conv(net.input("image", (1, 3, 2, 2)), 2, name="e"))
    model = net.output(y, net.op("Gemm", flat, weight, transB=1, name="f")).model()
    traced = trace(model)
    names = [tuple(consumer.name for consumer in family) for family in tied_consumers(traced)]
    assert ("b", "c") in names and ("d",) in names and ("f",) in names
    assert origin(traced.graph, turned).axes == (1, 0)
    assert origin(traced.graph, turned).name == weight


def test_segments_are_tied_by_what_one_weight_makes() -> None:
    """A Siamese network: with one mask for a segment both halves lose the same, so that the weight stays one."""
    net = Net()
    weight = net.weight(net.normal(8, 3, 1, 1), "shared")
    left, right = (net.op("Relu", net.conv_with(net.input(name, (1, 3, 4, 4)), weight, name=name)) for name in "xy")
    model = net.output(net.op("Add", net.conv(left, 4, name="l"), net.conv(right, 4, name="r"))).model()
    traced, scores = trace(model), random_scores(model)
    assert max(len(tied.segments) for tied in tied_segments(traced)) == 2
    masks = select_masks(traced, scores, Selection(0.5, constrained=True))
    assert np.array_equal(masks["l"], masks["r"]) and masks["l"].sum() == 4
    emitted = emit(model, traced, make_plan(traced, masks, Settings(Target(blocked=False)), scores))
    assert [tuple(t.dims) for t in emitted.graph.initializer if t.dims[1:] == [3, 1, 1]] == [(4, 3, 1, 1)]


@pytest.mark.parametrize("more", [{"target_macs": 0.7}, {"target_params": 0.7}, {"mode": "constrained"}])
def test_no_run_makes_a_model_larger(more: dict[str, float | str]) -> None:
    criterion = {"criterion": "random"} if "mode" in more else {}
    result = prune(pyramid(4), measure=False, **more, **criterion)
    assert result.report.after.parameters < result.report.before.parameters
