"""The training loop: steps, epochs, what is judged after each, and going on from a checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ucpe_onnx.errors import DataError, ModelError, UsageError
from ucpe_onnx.train.augment import augment
from ucpe_onnx.train.checkpoint import load_checkpoint, save_checkpoint
from ucpe_onnx.train.losses import make_loss
from ucpe_onnx.train.metrics import Judged, judge
from ucpe_onnx.train.network import Network
from ucpe_onnx.train.options import TrainOptions
from ucpe_onnx.train.pruning import PDP, Allotment, GradualMagnitude, OneShot, PrunableLayer, Pruner, Schedule, Sparsity
from ucpe_onnx.train.samples import Batch, TrainingSamples

_RENEWED = 50
"""Batches that means and variances of batch normalisations are renewed from in the end."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the samples.

    Attributes:
        number: from 1.
        loss: mean over its steps.
        judged: loss on the samples that judge, with masks as they are.
        accuracy: top-1 accuracy on them; None without labels.
        sparsity: share of all that may go that the hard masks drop now.
        undecided: how far the masks are from hard, from 0 to 1.
        seconds: how long it took.
    """

    number: int
    loss: float
    judged: float
    accuracy: float | None
    sparsity: float
    undecided: float
    seconds: float


Progress: TypeAlias = Callable[[str, float, "Epoch | None"], None]
"""Told what is being done, the share of it that is done, and an epoch when it is over."""


class Trainer:
    """Trains one network and prunes it on the way.

    Args:
        network: the network; it is changed.
        layers: what is pruned of it.
        samples: those to train on, and those to judge by.
        options: how.
        tell: told how far it is.

    Attributes:
        epochs: the training curves so far.
        before: what the network is judged at first: accuracy, or loss if there are no labels.
        masks: hard masks by name of layer, once it is over.
        sparsity: of each layer, likewise.

    Raises:
        UsageError: there is no such device.
        DataError: there are no labels for a loss that needs them.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[PrunableLayer],
        samples: tuple[TrainingSamples, TrainingSamples],
        options: TrainOptions,
        tell: Progress,
    ) -> None:
        self.network, self.options, self._tell = network, options, tell
        self.samples, self.judges = samples
        self.device = _device(options.device)
        self.network.to(self.device)
        self.network.freeze_statistics = options.freeze_statistics
        labelled = self.samples.labelled
        self._loss = make_loss(options.loss or ("cross-entropy" if labelled else "distill"))
        taught = not labelled if options.teacher is None else options.teacher
        self._teacher = copy.deepcopy(network).eval() if taught else None
        self.epochs: list[Epoch] = []
        self._check_batches()
        self._start = self._judged()
        self.before = self._start.value
        self._pruner = _pruner(layers, options, options.epochs * self.steps)
        parameters = [value for value in network.parameters() if value.requires_grad]
        self._optimiser = _optimiser(parameters, options)
        self._parameters = parameters
        self.masks: dict[str, Tensor] = {}
        self.sparsity: dict[str, Sparsity] = {}

    @property
    def measure(self) -> str:
        """What ``before`` and the result are."""
        return "loss" if self._start.accuracy is None else "accuracy"

    @cached_property
    def steps(self) -> int:
        """Steps in an epoch; a stream is gone through once to count them."""
        if self.samples.count is not None and self.samples.data is not None and not self.samples.data.whole:
            return math.ceil(self.samples.count / self.options.batch)
        self._tell("count", 0.0, None)
        return sum(1 for _ in self.samples.batches(self.options.batch))

    def fit(self, checkpoint: Path | None, identity: Mapping[str, Any]) -> float:
        """Train, write zeros where masks drop, renew statistics, and judge.

        Args:
            checkpoint: file to write after every epoch, and to go on from; None for none.
            identity: what a checkpoint has to agree with.

        Returns:
            What ``before`` is, of the result.

        Raises:
            ModelError: the loss is not finite.
            DataError: the checkpoint is another run's.
        """
        best: tuple[float, int] = (-math.inf, 0)
        state = None if checkpoint is None else load_checkpoint(checkpoint, identity)
        if state is not None:
            try:
                best = self._restore(state)
            except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise DataError(
                    f"{checkpoint}: does not fit this run ({type(error).__name__}); remove it to start anew"
                ) from error
        for number in range(len(self.epochs) + 1, self.options.epochs + 1):
            epoch = self._epoch(number)
            self.epochs.append(epoch)
            self._tell("train", number / self.options.epochs, epoch)
            full = self._pruner.schedule.ratio_at(self._pruner.steps_done) >= 1
            score = epoch.judged if epoch.accuracy is None else -epoch.accuracy
            if full and -score > best[0]:
                best = -score, number
            if checkpoint is not None:
                save_checkpoint(checkpoint, self._state(best), identity)
            if self.options.patience and full and best[1] and number - best[1] >= self.options.patience:
                break
        return self._finish()

    def _epoch(self, number: int) -> Epoch:
        start, total = time.perf_counter(), 0.0
        generator = torch.Generator().manual_seed(self.options.seed * 100_003 + number)
        torch.manual_seed(self.options.seed * 100_003 + number)  # dropout
        self.network.train()
        random = np.random.default_rng([self.options.seed, number])
        for step, batch in enumerate(self.samples.batches(self.options.batch, random)):
            total += self._step(batch, generator, number)
            self._tell("train", (number - 1 + (step + 1) / self.steps) / self.options.epochs, None)
        judged = self._judged()
        gone, undecided = _overall(self._pruner.sparsity())
        return Epoch(
            number, total / self.steps, judged.loss, judged.accuracy, gone, undecided, time.perf_counter() - start
        )

    def _step(self, batch: Batch, generator: torch.Generator, number: int) -> float:
        """One step of the optimiser; the loss."""
        done = self._pruner.steps_done / (self.options.epochs * self.steps)
        for group in self._optimiser.param_groups:
            group["lr"] = self.options.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        feeds, labels = self._tensors(batch)
        feeds = augment(feeds, self.options.augment, generator)
        with torch.no_grad():
            taught = None if self._teacher is None else self._teacher(feeds)
        loss = self._loss(self.network(feeds), labels, taught)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._check_finite(feeds)
            raise ModelError(
                f"the loss is {value} in epoch {number}: take a smaller --lr (now {self.options.lr}), or --clip 1"
            )
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.options.clip)
        self._optimiser.step()
        self._pruner.step()
        return value

    def _check_finite(self, feeds: Mapping[str, Tensor]) -> None:
        for name, array in feeds.items():
            if array.is_floating_point() and not bool(torch.isfinite(array).all()):
                raise DataError(
                    f"{self.samples.source}: {name!r} holds NaN or infinite values; leave out the samples that do"
                )

    def _finish(self) -> float:
        self._tell("finish", 0.0, None)
        self.masks = self._pruner.finish()
        self.sparsity = self._pruner.sparsity()
        self._renew()
        return self._judged().value

    @torch.no_grad()
    def _renew(self) -> None:
        """Means and variances of batch normalisations, from what the network makes with its final weights."""
        if self.options.freeze_statistics:
            return
        self.network.train()
        torch.manual_seed(self.options.seed)
        for count, batch in enumerate(self.samples.batches(self.options.batch, np.random.default_rng(0))):
            if count >= _RENEWED:
                break
            self.network(self._tensors(batch)[0])

    def _judged(self) -> Judged:
        self.network.eval()
        return judge(self.network, self._feeds(), self._loss, self._teacher)

    def _feeds(self) -> Iterator[tuple[dict[str, Tensor], Tensor | None, int]]:
        for batch in self.judges.batches(self.options.batch):
            feeds, labels = self._tensors(batch)
            yield feeds, labels, batch.count

    def _tensors(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        feeds = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in batch.feeds.items()}
        if batch.labels is None:
            return feeds, None
        labels = torch.from_numpy(np.array(batch.labels)).to(self.device)
        return feeds, labels if labels.is_floating_point() else labels.long().reshape(len(labels), -1).squeeze(1)

    def _check_batches(self) -> None:
        """A model may fix the number of samples inside; then it can't be trained on more of them at once.

        Raises:
            DataError: it does, or there are samples that it can't be run on.
        """
        batch = next(iter(self.samples.batches(self.options.batch)))
        feeds, _ = self._tensors(batch)
        self.network.eval()
        with torch.no_grad():
            try:
                outputs = self.network(feeds)
            except ModelError as error:
                raise DataError(
                    f"{self.samples.source}: the network can't be run on {batch.count} samples at once ({error});"
                    " export it with a dynamic batch axis, or take --batch 1 --freeze-statistics"
                ) from error
        for name, value in outputs.items():
            if value.ndim and value.shape[0] not in (batch.count, 1) and value.shape[0] % batch.count:
                raise DataError(
                    f"{self.samples.source}: output {name!r} has shape {tuple(value.shape)} for {batch.count} samples;"
                    " export the model with a dynamic batch axis, or take --batch 1"
                )

    def _state(self, best: tuple[float, int]) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "pruner": self._pruner.state_dict(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": list(best),
        }

    def _restore(self, state: Mapping[str, Any]) -> tuple[float, int]:
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._pruner.load_state_dict(state["pruner"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        return float(state["best"][0]), int(state["best"][1])


def _overall(layers: Mapping[str, Sparsity]) -> tuple[float, float]:
    """Share that is gone, and how undecided masks are, over all layers."""
    prunable = max(sum(each.prunable for each in layers.values()), 1)
    gone = sum(each.dropped for each in layers.values()) / prunable
    return gone, sum(each.undecided * each.prunable for each in layers.values()) / prunable


def _pruner(layers: Sequence[PrunableLayer], options: TrainOptions, steps: int) -> Pruner:
    """The method that the options name."""
    schedule = Schedule(steps, options.warmup, options.ramp, options.shape)
    fixed = all(layer.fixed is not None for layer in layers)
    allotment = None if fixed else Allotment(options.ratio, options.scope)
    if options.method == "one-shot":
        return OneShot(layers, allotment)
    if options.method == "gradual":
        return GradualMagnitude(layers, allotment, schedule=schedule)
    mode = "relative" if options.relative_tau else "absolute"
    return PDP(
        layers,
        allotment,
        schedule=schedule,
        tau=options.tau,
        tau_mode=mode,
        cooling=options.cooling,
        detach=options.detach,
        settle=options.settle,
    )


def _optimiser(parameters: Sequence[torch.nn.Parameter], options: TrainOptions) -> torch.optim.Optimizer:
    """Weight decay is for weights, not for biases and scales."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here; take cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
