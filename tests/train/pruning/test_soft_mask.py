"""The mask of PDP: its values, its gradient, and thresholds that drop exactly what they should."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.pruning.pruning_models import few
from ucpe_onnx.train.pruning.soft_mask import (
    keep_largest,
    soft_mask,
    squared_threshold,
    temperature,
    threshold,
    undecidedness,
)

magnitudes = st.floats(1e-3, 10)
taus = st.floats(1e-4, 10)
weights = st.lists(st.floats(-2, 2), min_size=1, max_size=30)


def mask(weight: float, root: float, tau: float) -> float:
    return float(soft_mask(torch.tensor(weight, dtype=torch.float64) ** 2, root**2, tau))


@few
@given(magnitudes, taus)
def test_it_is_half_at_the_threshold(root: float, tau: float) -> None:
    assert mask(root, root, tau) == pytest.approx(0.5)


@few
@given(st.floats(-5, 5), st.floats(-5, 5), magnitudes, taus)
def test_it_is_even_and_grows_with_the_magnitude(one: float, other: float, root: float, tau: float) -> None:
    assert mask(-one, root, tau) == mask(one, root, tau)
    small, large = sorted((abs(one), abs(other)))
    assert mask(small, root, tau) <= mask(large, root, tau)


@few
@given(magnitudes, taus)
def test_its_limits(root: float, tau: float) -> None:
    assert mask(0, root, tau) == pytest.approx(1 / (1 + math.exp(min(root**2 / tau, 700))), abs=1e-12)
    assert mask(1e3, root, tau) == 1
    assert mask(0.9 * root, root, 1e-9 * root**2) == pytest.approx(0)
    assert mask(1.1 * root, root, 1e-9 * root**2) == pytest.approx(1)


@few
@given(weights, magnitudes, st.floats(1e-2, 10))
def test_the_gradient_of_a_masked_weight(values: list[float], root: float, tau: float) -> None:
    """m + 2 w² / tau m (1 - m), which is more than 1 near the threshold."""
    weight = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    m = soft_mask(weight.square(), root**2, tau)
    (m * weight).sum().backward()
    torch.testing.assert_close(weight.grad, (m + 2 * weight**2 / tau * m * (1 - m)).detach())
    assert torch.autograd.gradcheck(lambda w: soft_mask(w.square(), root**2, tau) * w, weight, atol=1e-4)


@few
@given(st.floats(0, 1), magnitudes, taus)
def test_it_is_never_denormal(share: float, root: float, tau: float) -> None:
    found = soft_mask(torch.tensor(share * root) ** 2, root**2, tau)
    assert float(found) == 0 or float(found) * torch.finfo(torch.float32).eps > torch.finfo(torch.float32).tiny


@few
@given(weights, st.data())
def test_a_threshold_lies_midway(values: list[float], data: st.DataObject) -> None:
    roots = torch.tensor(values, dtype=torch.float64).abs()
    dropped = data.draw(st.integers(1, len(values)))
    ordered = sorted(roots.tolist())
    if dropped < len(values):
        assert float(threshold(roots, dropped)) == (ordered[dropped - 1] + ordered[dropped]) / 2
    else:
        assert float(threshold(roots, dropped)) >= ordered[-1]


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_a_hard_mask_drops_exactly_so_many_whatever_ties_there_are(values: list[int], data: st.DataObject) -> None:
    roots = torch.tensor(values, dtype=torch.float32)
    dropped = data.draw(st.integers(0, len(values)))
    keep = keep_largest(roots, dropped)
    assert int((~keep).sum()) == dropped
    if not 0 < dropped < len(values):
        return
    assert roots[~keep].max() <= roots[keep].min()
    if roots[~keep].max() == roots[keep].min():  # of equal ones the first go
        tied = keep[roots == roots[keep].min()].tolist()
        assert tied == sorted(tied)


@few
@given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=40, unique_by=lambda value: round(value, 4)), st.data())
def test_what_is_below_the_threshold_has_a_mask_below_a_half(values: list[float], data: st.DataObject) -> None:
    roots = torch.tensor(values, dtype=torch.float64)
    dropped = data.draw(st.integers(1, len(values) - 1))
    below = soft_mask(roots.square(), squared_threshold(roots, dropped), 1e-4) < 0.5
    assert torch.equal(below, ~keep_largest(roots, dropped))


@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-10, 1e-4, 1.0, 1e10])
def test_numbers_stay_finite_at_any_scale(mode: str, scale: float) -> None:
    weight = (scale * torch.tensor([0.0, 0.0, 1.0, -1.0, 2.0, 3.0])).requires_grad_()
    for dropped in range(7):
        squared = squared_threshold(weight.abs(), dropped)
        m = soft_mask(weight.square(), squared, temperature(squared, 1e-4, mode))
        (gradient,) = torch.autograd.grad((m * weight).sum(), weight)
        assert bool(torch.isfinite(m).all() and torch.isfinite(gradient).all())
        if not dropped:
            assert bool((m == 1).all() and (gradient == 1).all())


@few
@given(st.floats(1e-3, 1e3))
def test_a_relative_temperature_does_not_mind_scale(scale: float) -> None:
    roots = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    masks = []
    for values in (roots, scale * roots):
        squared = squared_threshold(values, 2)
        masks.append(soft_mask(values.square(), squared, temperature(squared, 0.1, "relative")))
    torch.testing.assert_close(*masks)


def test_undecidedness() -> None:
    assert undecidedness(torch.tensor([0.0, 1.0])) == 0
    assert undecidedness(torch.tensor([0.5, 0.5])) == 1
    assert undecidedness(torch.tensor([])) == 0


def test_impossible_thresholds_are_refused() -> None:
    for dropped in (0, 4):
        with pytest.raises(ValueError, match="can't go"):
            threshold(torch.ones(3), dropped)
