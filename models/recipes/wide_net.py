"""Two networks with 64 to 256 channels, for 16x16 grey images: a wide ResNet and a DenseNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256)
CLASSES = 10

GROWTH, INITIAL, BOTTLENECK = 32, 64, 4
LAYERS = (3, 4, 5)
"""Layers of the DenseNet's three blocks, which end with 160, 208 and 264 channels."""


class PreActivation(nn.Module):
    """Batch normalisation and ReLU before each of two 3x3 convolutions; a 1x1 convolution where the shape changes.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride != 1 or inputs != outputs else None
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved and the shortcut path."""
        active = self.relu1(self.bn1(x))
        convolved = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return convolved + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """One block in each of three stages, as Zagoruyko and Komodakis (2016) have them, four times as wide as a ResNet.

    Seven layers that a shortcut runs past or projects, at 16x16, 8x8 and 4x4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        blocks, inputs = [], WIDTHS[0]
        for stage, outputs in enumerate(WIDTHS):
            blocks.append(PreActivation(inputs, outputs, 1 if stage == 0 else 2))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the ten logits of every image."""
        x = self.relu(self.bn(self.blocks(self.stem(x))))
        return self.classifier(self.pool(x).flatten(1))


class DenseLayer(nn.Module):
    """Normalise, 1x1 to four times the growth, normalise, 3x3 to the growth; the input goes in front of the output.

    Args:
        inputs: Input channels.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        middle = BOTTLENECK * GROWTH
        self.narrow = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, middle, 1, bias=False))
        self.grow = nn.Sequential(nn.BatchNorm2d(middle), nn.ReLU(), nn.Conv2d(middle, GROWTH, 3, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input and the new channels."""
        return torch.cat([x, self.grow(self.narrow(x))], dim=1)


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017) of three short blocks, at 16x16, 8x8 and 4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, INITIAL, 3, 1, 1, bias=False)
        parts: list[nn.Module] = []
        width = INITIAL
        for block, layers in enumerate(LAYERS):
            if block:
                parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False)]
                parts.append(nn.AvgPool2d(2))
                width //= 2
            for _ in range(layers):
                parts.append(DenseLayer(width))
                width += GROWTH
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the ten logits of every image."""
        return self.classifier(self.pool(self.features(self.stem(x))).flatten(1))
