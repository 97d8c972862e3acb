"""Training of the digits network, and what one-shot channel removal does to it.

The loss is a label-smoothed cross-entropy plus a scale-free group lasso on the input channels of every layer
but the stem's. With `n_c = ||W[:, c]||`, a layer adds `mean(n) / sqrt(mean(n^2))`: 1 where all channels weigh the
same, less where some fade. The plain sum of norms is no use before a batch normalisation, which undoes any
scale: it faded whole branches to 1e-9 without a trace in the accuracy.

The task needs far fewer channels than the network has. Without the lasso it spreads over all of them: zeroing
the weakest quarter of every layer's inputs leaves an accuracy of 0.72, and the weakest half leaves chance. With
it the spare channels fade. The channel dropout pulls the other way, against a few channels that carry everything.
Nothing is removed or fine-tuned, but note that such a network suits criteria that look at weight norms.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.recipes.digits_data import DigitsSplit
from models.recipes.digits_net import DigitsNet


@dataclass(frozen=True)
class Settings:
    """What the recipe trains with.

    Attributes:
        epochs: Passes over the training images.
        batch: Images per step.
        learning_rate: Peak rate of the cosine schedule.
        momentum: Nesterov momentum.
        weight_decay: L2 decay of every parameter.
        drop: Probability that an input channel of a convolution is dropped.
        group_lasso: Weight of the scale-free group lasso, summed over the layers.
        label_smoothing: Mass moved from the true class to all classes.
    """

    epochs: int = 80
    batch: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-3
    drop: float = 0.1
    group_lasso: float = 0.4
    label_smoothing: float = 0.05


def prunable(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose input channels can be removed: all but the stem, which sees the image."""
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    return [layer for layer in layers if layer.weight.shape[1] > 1]


def channel_norms(weight: Tensor) -> Tensor:
    """Return the L2 norm of each input channel of a convolution or linear weight."""
    return weight.transpose(0, 1).flatten(1).norm(dim=1)


def augment(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little: up to 10 degrees, 10 % and one pixel."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * np.deg2rad(10)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.1
    # affine_grid measures in half images: one pixel of eight is 0.25.
    shift = (torch.rand(count, 2) * 2 - 1) * 0.25
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(count, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(split: DigitsSplit, settings: Settings, seed: int) -> DigitsNet:
    """Train from scratch with SGD and a cosine schedule; return the network in evaluation mode."""
    torch.manual_seed(seed)
    images, labels = torch.from_numpy(split.train_images), torch.from_numpy(split.train_labels)
    model = DigitsNet(settings.drop).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    steps = settings.epochs * (len(images) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(settings.epochs):
        # The last, smaller batch is skipped: every epoch shuffles anew.
        for rows in torch.randperm(len(images)).split(settings.batch)[: len(images) // settings.batch]:
            loss = _loss(model, augment(images[rows]), labels[rows], settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _loss(model: DigitsNet, images: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    cross_entropy = functional.cross_entropy(model(images), labels, label_smoothing=settings.label_smoothing)
    return cross_entropy + settings.group_lasso * sum(_spread(layer.weight) for layer in prunable(model))


def _spread(weight: Tensor) -> Tensor:
    """Return the mean over the root mean square of the input channels' norms: 1 where all are equal."""
    norms = channel_norms(weight)
    return norms.mean() / norms.square().mean().sqrt()


@torch.no_grad()
def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of images classified correctly."""
    predicted = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    return float((predicted == labels).mean())


@torch.no_grad()
def without_weakest_channels(model: DigitsNet, ratio: float) -> DigitsNet:
    """Return a copy in which each prunable layer ignores its ``int(ratio * C_in)`` weakest input channels."""
    pruned = copy.deepcopy(model)
    for layer in prunable(pruned):
        norms = channel_norms(layer.weight)
        layer.weight[:, norms.argsort()[: int(ratio * len(norms))]] = 0
    return pruned
