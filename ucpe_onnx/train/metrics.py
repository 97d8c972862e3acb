"""How good a network is on samples that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ucpe_onnx.errors import DataError
from ucpe_onnx.train.losses import Loss, Outputs, scores_of


@dataclass(frozen=True)
class Judged:
    """What was found.

    Attributes:
        loss: mean over the samples.
        accuracy: share of samples whose most likely class is their label; None without labels that are classes.
    """

    loss: float
    accuracy: float | None

    @property
    def value(self) -> float:
        """The accuracy if there is one, else the loss."""
        return self.loss if self.accuracy is None else self.accuracy


@torch.no_grad()
def judge(
    network: Callable[[dict[str, Tensor]], Outputs],
    batches: Iterable[tuple[dict[str, Tensor], Tensor | None, int]],
    loss: Loss,
    teacher: Callable[[dict[str, Tensor]], Outputs] | None,
) -> Judged:
    """Go through samples once.

    Args:
        network: from inputs to outputs.
        batches: inputs, labels, and how many samples they are.
        loss: what training minimises.
        teacher: the unpruned network, if it teaches.

    Raises:
        DataError: a label is no class of the network.
    """
    total, right, samples = 0.0, 0, 0
    classified = True
    for feeds, labels, count in batches:
        outputs = network(feeds)
        classified = classified and labels is not None and not labels.is_floating_point() and labels.ndim == 1
        if classified:
            assert labels is not None
            scores = scores_of(outputs)
            if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
                raise DataError(
                    f"labels run from {int(labels.min())} to {int(labels.max())}, but the model knows classes 0 to"
                    f" {scores.shape[1] - 1}; give labels that count as the model's output does"
                )
            right += int((scores.argmax(dim=1) == labels).sum())
        total += count * float(loss(outputs, labels, None if teacher is None else teacher(feeds)))
        samples += count
    return Judged(total / max(samples, 1), right / max(samples, 1) if classified else None)
