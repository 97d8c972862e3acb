"""Everything that a training run may be told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ucpe_onnx.errors import UsageError

GRANULARITIES = ("channel", "filter", "segment", "unstructured")
METHODS = ("pdp", "gradual", "one-shot")
OPTIMISERS = ("sgd", "adamw")
DEVICES = ("auto", "cpu", "cuda")
STRUCTURED = ("channel", "filter", "segment")
"""Granularities whose masks are masks of channels, which the compiler exports."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run.

    Attributes:
        granularity: what is kept or dropped as a whole: ``channel``, a consumer's input channel; ``filter``, a channel
            for all its consumers, judged by the weights that make it; ``segment``, the same, judged by those that read
            it too; ``unstructured``, a weight; or N:M, N weights of M that follow each other.
        ratio: share to drop; N:M says it itself.
        method: ``pdp``, or a baseline: ``gradual`` magnitude pruning, or ``one-shot`` and fine-tuning.
        epochs: passes over the samples.
        batch: samples in a step.
        lr: learning rate at the start; it falls to zero along a cosine.
        optimiser: ``sgd`` with momentum, or ``adamw``.
        momentum: of ``sgd``.
        weight_decay: of either.
        clip: largest norm of the gradient; 0 for no limit.
        loss: of :data:`ucpe_onnx.train.losses.LOSSES`; None: cross-entropy if there are labels, else distillation.
        teacher: learn from the unpruned model's outputs too; None: if there are no labels.
        augment: of :data:`ucpe_onnx.train.augment.KINDS`.
        warmup: share of the steps before anything is dropped.
        ramp: share of the steps in which the ratio grows to its end.
        shape: of the growth, ``linear`` as in the paper or ``cubic``.
        tau: temperature of the soft mask at first.
        relative_tau: ``tau`` is a share of the squared threshold, not a squared weight.
        cooling: share of the temperature that is left when masks become hard; 1: it stays, as in the paper;
            None: PDP's default.
        detach: no gradient flows through the mask.
        settle: share of the steps at the full ratio after which masks become hard and stay; 1: only in the end, as in
            the paper.
        scope: ``global``: layers lose what a ranking of all magnitudes says; ``local``: all the same share.
        exclude: patterns of layers that stay whole.
        patience: epochs at the full ratio without an improvement after which training ends; None for never.
        seed: of everything random.
        device: ``cpu``, ``cuda``, or ``auto``: CUDA if torch sees one.
        threads: of torch; 0 leaves its choice.
        freeze_statistics: batch normalisations keep the means and variances of the file.
    """

    granularity: str = "channel"
    ratio: float = 0.5
    method: str = "pdp"
    epochs: int = 10
    batch: int = 64
    lr: float = 0.01
    optimiser: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 1.0
    loss: str | None = None
    teacher: bool | None = None
    augment: tuple[str, ...] = ()
    warmup: float = 0.0
    ramp: float = 0.1
    shape: str = "cubic"
    tau: float | None = None
    relative_tau: bool = True
    cooling: float | None = None
    detach: bool = False
    settle: float = 0.2
    scope: str = "global"
    exclude: tuple[str, ...] = ()
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    freeze_statistics: bool = False

    @property
    def structured(self) -> bool:
        """Whether what comes out are masks of channels."""
        return self.granularity in STRUCTURED

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def checked(self) -> TrainOptions:
        """These options.

        Raises:
            UsageError: one makes no sense; the line names its flag.
        """
        self._check_choices()
        shares = {"ratio": self.ratio, "warmup": self.warmup}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise UsageError(f"--{name}: {value} is no share; give a number from 0 to below 1")
        if not 0 <= self.settle <= 1:
            raise UsageError(f"--settle: {self.settle} is no share; give a number from 0 to 1")
        if self.cooling is not None and not 0 < self.cooling <= 1:
            raise UsageError(f"--cooling: {self.cooling} is no share; give a number above 0, up to 1")
        if not 0 < self.ramp <= 1 - self.warmup:
            raise UsageError(f"--ramp {self.ramp} and --warmup {self.warmup} are shares of all steps, at most 1 in all")
        least = {"epochs": (self.epochs, 1), "batch": (self.batch, 1), "patience": (self.patience or 1, 1)}
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise UsageError(f"--{name}: {value} must be at least {lowest}")
        for name, value in {"lr": self.lr, "tau": 1.0 if self.tau is None else self.tau}.items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"--{name}: {value} must be a positive number")
        for name, value in {"momentum": self.momentum, "weight-decay": self.weight_decay, "clip": self.clip}.items():
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"--{name}: {value} must not be negative")
        return self

    def _check_choices(self) -> None:
        choices = {
            "method": (self.method, METHODS),
            "optimiser": (self.optimiser, OPTIMISERS),
            "device": (self.device, DEVICES),
            "shape": (self.shape, ("linear", "cubic")),
            "scope": (self.scope, ("global", "local")),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise UsageError(f"--{name}: unknown {value!r}; choose from {', '.join(known)}")
        parts = self.granularity.split(":")
        n_of_m = len(parts) == 2 and all(part.isdigit() for part in parts) and 0 < int(parts[0]) < int(parts[1])
        if self.granularity not in GRANULARITIES and not n_of_m:
            listed = ", ".join(GRANULARITIES)
            raise UsageError(f"--granularity: unknown {self.granularity!r}; choose from {listed}, or N:M such as 2:4")
