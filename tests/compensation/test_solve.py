"""Ridge regression, against plain least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Array
from ucpe_onnx.activations.moments import Moments
from ucpe_onnx.compensation import solve
from ucpe_onnx.compensation.solve import FALLBACK, refit


def moments(features: Array, targets: Array) -> Moments:
    """Of rows of one group, shape (rows, features) and (rows, targets)."""
    found = Moments.empty(1, features.shape[1], targets.shape[1])
    found.add(features[None].astype(np.float32), targets[None].astype(np.float32))
    return found


def nothing(features: int, targets: int) -> Moments:
    return Moments.empty(1, features, targets)


def squares(matrices: Array, features: Array, targets: Array) -> float:
    made = features @ matrices[0, :, :-1].T + matrices[0, :, -1]
    return float(np.square(made - targets).sum(axis=1).mean())


def data(rows: int, features: int, targets: int, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    f = random.standard_normal((rows, features)).astype(np.float32)
    t = f @ random.standard_normal((features, targets)) + random.standard_normal(targets)
    return f, (t + 0.1 * random.standard_normal(t.shape)).astype(np.float32)


def test_moments_are_sums_over_rows_however_they_come():
    f, t = data(60, 4, 3)
    whole, parts = moments(f, t), nothing(4, 3)
    for cut in (slice(0, 7), slice(7, 7), slice(7, 60)):
        parts.add(f[None, cut], t[None, cut])
    ones = np.column_stack([f, np.ones(60)]).astype(np.float64)
    for found in (whole, parts, moments(f[:20], t[:20]).plus(moments(f[20:], t[20:]))):
        np.testing.assert_allclose(found.gram[0], ones.T @ ones, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.cross[0], t.T.astype(np.float64) @ ones, rtol=1e-5, atol=1e-4)
        assert found.rows == 60
        assert found.variance == pytest.approx(t.var(axis=0).sum(), rel=1e-4)
        matrices = np.random.default_rng(5).standard_normal((1, 3, 5))
        assert found.error(matrices) == pytest.approx(squares(matrices, f, t), rel=1e-4)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_tiny_ridge_is_least_squares(monkeypatch, held_out):
    monkeypatch.setattr(solve, "RIDGES", (1e-9,))
    monkeypatch.setattr(solve, "FALLBACK", 1e-9)
    f, t = data(200, 5, 3)
    rest = moments(f[150:], t[150:]) if held_out else nothing(5, 3)
    found = refit(moments(f[:150], t[:150]) if held_out else moments(f, t), rest, np.zeros((1, 3, 6)), bias=True)
    wanted, *_ = np.linalg.lstsq(np.column_stack([f, np.ones(200)]).astype(np.float64), t, rcond=None)
    np.testing.assert_allclose(found.matrices[0], wanted.T, rtol=1e-4, atol=1e-5)
    assert found.ridge == 1e-9 and found.after < found.before


def test_without_a_bias_the_last_column_stays(monkeypatch):
    monkeypatch.setattr(solve, "RIDGES", (1e-9,))
    f, t = data(200, 4, 2)
    start = np.zeros((1, 2, 5))
    start[..., -1] = 0.25
    found = refit(moments(f[:150], t[:150]), moments(f[150:], t[150:]), start, bias=False)
    wanted, *_ = np.linalg.lstsq(f.astype(np.float64), t - 0.25, rcond=None)
    np.testing.assert_allclose(found.matrices[0, :, :-1], wanted.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.matrices[..., -1], start[..., -1])


def test_a_strong_ridge_stays_near_the_start(monkeypatch):
    f, t = data(100, 4, 2)
    start = np.random.default_rng(1).standard_normal((1, 2, 5))
    away = []
    for strength in (1e-3, 1.0, 1e3):
        monkeypatch.setattr(solve, "RIDGES", (strength,))
        found = refit(moments(f[:80], t[:80]), moments(f[80:], t[80:]), start, bias=True)
        away.append(float(np.square(found.matrices - start)[..., :-1].sum()))
    assert away[0] > away[1] > away[2]


def test_without_rows_to_hold_out_the_fallback_is_taken():
    f, t = data(3, 4, 2)
    found = refit(moments(f, t), nothing(4, 2), np.zeros((1, 2, 5)), bias=True)
    assert found.ridge == FALLBACK and np.isfinite(found.matrices).all()


def test_groups_are_fitted_on_their_own(monkeypatch):
    monkeypatch.setattr(solve, "RIDGES", (1e-9,))
    cases = [data(100, 3, 2, seed) for seed in range(2)]
    both = [Moments.empty(2, 3, 2) for _ in range(2)]
    for part, rows in zip(both, (slice(0, 80), slice(80, 100)), strict=True):
        part.add(np.stack([f[rows] for f, _ in cases]), np.stack([t[rows] for _, t in cases]))
    found = refit(*both, np.zeros((2, 2, 4)), bias=True)
    for group, (f, t) in enumerate(cases):
        alone = refit(moments(f[:80], t[:80]), moments(f[80:], t[80:]), np.zeros((1, 2, 4)), bias=True)
        np.testing.assert_allclose(found.matrices[group], alone.matrices[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("kind", ["constant", "zero", "repeated", "huge", "tiny"])
@pytest.mark.parametrize("bias", [True, False])
def test_singular_moments_give_finite_weights(rows, kind, bias):
    f, t = data(rows, 6, 2)
    if kind == "repeated":
        f[:, 3:] = f[:, :3]
    elif kind in ("constant", "zero"):
        f[:] = 1.5 if kind == "constant" else 0.0
    else:
        f *= 1e15 if kind == "huge" else 1e-20
    start = np.random.default_rng(2).standard_normal((1, 2, 7))
    for held_out in (moments(f, t), nothing(6, 2)):
        found = refit(moments(f, t), held_out, start, bias=bias)
        assert np.isfinite(found.matrices).all()
        assert found.after <= found.before


def test_what_overflows_leaves_the_weights():
    f, t = data(20, 3, 2)
    start = np.zeros((1, 2, 4))
    with np.errstate(over="ignore", invalid="ignore"):
        found = refit(moments(f * 1e30, t), moments(f, t), start, bias=True)
        worse = refit(moments(f, t), moments(f * 1e30, t * 1e30), start, bias=True)
    for result in (found, worse):
        assert result.ridge is None
        np.testing.assert_array_equal(result.matrices, start)


def test_where_there_is_nothing_to_gain_the_weights_stay():
    f, _ = data(200, 4, 2)
    start = np.random.default_rng(3).standard_normal((1, 2, 5))
    t = f @ start[0, :, :-1].T + start[0, :, -1]
    found = refit(moments(f[:150], t[:150]), moments(f[150:], t[150:]), start, bias=True)
    assert found.ridge is None and found.before == found.after < 1e-5
    np.testing.assert_array_equal(found.matrices, start)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    rows=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    features=st.integers(1, 8),
    seed=st.integers(0, 999),
    bias=st.booleans(),
    shift=st.sampled_from([0.0, 10.0]),
)
def test_never_worse_on_rows_held_out(rows, features, seed, bias, shift):
    random = np.random.default_rng(seed)
    fitted, held_out = (
        moments(random.standard_normal((n, features)) + shift, random.standard_normal((n, 3))) for n in rows
    )
    start = random.standard_normal((1, 3, features + 1))
    found = refit(fitted, held_out, start, bias=bias)
    assert held_out.error(found.matrices) <= held_out.error(start)
