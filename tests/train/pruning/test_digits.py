"""The whole loop on a real task: nine tenths of the weights go, and handwritten digits are still read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ucpe_onnx.train.pruning import PDP, GradualMagnitude, OneShot, Pruner


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


@pytest.mark.parametrize(
    ("method", "options", "wanted"),
    [
        (PDP, {"ratio": 0.9}, 0.85),
        (PDP, {"ratio": 0.9, "tau_mode": "relative", "detach": True}, 0.85),
        (PDP, {"granularity": "1:8"}, 0.85),
        (PDP, {"ratio": 0.6, "granularity": "channel", "tau_mode": "relative"}, 0.85),
        (GradualMagnitude, {"ratio": 0.9}, 0.85),
        (OneShot, {"ratio": 0.9}, 0.4),
    ],
)
def test_digits_are_read_with_few_weights(method: type[Pruner], options: dict[str, object], wanted: float) -> None:
    images, labels = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    steps = 240
    pruner = method(model, steps=steps, **options)  # type: ignore[arg-type]
    for step in range(steps):
        batch = torch.randint(0, 1400, (48,), generator=torch.Generator().manual_seed(step))
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
        optimiser.zero_grad()
        pruner.step()
    pruner.finish()
    accuracy = float((model(images[1400:]).argmax(1) == labels[1400:]).float().mean())
    assert accuracy > wanted
    weights = torch.cat([module.weight.flatten() for module in model if isinstance(module, nn.Linear)])
    if options.get("granularity") is None:
        assert int((weights == 0).sum()) == int(0.9 * weights.numel())
