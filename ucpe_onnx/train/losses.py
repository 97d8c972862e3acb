"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ucpe_onnx.errors import DataError, UsageError

LOSSES = ("cross-entropy", "mse", "distill")

TEMPERATURE = 2.0
"""Of the teacher's and the student's classes in distillation."""

Outputs: TypeAlias = Mapping[str, Tensor]

Loss: TypeAlias = Callable[[Outputs, Tensor | None, Outputs | None], Tensor]
"""From the outputs, the labels and the teacher's outputs to a scalar."""


def make_loss(kind: str, *, teacher_share: float = 0.5) -> Loss:
    """The loss of a name.

    ``cross-entropy``: between classes and labels; of a teacher too, if there is one. ``mse``: squared distance of all
    float outputs from the labels or, without, from the teacher's outputs, each over the variance of what it should be.
    ``distill``: from the teacher's classes, and from labels if there are any.

    Source of distillation: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Args:
        kind: of ``LOSSES``.
        teacher_share: weight of the teacher where there are labels too.

    Raises:
        UsageError: the name is unknown.
    """
    if kind == "mse":
        return _squared
    if kind in ("cross-entropy", "distill"):
        return lambda outputs, labels, teacher: _classified(outputs, labels, teacher, kind, teacher_share)
    raise UsageError(f"--loss: unknown {kind!r}; choose from {', '.join(LOSSES)}")


def scores_of(outputs: Outputs) -> Tensor:
    """The first float output of shape (samples, classes); axes of size 1 behind the samples don't count.

    Raises:
        DataError: there is none.
    """
    for output in outputs.values():
        value = output
        if value.ndim > 2 and value.numel() and value[0].numel() == max(value.shape[1:]):
            value = value.flatten(1)
        if value.ndim == 2 and value.shape[1] > 1 and value.is_floating_point():
            return value
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items())
    raise DataError(f"no output holds classes, shape (samples, classes): the model gives {shapes}; take --loss mse")


def log_probabilities(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Of scores, or of probabilities where the model ends in a softmax: their logarithms serve as scores."""
    detached = scores.detach()
    normalised = bool((detached >= 0).all()) and bool(((detached.sum(dim=1) - 1).abs() < 1e-3).all())
    logits = torch.log(scores.clamp_min(1e-12)) if normalised else scores
    return functional.log_softmax(logits / temperature, dim=1)


def _classified(
    outputs: Outputs, labels: Tensor | None, teacher: Outputs | None, kind: str, teacher_share: float
) -> Tensor:
    scores = scores_of(outputs)
    parts: list[tuple[float, Tensor]] = []
    if teacher is not None:
        wanted = log_probabilities(scores_of(teacher), TEMPERATURE)
        found = log_probabilities(scores, TEMPERATURE)
        apart = functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
        parts.append((teacher_share if labels is not None else 1.0, apart))
    if labels is not None:
        share = 1 - teacher_share if teacher is not None else 1.0
        parts.append((share, functional.nll_loss(log_probabilities(scores), labels)))
    if not parts:
        raise DataError(f"--loss {kind} needs labels or a teacher: give --labels, or --teacher self")
    return torch.stack([share * part for share, part in parts]).sum()


def _squared(outputs: Outputs, labels: Tensor | None, teacher: Outputs | None) -> Tensor:
    floats = {name: value for name, value in outputs.items() if value.is_floating_point()}
    if teacher is not None:
        wanted = {name: teacher[name] for name in floats}
    elif labels is not None:
        name, value = next(iter(floats.items()))
        if labels.numel() != value.numel():
            raise DataError(
                f"--loss mse: labels have shape {tuple(labels.shape)}, output {name} {tuple(value.shape)};"
                " give one number for each of the output's"
            )
        wanted = {name: labels.reshape(value.shape).to(value.dtype)}
    else:
        raise DataError("--loss mse needs labels or a teacher: give --labels, or --teacher self")
    return torch.stack([_relative(floats[name], value) for name, value in wanted.items()]).mean()


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return functional.mse_loss(found, wanted) / wanted.var(unbiased=False).clamp_min(1e-12)
