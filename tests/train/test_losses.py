"""Losses against what they are defined as, and images that are changed at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ucpe_onnx.errors import DataError, UsageError
from ucpe_onnx.train.augment import augment
from ucpe_onnx.train.losses import LOSSES, TEMPERATURE, log_probabilities, make_loss
from ucpe_onnx.train.metrics import judge

SCORES = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]])
TAUGHT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
LABELS = torch.tensor([0, 1])


def test_cross_entropy() -> None:
    loss = make_loss("cross-entropy")
    wanted = functional.cross_entropy(SCORES, LABELS)
    assert loss({"y": SCORES}, LABELS, None) == pytest.approx(float(wanted))
    assert loss({"ids": LABELS, "y": SCORES[:, :, None, None]}, LABELS, None) == pytest.approx(float(wanted))


def test_axes_of_size_1_do_not_count() -> None:
    loss = make_loss("cross-entropy")
    wanted = loss({"y": SCORES}, LABELS, None)
    for scores in (SCORES[:, None], SCORES[:, :, None, None], SCORES[:, None, :, None]):
        assert torch.equal(loss({"y": scores}, LABELS, None), wanted)


def test_a_network_that_ends_in_a_softmax_is_not_normalised_twice() -> None:
    wanted = functional.log_softmax(SCORES, dim=1)
    assert torch.allclose(log_probabilities(SCORES.softmax(dim=1)), wanted, atol=1e-5)
    loss = make_loss("cross-entropy")({"y": SCORES.softmax(dim=1)}, LABELS, None)
    assert loss == pytest.approx(float(functional.cross_entropy(SCORES, LABELS)), rel=1e-4)


def test_distillation() -> None:
    p, q = (functional.softmax(s / TEMPERATURE, dim=1) for s in (TAUGHT, SCORES))
    apart = float((p * (p / q).log()).sum(dim=1).mean()) * TEMPERATURE**2
    assert make_loss("distill")({"y": SCORES}, None, {"y": TAUGHT}) == pytest.approx(apart, rel=1e-5)
    both = 0.5 * apart + 0.5 * float(functional.cross_entropy(SCORES, LABELS))
    assert make_loss("distill")({"y": SCORES}, LABELS, {"y": TAUGHT}) == pytest.approx(both, rel=1e-5)
    assert make_loss("distill")({"y": TAUGHT}, None, {"y": TAUGHT}) == pytest.approx(0, abs=1e-6)


def test_squared_distance_is_relative_to_what_should_be() -> None:
    loss = make_loss("mse")
    wanted = float(((SCORES - TAUGHT) ** 2).mean() / TAUGHT.var(unbiased=False))
    assert loss({"y": SCORES}, None, {"y": TAUGHT}) == pytest.approx(wanted)
    assert loss({"y": 10 * SCORES}, 10 * TAUGHT, None) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_without_anything_to_learn_from(kind: str) -> None:
    with pytest.raises(DataError, match="needs labels or a teacher"):
        make_loss(kind)({"y": SCORES}, None, None)


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown 'hinge'; choose from cross-entropy, mse, distill"):
        make_loss("hinge")
    with pytest.raises(DataError, match="no output holds classes"):
        make_loss("cross-entropy")({"y": SCORES[:, :, None].repeat(1, 1, 4)}, LABELS, None)
    with pytest.raises(DataError, match="give one number for each of the output's"):
        make_loss("mse")({"y": SCORES}, LABELS, None)


def test_judging_counts_samples_not_batches() -> None:
    batches = [({"x": SCORES[:1]}, LABELS[:1], 1), ({"x": SCORES.repeat(2, 1)}, LABELS.repeat(2), 4)]
    found = judge(lambda feeds: {"y": feeds["x"]}, batches, make_loss("cross-entropy"), None)
    each = functional.cross_entropy(SCORES, LABELS, reduction="none")
    assert found.loss == pytest.approx(float((3 * each[0] + 2 * each[1]) / 5))
    assert found.accuracy == found.value == pytest.approx(3 / 5)
    strange = [({"x": SCORES}, torch.tensor([0, 3]), 2)]
    with pytest.raises(DataError, match="labels run from 0 to 3, but the model knows classes 0 to 2"):
        judge(lambda feeds: {"y": feeds["x"]}, strange, make_loss("cross-entropy"), None)


def images(count: int = 64) -> dict[str, torch.Tensor]:
    ramp = torch.arange(16.0).reshape(4, 4).repeat(2, 2)
    return {"x": (ramp + torch.arange(3.0)[:, None, None]).repeat(count, 1, 1, 1), "n": torch.arange(count)}


def test_mirrored_images() -> None:
    feeds = images()
    found = augment(feeds, ["flip"], torch.Generator().manual_seed(0))
    mirrored = (found["x"] != feeds["x"]).flatten(1).any(dim=1)
    assert 16 < int(mirrored.sum()) < 48 and torch.equal(found["n"], feeds["n"])
    assert torch.equal(found["x"][mirrored], feeds["x"][mirrored].flip(-1))


def test_shifted_images_are_shifted_alike_in_all_channels() -> None:
    feeds = {"x": torch.arange(3 * 16 * 16.0).reshape(1, 3, 16, 16).repeat(200, 1, 1, 1)}
    found = augment(feeds, ["crop"], torch.Generator().manual_seed(0))["x"]
    assert found.shape == feeds["x"].shape
    inner = found[:, :, 4:12, 4:12] - feeds["x"][:, :, 4:12, 4:12]
    shifts = inner.flatten(1)
    assert torch.equal(shifts, shifts[:, :1].expand_as(shifts)), "not a shift by whole pixels"
    assert {int(value) for value in shifts[:, 0]} == {
        16 * rows + columns for rows in range(-2, 3) for columns in range(-2, 3)
    }


def test_changes_that_make_no_sense() -> None:
    generator = torch.Generator()
    with pytest.raises(UsageError, match="unknown 'blur'; choose from flip, crop"):
        augment(images(), ["blur"], generator)
    with pytest.raises(UsageError, match="no input of images"):
        augment({"x": torch.zeros(2, 3)}, ["flip"], generator)
    assert augment({"x": torch.zeros(2, 3)}, [], generator)["x"].shape == (2, 3)


def test_the_same_seed_changes_images_alike() -> None:
    feeds = {"x": torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32))}
    one, same, other = (
        augment(feeds, ["flip", "crop"], torch.Generator().manual_seed(seed))["x"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
