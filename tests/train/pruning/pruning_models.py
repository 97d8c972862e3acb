"""Small models and data that the tests of pruning share."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ucpe_onnx.train.pruning import PDP, GradualMagnitude, OneShot, Pruner

METHODS = (PDP, GradualMagnitude, OneShot)
few = settings(max_examples=40, deadline=None, derandomize=True)
GRANULARITIES = ("unstructured", "2:4", "1:3", "channel", "filter")

INPUTS = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Everything(nn.Module):
    """Every kind of module that is pruned: grouped, depthwise, transposed, and linear."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 2, groups=3)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.depthwise(torch.relu(self.grouped(torch.relu(self.stem(images))))))
        return self.head(torch.relu(self.up(features)).mean((2, 3)))


def perceptron(seed: int = 0, inputs: int = 16, hidden: int = 24, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def random_weights(model: nn.Module, seed: int) -> None:
    """Give all parameters other values, of the scale at which the default temperature works."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def train_steps(
    model: nn.Module, optimiser: torch.optim.Optimizer, pruner: Pruner | None, inputs: Tensor, steps: range
) -> None:
    """Train on random labels that depend on the number of the step alone."""
    for step in steps:
        labels = torch.from_numpy(np.random.default_rng(step).integers(0, 4, len(inputs)))
        optimiser.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimiser.step()
        if pruner is not None:
            pruner.step()


def make(method: type[Pruner], model: nn.Module, granularity: str, steps: int, **options: object) -> Pruner:
    ratio = None if ":" in granularity else 0.6
    return method(model, ratio, steps=steps, granularity=granularity, **options)  # type: ignore[arg-type]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
