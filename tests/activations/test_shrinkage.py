"""Covariances from few samples."""

from __future__ import annotations

import numpy as np
import pytest

from ucpe_onnx.activations.shrinkage import shrunk


def sample(rows: int, features: int, rank: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of features that a few common causes make, and noise; and their true covariance."""
    random = np.random.default_rng(seed)
    causes = random.normal(size=(features, rank)) * random.uniform(0.1, 0.8, size=(features, 1))
    noise = random.uniform(0.5, 2, size=features)
    drawn = random.normal(size=(rows, rank)) @ causes.T + random.normal(size=(rows, features)) * noise
    return np.cov(drawn.T, bias=True), causes @ causes.T + np.diag(noise**2)


@pytest.mark.parametrize(("rows", "features"), [(20, 50), (50, 50), (60, 20)])
def test_nearer_to_the_truth(rows: int, features: int) -> None:
    nearer = 0
    for seed in range(20):
        found, truth = sample(rows, features, seed=seed)
        scale = np.sqrt(np.outer(np.diag(truth), np.diag(truth)))
        errors = [np.square((each - truth) / scale).sum() for each in (shrunk(found, rows), found)]
        nearer += errors[0] < errors[1]
    assert nearer >= 15


def test_variances_stay_and_with_many_rows_so_does_the_rest() -> None:
    found, _ = sample(30, 40)
    few, many = shrunk(found, 30), shrunk(found, 1e9)
    assert np.array_equal(np.diag(few), np.diag(found))
    assert np.allclose(many, found, rtol=1e-5, atol=1e-7)
    apart = ~np.eye(40, dtype=bool)
    ratios = few[apart] / found[apart]
    assert np.allclose(ratios, ratios[0]) and 0 < ratios[0] < 0.99
    assert np.linalg.eigvalsh(few).min() > 1e-3 > np.linalg.eigvalsh(found).min()


def test_a_feature_is_not_free_because_there_are_few_rows() -> None:
    """Independent features, fewer rows than features: on these rows each follows from the others."""
    drawn = np.random.default_rng(0).normal(size=(20, 40))
    found = np.cov(drawn.T, bias=True)

    def left(covariance: np.ndarray) -> float:
        inverse = np.linalg.inv(covariance + 1e-6 * np.eye(40))
        return float(1 / inverse[0, 0])

    assert left(found) < 1e-3 and left(shrunk(found, 20)) > 0.5 * found[0, 0]


def test_groups_by_themselves_and_constant_features() -> None:
    one, other = sample(20, 10, seed=1)[0], sample(20, 10, seed=2)[0]
    assert np.allclose(shrunk(np.stack([one, other]), 20), [shrunk(one, 20), shrunk(other, 20)])
    constant = one.copy()
    constant[3] = constant[:, 3] = 0
    found = shrunk(constant, 20)
    assert np.isfinite(found).all() and not found[3].any()
    rest = np.delete(np.delete(one, 3, 0), 3, 1)
    assert np.allclose(np.delete(np.delete(found, 3, 0), 3, 1), shrunk(rest, 20))
    assert not shrunk(np.zeros((4, 4)), 20).any()
