"""Criteria against their formulas, written out naively."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.builders import Net
from ucpe_onnx.analysis.trace import trace
from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.selection.criteria import (
    CRITERIA,
    Filters,
    channel_matrix,
    check_weights,
    fpgm,
    l1,
    l2,
    lamp,
    lamp_scores,
    score_consumers,
)


def filters(rows: int = 7, columns: int = 5, dtype: type = np.float32) -> Filters:
    weights = np.random.default_rng(3).standard_normal((rows, columns)).astype(dtype)
    return Filters(weights, None, np.random.default_rng(0))


def two_convs(**net_options: int) -> tuple[Net, str]:
    """x -> a (6 channels) -> b."""
    net = Net(**net_options)
    return net, net.conv(net.input("x", (1, 3, 4, 4)), 6, 3, name="a")


def test_lamp_of_known_norms() -> None:
    assert np.round(lamp_scores(np.array([3.0, 1.0, 2.0, 4.0])), 2).tolist() == [0.43, 0.10, 0.22, 1.0]


def test_lamp_of_equal_and_zero_norms() -> None:
    assert lamp_scores(np.array([2.0, 2.0])).tolist() == [1.0, 0.5]
    assert lamp_scores(np.array([0.0, 3.0, 0.0])).tolist() == [0.0, 1.0, 0.0]
    assert np.isfinite(lamp_scores(np.zeros(3))).all()


def test_lamp_scores_the_norms_of_the_filters() -> None:
    given = filters()
    assert np.array_equal(lamp(given), lamp_scores(l2(given)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_l1_l2_fpgm(dtype: type) -> None:
    given = filters(dtype=dtype)
    rows = given.weights.astype(np.float64)
    assert np.allclose(l1(given), [sum(abs(v) for v in row) for row in rows], rtol=1e-5)
    assert np.allclose(l2(given), [sum(v * v for v in row) ** 0.5 for row in rows], rtol=1e-5)
    distances = [sum(float(np.linalg.norm(row - other)) for other in rows) for row in rows]
    assert np.allclose(fpgm(given), distances, rtol=1e-3)


def test_fpgm_in_several_blocks_of_rows() -> None:
    given = filters(rows=1030, columns=2)
    rows = given.weights.astype(np.float64)
    last = sum(float(np.linalg.norm(rows[-1] - other)) for other in rows)
    assert np.isclose(fpgm(given)[-1], last, rtol=1e-3)


def test_l2_does_not_overflow_in_half_precision() -> None:
    given = Filters(np.full((1, 4), 1000, dtype=np.float16), None, np.random.default_rng(0))
    assert l2(given).tolist() == [2000.0]
    assert l1(given).tolist() == [4000.0]


def test_random_is_seeded_and_differs_between_consumers() -> None:
    net, a = two_convs()
    traced = trace(net.output(net.conv(a, 2, name="b"), net.conv(a, 2, name="c")).model())
    first, again, other = (score_consumers(traced, "random", seed) for seed in (1, 1, 2))
    assert np.array_equal(first["b"], again["b"])
    assert not np.array_equal(first["b"], other["b"])
    assert not np.array_equal(first["b"], first["c"])


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "lamp"])
def test_scores_are_of_the_input_channels(criterion: str) -> None:
    """Conv, ConvTranspose, Gemm (both ways round) and MatMul (both sides) agree on what a channel's weights are."""
    net, a = two_convs()
    weight = net.normal(6, 2)  # (channels, outputs)
    net.conv_with(a, net.weight(weight.T[:, :, None, None]), name="conv")
    net.op("ConvTranspose", a, net.weight(weight[:, :, None, None]), name="transposed")
    last = net.op("Transpose", a, perm=[0, 2, 3, 1])
    net.op("MatMul", last, net.weight(weight), name="right")
    net.op("MatMul", net.weight(weight.T), net.reshape(a, 6, 16), name="left")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", a))
    net.op("Gemm", pooled, net.weight(weight), name="gemm")
    net.op("Gemm", pooled, net.weight(weight.T), name="gemm_b", transB=1)
    net.op("Gemm", net.op("Transpose", pooled), net.weight(weight), name="gemm_a", transA=1)
    net.output(*[node.output[0] for node in net.nodes if node.name and node.name != "a"])
    scores = score_consumers(trace(net.model()), criterion)
    expected = CRITERIA[criterion](Filters(weight, None, np.random.default_rng(0)))
    names = {"conv", "transposed", "right", "left", "gemm", "gemm_b", "gemm_a"}
    assert set(scores) == names
    for name in names:
        assert np.allclose(scores[name], expected, rtol=1e-4), name


def test_positions_of_one_slot_share_the_mean_of_their_scores() -> None:
    net, a = two_convs()
    flat = net.op("Flatten", a)
    weight = net.normal(96, 3)
    net.output(net.op("Gemm", flat, net.weight(weight), name="g"))
    scores = score_consumers(trace(net.model()), "l1")["g"]
    assert np.allclose(scores, np.repeat(np.abs(weight).reshape(6, -1).sum(axis=1) / 16, 16), rtol=1e-5)


