"""Criteria from statistics, against their formulas and explicit least-squares refits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from tests.builders import Net
from ucpe_onnx.activations import grams
from ucpe_onnx.activations.collector import collect
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.errors import DataError, ModelError, UsageError
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.samples.dataset import load_data
from ucpe_onnx.samples.inputs import input_specs
from ucpe_onnx.selection import data_criteria
from ucpe_onnx.selection.criteria import channel_matrix, score_consumers
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA, removal_curve, score_with_data
from ucpe_onnx.selection.elimination import eliminate

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gathered(model: onnx.ModelProto, x: Array) -> tuple[Trace, Statistics]:
    traced = trace(model)
    data = load_data({"x": x}, input_specs(model))
    return traced, collect(model, traced, data, RunOptions(threads=1), ranks=True)


def convolutions(kernel: int = 3, groups: int = 1) -> onnx.ModelProto:
    """x -> stem (6 channels) -> Relu -> read (8 channels)."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    return net.output(net.conv(a, 8, kernel, groups=groups, name="read")).model()


def flattened(shape: tuple[int | str, ...] = ("N", 3, 2, 2)) -> onnx.ModelProto:
    """x -> stem (4 channels) -> Flatten -> fc, which reads each channel at four positions."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", shape), 4, 3))
    return net.output(net.gemm(net.op("Flatten", a), 5, name="fc")).model()


def norms(traced: Trace, name: str) -> Array:
    return np.linalg.norm(channel_matrix(traced, traced.consumers[name]).astype(np.float64), axis=1)


def without(statistics: Statistics, name: str, *lost: str) -> Statistics:
    """Statistics that lack something of a consumer, or all of it."""
    kept = dict(statistics.consumers)
    if lost:
        kept[name] = replace(kept[name], **dict.fromkeys(lost))
    else:
        del kept[name]
    return Statistics(kept, statistics.samples)


def test_formulas_per_channel() -> None:
    traced, statistics = gathered(convolutions(), normal(4, 3, 5, 5))
    found, weights = statistics.consumers["read"], norms(traced, "read")
    expected = {
        "wanda": weights * np.sqrt(found.energy * 4 * 25),
        "energy": np.sqrt(found.energy),
        "variance": weights**2 * found.variance,
        "hrank": found.rank,
    }
    for criterion, scores in expected.items():
        assert np.allclose(score_with_data(traced, criterion, statistics)["read"], scores), criterion


def test_channels_of_a_slot_are_one_block() -> None:
    traced, statistics = gathered(flattened(), normal(7, 3, 2, 2))
    found, weights = statistics.consumers["fc"], norms(traced, "fc")
    blocks = np.arange(16).reshape(4, 4)
    expected = {
        "wanda": [np.sqrt(np.mean([weights[j] ** 2 * found.energy[j] * 7 for j in block])) for block in blocks],
        "energy": [np.sqrt(np.mean([found.energy[j] for j in block])) for block in blocks],
        "variance": [np.mean([weights[j] ** 2 * found.variance[j] for j in block]) for block in blocks],
    }
    for criterion, scores in expected.items():
        assert np.allclose(score_with_data(traced, criterion, statistics)["fc"], np.repeat(scores, 4)), criterion
    curve = removal_curve(traced, "fc", statistics)
    assert sorted(channels.tolist() for channels in curve.order) == blocks.tolist()


def refitted_error(weights: Array, features: Array, kept: list[int]) -> float:
    """sum |W f - W~ f|^2 with the best W~ that reads the kept features alone."""
    target = features @ weights.T
    if not kept:
        return float(np.square(target).sum())
    solution = np.linalg.lstsq(features[:, kept], target, rcond=None)[0]
    return float(np.square(target - features[:, kept] @ solution).sum())


def greedy(weights: Array, features: Array, units: list[list[int]], removable: list[bool]) -> tuple[list[int], Array]:
    """Removal by brute force: every candidate is refitted at every step."""
    gone: list[int] = []
    losses = []
    for _ in range(sum(removable)):
        errors = {}
        for unit in (u for u, may_go in enumerate(removable) if may_go and u not in gone):
            left = [u for u in range(len(units)) if u not in (*gone, unit)]
            errors[unit] = refitted_error(weights, features, [f for u in left for f in units[u]])
        gone.append(min(errors, key=lambda unit: errors[unit]))
        losses.append(errors[gone[-1]])
    return gone, np.array(losses)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("panel", [1, 4, 64])
def test_elimination_is_a_refit_for_every_removal(
    width: int, seed: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucpe_onnx.selection.elimination._PANEL", panel)
    random = np.random.default_rng(seed)
    features = random.standard_normal((60, 12)) @ random.standard_normal((12, 12))
    weights = random.standard_normal((5, 12))
    units = random.permutation(12).reshape(-1, width)
    removable = random.random(len(units)) < 0.8 if seed % 2 else np.ones(len(units), np.bool_)
    order, steps = eliminate(features.T @ features, weights.T @ weights, units, removable)
    expected, losses = greedy(weights, features, units.tolist(), removable.tolist())
    assert order == expected
    assert np.allclose(np.cumsum(steps), losses, rtol=1e-6)


def test_elimination_of_blocks_of_unequal_length() -> None:
    random = np.random.default_rng(5)
    features, weights = random.standard_normal((40, 6)), random.standard_normal((3, 6))
    units = np.array([[4, -1, -1], [0, 2, 5], [1, 3, -1]])
    order, steps = eliminate(features.T @ features, weights.T @ weights, units, np.ones(3, np.bool_))
    expected, losses = greedy(weights, features, [[4], [0, 2, 5], [1, 3]], [True] * 3)
    assert order == expected
    assert np.allclose(np.cumsum(steps), losses)


def damped_rows(found: Any, group: int = 0) -> Array:
    """Features whose products add up to the covariance with its ridge."""
    covariance, gram = found.safe_covariance[group], found.gram[group]
    ridge = 1e-3 * np.diag(covariance).mean() + 1e-9 * np.diag(gram).mean()
    return np.linalg.cholesky(covariance + ridge * np.eye(len(gram))).T


@pytest.mark.parametrize("kernel", [1, 3])
def test_curve_of_a_convolution(kernel: int) -> None:
    traced, statistics = gathered(convolutions(kernel), normal(8, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics)
    matrix = np.asarray(traced.graph.value(traced.consumers["read"].use.weight), np.float64).reshape(8, -1)
    features = damped_rows(statistics.consumers["read"])
    units = np.arange(6 * kernel**2).reshape(6, -1).tolist()
    order, losses = greedy(matrix, features, units, [True] * 6)
    assert [channels.tolist() for channels in curve.order] == [[channel] for channel in order]
    assert np.allclose(curve.losses, losses / losses[-1])
    assert curve.losses[-1] == pytest.approx(1.0) and (np.diff(curve.losses) >= 0).all()
    scores = score_with_data(traced, "reconstruction", statistics)["read"]
    assert np.allclose(scores[np.concatenate(curve.order)], curve.losses)


def test_taps_are_independent_where_channels_alone_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "MOST_FEATURES", 20)
    traced, statistics = gathered(convolutions(), normal(8, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics)
    matrix = np.asarray(traced.graph.value(traced.consumers["read"].use.weight), np.float64).reshape(8, -1)
    rows = damped_rows(statistics.consumers["read"])
    assert rows.shape == (6, 6)
    order, losses = greedy(matrix, np.kron(rows, np.eye(9)), np.arange(54).reshape(6, 9).tolist(), [True] * 6)
    assert [channels.tolist() for channels in curve.order] == [[channel] for channel in order]
    assert np.allclose(curve.losses, losses / losses[-1])


def test_groups_are_one_order() -> None:
    traced, statistics = gathered(convolutions(groups=2), normal(8, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics)
    weight = np.asarray(traced.graph.value(traced.consumers["read"].use.weight), np.float64).reshape(2, 4, -1)
    matrix, features = np.zeros((8, 54)), np.zeros((54, 54))
    for group in range(2):
        columns = slice(27 * group, 27 * group + 27)
        matrix[4 * group : 4 * group + 4, columns] = weight[group]
        features[columns, columns] = damped_rows(statistics.consumers["read"], group)
    order, losses = greedy(matrix, features, np.arange(54).reshape(6, 9).tolist(), [True] * 6)
    assert [channels.tolist() for channels in curve.order] == [[channel] for channel in order]
    assert np.allclose(curve.losses, losses / losses[-1])


def test_a_slot_in_two_groups_counts_channels_as_independent() -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 4, 3))
    model = net.output(net.conv(net.op("Concat", a, a, axis=1), 6, 3, groups=2, name="read")).model()
    traced, statistics = gathered(model, normal(4, 3, 5, 5))
    costs = score_with_data(traced, "variance", statistics)["read"][:4]
    scores = score_with_data(traced, "reconstruction", statistics)["read"]
    assert np.array_equal(scores[:4], scores[4:])
    assert np.allclose(scores[:4][np.argsort(costs)], np.cumsum(np.sort(costs)) / costs.sum())


def test_channels_that_others_explain_go_first() -> None:
    net = Net()
    weight = net.normal(4, 3, 1, 1)
    weight[3] = 2.0 * weight[0]  # the largest channel, and yet nothing is lost without it
    a = net.conv_with(net.input("x", ("N", 3, 5, 5)), net.weight(weight))
    model = net.output(net.conv(a, 4, name="read")).model()
    traced, statistics = gathered(model, normal(4000, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics)
    assert curve.order[0].tolist()[0] in (0, 3)
    assert curve.losses[0] < 1e-3
    assert curve.losses[1] > 0.02


def test_frozen_channels_stay_and_score_the_most() -> None:
    net = Net()
    x = net.input("x", ("N", 3, 5, 5))
    a = net.op("Concat", x, net.op("Relu", net.conv(x, 5, 3)), axis=1)
    traced, statistics = gathered(net.output(net.conv(a, 6, 3, name="read")).model(), normal(8, 3, 5, 5))
    prunable = traced.consumers["read"].prunable
    curve = removal_curve(traced, "read", statistics)
    assert sorted(np.concatenate(curve.order)) == np.flatnonzero(prunable).tolist() == [3, 4, 5, 6, 7]
    assert curve.losses[-1] < 1.0
    scores = score_with_data(traced, "reconstruction", statistics)["read"]
    assert (scores[:3] == 1.0).all()


@pytest.mark.parametrize("criterion", ["wanda", "energy", "variance", "hrank"])
def test_weights_decide_where_statistics_are_missing(criterion: str) -> None:
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", ("N", 3, 5, 5)), 6, 3))
    traced, statistics = gathered(
        net.output(net.conv(a, 4, 3, name="read"), net.conv(a, 4, 3, name="other")).model(), normal(4, 3, 5, 5)
    )
    scores = score_with_data(traced, criterion, without(statistics, "read"))["read"]
    power = 2 if criterion == "variance" else 1
    assert np.allclose(scores, score_consumers(traced, "l2")["read"] ** power)


def test_reconstruction_where_statistics_are_missing() -> None:
    traced, statistics = gathered(convolutions(), normal(4, 3, 5, 5))
    squares = norms(traced, "read") ** 2
    variances = squares * statistics.consumers["read"].variance
    for lacking, costs in (
        (without(statistics, "read", "gram", "feature_mean"), variances),
        (without(statistics, "read"), squares),
    ):
        curve = removal_curve(traced, "read", lacking)
        assert [channels.tolist() for channels in curve.order] == [[c] for c in np.argsort(costs)]
        assert np.allclose(curve.losses, np.cumsum(np.sort(costs)) / costs.sum())


@pytest.mark.parametrize("build", [convolutions, flattened])
@pytest.mark.parametrize("x", [normal(1, 3, 5, 5), np.zeros((4, 3, 5, 5), np.float32)])
def test_singular_moments(build: Any, x: Array) -> None:
    model = build() if build is convolutions else build(("N", 3, 5, 5))
    traced, statistics = gathered(model, x)
    for criterion, (name, scores) in itertools.product(
        [c for c in DATA_CRITERIA if c != "hrank"], score_with_data(traced, "reconstruction", statistics).items()
    ):
        found = score_with_data(traced, criterion, statistics)[name]
        assert np.isfinite(found).all() and (found >= 0).all()
        assert scores.max() == pytest.approx(1.0)


def test_weights_decide_where_inputs_are_constant() -> None:
    net = Net()
    a = net.op("MatMul", net.input("x", ("N", 3)), net.weight(net.normal(3, 5)))
    traced, statistics = gathered(
        net.output(net.op("MatMul", a, net.weight(net.normal(5, 4)), name="read")).model(), normal(1, 3)
    )
    scores = score_with_data(traced, "reconstruction", statistics)["read"]
    squares = norms(traced, "read") ** 2
    assert np.argsort(scores).tolist() == np.argsort(squares).tolist()
    assert np.allclose(np.sort(scores), np.cumsum(np.sort(squares)) / squares.sum())


def test_a_weight_of_zeros() -> None:
    net = Net()
    a = net.conv(net.input("x", ("N", 3, 5, 5)), 4, 3)
    model = net.output(net.conv_with(a, net.weight(np.zeros((2, 4, 3, 3), np.float32)), name="read")).model()
    traced, statistics = gathered(model, normal(3, 3, 5, 5))
    assert score_with_data(traced, "reconstruction", statistics)["read"].tolist() == [0.0] * 4


def test_what_is_asked_for_in_vain() -> None:
    traced, statistics = gathered(convolutions(), normal(2, 3, 5, 5))
    with pytest.raises(UsageError, match="unknown criterion 'l2': choose from wanda"):
        score_with_data(traced, "l2", statistics)
    with pytest.raises(UsageError, match="criterion hrank: the statistics hold no ranks"):
        score_with_data(traced, "hrank", without(statistics, "read", "rank"))
    with pytest.raises(ModelError, match=r"node 'none': is no consumer; choose from .*read"):
        removal_curve(traced, "none", statistics)


def test_statistics_of_another_model() -> None:
    traced, statistics = gathered(convolutions(), normal(2, 3, 5, 5))
    found = statistics.consumers["read"]
    for other in (
        replace(found, mean=np.zeros(5)),
        replace(found, gram=np.zeros((1, 7, 7)), feature_mean=np.zeros((1, 7))),
    ):
        with pytest.raises(DataError, match=r"node 'read': .* collect them with this model"):
            score_with_data(traced, "reconstruction", Statistics({"read": other}, 2))


def test_every_criterion_scores_what_weights_alone_score() -> None:
    traced, statistics = gathered(convolutions(), normal(2, 3, 5, 5))
    for criterion in DATA_CRITERIA:
        scores, weights = score_with_data(traced, criterion, statistics), score_consumers(traced, "l2")
        assert {n: s.shape for n, s in scores.items()} == {n: s.shape for n, s in weights.items()}
        assert all(s.dtype == np.float64 for s in scores.values())


def test_units_of_very_unequal_lengths_count_as_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, statistics = gathered(flattened(), normal(7, 3, 2, 2))
    monkeypatch.setattr(data_criteria, "_MOST_FEATURES", 15)
    costs = score_with_data(traced, "variance", statistics)["fc"][::4]
    scores = score_with_data(traced, "reconstruction", statistics)["fc"][::4]
    assert np.allclose(scores[np.argsort(costs)], np.cumsum(np.sort(costs)) / costs.sum())


def joint_errors(matrix: Array, features: Array, width: int, order: list[int]) -> Array:
    """Errors of explicit refits after each removal, over that of removing everything."""
    units = np.arange(features.shape[1]).reshape(-1, width)
    kept = [[f for u in range(len(units)) if u not in order[: n + 1] for f in units[u]] for n in range(len(order))]
    return np.array([refitted_error(matrix, features, k) for k in kept]) / refitted_error(matrix, features, [])


@pytest.mark.parametrize("first", [[4], [5, 1], [0, 2, 3]])
def test_what_is_to_go_goes_first(first: list[int]) -> None:
    traced, statistics = gathered(convolutions(), normal(8, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics, first=np.isin(np.arange(6), first))
    order = [int(unit[0]) for unit in curve.order]
    assert sorted(order[: len(first)]) == sorted(first) and sorted(order) == list(range(6))
    matrix = np.asarray(traced.graph.value(traced.consumers["read"].use.weight), np.float64).reshape(8, -1)
    features = damped_rows(statistics.consumers["read"])
    assert np.allclose(curve.losses, joint_errors(matrix, features, 9, order))
    for step in range(len(first), 5):  # and then always the cheapest
        others = (joint_errors(matrix, features, 9, [*order[:step], u])[-1] for u in order[step:])
        assert curve.losses[step] == pytest.approx(min(others))


def test_first_across_groups() -> None:
    traced, statistics = gathered(convolutions(groups=2), normal(8, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics, first=np.isin(np.arange(6), [1, 5]))
    order = [int(unit[0]) for unit in curve.order]
    assert sorted(order[:2]) == [1, 5]
    weight = np.asarray(traced.graph.value(traced.consumers["read"].use.weight), np.float64).reshape(2, 4, -1)
    matrix, features = np.zeros((8, 54)), np.zeros((54, 54))
    for group in range(2):
        columns = slice(27 * group, 27 * group + 27)
        matrix[4 * group : 4 * group + 4, columns] = weight[group]
        features[columns, columns] = damped_rows(statistics.consumers["read"], group)
    assert np.allclose(curve.losses, joint_errors(matrix, features, 9, order))


def test_first_goes_by_whole_units_and_leaves_frozen_ones() -> None:
    traced, statistics = gathered(flattened(), normal(7, 3, 2, 2))
    curve = removal_curve(traced, "fc", statistics, first=np.arange(16) == 9)
    assert curve.order[0].tolist() == [8, 9, 10, 11]
    net = Net()
    x = net.input("x", ("N", 3, 5, 5))
    a = net.op("Concat", x, net.op("Relu", net.conv(x, 5, 3)), axis=1)
    traced, statistics = gathered(net.output(net.conv(a, 6, 3, name="read")).model(), normal(8, 3, 5, 5))
    curve = removal_curve(traced, "read", statistics, first=np.isin(np.arange(8), [0, 6]))
    assert curve.order[0].tolist() == [6] and len(curve.order) == 5


@pytest.mark.parametrize("lost", [("gram", "feature_mean"), ()])
def test_first_without_moments(lost: tuple[str, ...]) -> None:
    traced, statistics = gathered(convolutions(), normal(8, 3, 5, 5))
    fewer = without(statistics, "read", *lost)
    usual = removal_curve(traced, "read", fewer)
    last = int(usual.order[-1][0])
    curve = removal_curve(traced, "read", fewer, first=np.arange(6) == last)
    assert [int(unit[0]) for unit in curve.order] == [last, *(int(unit[0]) for unit in usual.order[:-1])]
    assert curve.losses[-1] == pytest.approx(1.0)
    assert curve.losses[0] == pytest.approx(usual.losses[-1] - usual.losses[-2])  # nobody stands in for another
