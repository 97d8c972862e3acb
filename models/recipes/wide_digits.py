"""Train two networks of 64 to 256 channels on scikit-learn's handwritten digits: a wide ResNet and a DenseNet.

Run ``python -m models.recipes.wide_digits`` (about four minutes for each on one core; needs the ``recipes`` extra). The
files are too large for the repository, so they go to the user's cache directory, where ``wide_data.wide_model`` finds
them again.

The digits are split as in ``digits_data.py`` and interpolated to 16x16. Training is plain, since the question is what
pruning costs: SGD with Nesterov momentum, one cycle of the learning rate, images shifted by up to one pixel of the
original eight. Nothing rehearses the loss of channels, as group lasso and channel dropout of ``digits_train.py`` do.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import onnx

try:
    import sklearn  # noqa: F401
    import torch
except ModuleNotFoundError as error:
    raise SystemExit(f"This recipe needs {error.name}: pip install 'ucpe-onnx[recipes]'") from error

from torch import Tensor, nn
from torch.nn import functional

from models.recipes.digits import verify
from models.recipes.digits_data import load_split
from models.recipes.digits_train import accuracy
from models.recipes.wide_data import INPUT, NETWORKS, cached, upsample
from models.recipes.wide_net import DenseNet, WideResNet

EPOCHS, BATCH = 12, 32
LEARNING_RATE, WEIGHT_DECAY = 0.05, 5e-4
SHIFT = 2
"""Pixels of sixteen."""
SIZE = 16
OPSET = 17


def train(network: str, epochs: int, seed: int) -> nn.Module:
    """Train from scratch; return the network in evaluation mode."""
    torch.manual_seed(seed)
    split = load_split()
    images, labels = torch.from_numpy(upsample(split.train_images)), torch.from_numpy(split.train_labels)
    model = (WideResNet() if network == "wide_resnet" else DenseNet()).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps)
    for _ in range(epochs):
        # The last, smaller batch is skipped: every epoch shuffles anew.
        for rows in torch.randperm(len(images)).split(BATCH)[:steps]:
            loss = functional.cross_entropy(model(shifted(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shifted(images: Tensor) -> Tensor:
    """Move each image by up to ``SHIFT`` pixels each way, black coming in at the border; shape (N, 1, H, W)."""
    count, size = len(images), images.shape[-1]
    padded = functional.pad(images, (SHIFT,) * 4)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1))
    rows, columns = down + torch.arange(size), right + torch.arange(size)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def export(model: nn.Module, path: Path) -> None:
    """Write the network with a free batch size; what the exporter can fold of the normalisations is folded."""
    partial = path.with_suffix(".partial")
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, SIZE, SIZE),),
        str(partial),
        input_names=[INPUT],
        output_names=["output"],
        dynamic_axes={INPUT: {0: "N"}, "output": {0: "N"}},
        opset_version=OPSET,
        # As for digits.onnx: the TorchScript exporter.
        dynamo=False,
    )
    onnx.checker.check_model(str(partial), full_check=True)
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> None:
    """Train, export, verify and report."""
    parser = argparse.ArgumentParser(prog="python -m models.recipes.wide_digits", description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default: both)")
    parser.add_argument("--out", type=Path, help="folder (default: the user's cache directory)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(NETWORKS)}")

    # One thread sums in a reproducible order.
    torch.set_num_threads(1)
    split = load_split()
    images, labels = upsample(split.test_images), split.test_labels
    for network in options.networks or NETWORKS:
        start = time.perf_counter()
        model = train(network, options.epochs, options.seed)
        path = options.out / cached(network).name if options.out else cached(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        export(model, path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - start:.0f} s")
        print(f"largest difference from torch: {verify(model, path, images):.1e}")
        print(f"test accuracy: {accuracy(model, images, labels):.4f}", flush=True)


if __name__ == "__main__":
    main()