def test_slots_that_occur_differently_often() -> None:
    net, a = two_convs()
    part = net.slice(a, [1], [0], [2])
    weight = net.normal(2, 8, 1, 1)
    net.output(net.conv_with(net.op("Concat", a, part, axis=1), net.weight(weight), name="c"))
    scores = score_consumers(trace(net.model()), "l1")["c"]
    by_position = np.abs(weight[:, :, 0, 0]).sum(axis=0)
    by_slot = (by_position[:6] + np.pad(by_position[6:], (0, 4))) / [2, 2, 1, 1, 1, 1]
    assert np.allclose(scores, [*by_slot, *by_slot[:2]], rtol=1e-5)


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp"])
def test_wide_slots_score_like_the_channels_that_they_stand_for(criterion: str) -> None:
    """Every channel of a row is like one of a matrix that tells them apart: the row scores about as it does."""
    rows = np.abs(np.random.default_rng(0).normal(size=(4, 10)))
    generator = np.random.default_rng(0)
    apart = CRITERIA[criterion](Filters(np.repeat(rows, 3, axis=0), None, generator)).reshape(4, 3)
    together = CRITERIA[criterion](Filters(np.tile(rows, 3), None, generator, np.full(4, 3)))
    assert np.allclose(together, apart.max(axis=1))


def test_rows_of_different_widths_have_the_same_distances() -> None:
    rows, generator = np.random.default_rng(0).normal(size=(4, 10)), np.random.default_rng(0)
    wide = Filters(np.tile(rows, 9), None, generator, np.full(4, 9))
    assert np.allclose(CRITERIA["fpgm"](wide), CRITERIA["fpgm"](Filters(rows, None, generator)), rtol=1e-4)


def test_matrix_of_a_grouped_convolution() -> None:
    net, a = two_convs()
    weight = net.normal(4, 3, 2, 2)  # two groups: channels 0-2 are read by outputs 0-1
    net.output(net.conv_with(a, net.weight(weight), groups=2, name="g"))
    traced = trace(net.model())
    matrix = channel_matrix(traced, traced.consumers["g"])
    assert np.array_equal(matrix[1], weight[:2, 1].ravel())
    assert np.array_equal(matrix[3], weight[2:, 0].ravel())


def test_bn_takes_the_nearest_scale_above() -> None:
    net, a = two_convs()
    scale = np.array([3.0, -1, 2, 0.5, 4, 6])
    first = net.batch_norm(a, scale=scale)
    second = net.batch_norm(net.op("Relu", first), scale=scale[::-1])
    net.output(net.conv(net.op("Relu", first), 2, name="b"), net.conv(net.op("Relu", second), 2, name="c"))
    scores = score_consumers(trace(net.model()), "bn")
    assert scores["b"].tolist() == np.abs(scale).tolist()
    assert scores["c"].tolist() == np.abs(scale[::-1]).tolist()


def test_bn_through_a_concat_and_without_one() -> None:
    net, a = two_convs()
    x = net.nodes[0].input[0]
    b = net.batch_norm(net.conv(x, 2), scale=np.array([5.0, 7.0]))
    joined = net.op("Concat", net.batch_norm(a, scale=np.arange(1.0, 7.0)), b, axis=1)
    net.output(net.conv(joined, 2, name="c"), net.conv(net.conv(x, 3, name="bare"), 2, name="d"))
    scores = score_consumers(trace(net.model()), "bn")
    assert scores["c"].tolist() == [1, 2, 3, 4, 5, 6, 5, 7]
    assert np.isinf(scores["d"]).all()  # nothing says that these may go


def test_bn_of_channels_that_go_together_is_their_mean() -> None:
    """A depthwise layer makes two channels of each of a's: they share a slot."""
    net, a = two_convs()
    scaled = net.batch_norm(net.depthwise(a, 2), scale=np.array([1.0, -3, 2, 2, 0, 4, 5, 5, 6, 8, 1, 0]))
    scores = score_consumers(trace(net.output(net.conv(scaled, 2, name="c")).model()), "bn")
    assert scores["c"].tolist() == [2, 2, 2, 2, 2, 2, 5, 5, 7, 7, 0.5, 0.5]


def test_bn_without_batch_normalisation() -> None:
    net, a = two_convs()
    traced = trace(net.output(net.conv(a, 2)).model())
    with pytest.raises(ModelError, match="no BatchNormalization"):
        score_consumers(traced, "bn")


def test_unknown_criterion() -> None:
    net, a = two_convs()
    with pytest.raises(UsageError, match=r"unknown criterion 'l3': choose from l1, l2, lamp"):
        score_consumers(trace(net.output(net.conv(a, 2)).model()), "l3")


def test_consumers_without_prunable_channels_have_no_score() -> None:
    net, a = two_convs()
    assert set(score_consumers(trace(net.output(net.conv(a, 2, name="b")).model()), "l2")) == {"b"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad: float) -> None:
    net, a = two_convs()
    weight = net.normal(2, 6, 1, 1)
    good = net.output(net.conv_with(a, net.weight(weight, "w"), name="b")).model()
    check_weights(trace(good))
    weight[1, 2] = bad
    (tensor,) = [t for t in good.graph.initializer if t.name == "w"]
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    with pytest.raises(ModelError, match="node 'b': weight 'w' holds NaN or infinite"):
        check_weights(trace(good))


def test_criteria_are_documented() -> None:
    for name, criterion in CRITERIA.items():
        assert criterion.__doc__ and (name == "random" or "Source:" in criterion.__doc__), name
