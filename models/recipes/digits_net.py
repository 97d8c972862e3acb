"""A small residual network with one concatenation, for 8x8 grey images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEM, WIDE = 64, 96
POINT, LOCAL, POOLED = 32, 48, 32


class ConvUnit(nn.Module):
    """Channel dropout, convolution, batch normalisation.

    The dropout acts on whole *input* channels: it rehearses what a pruner does to this convolution.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel size; padding keeps the image size when the stride is 1.
        stride: Stride.
        drop: Probability that an input channel is dropped in training.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(drop)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three layers."""
        return self.bn(self.conv(self.drop(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, projected by a 1x1 convolution where the shape changes.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the first convolution and of the projection.
        drop: Channel dropout of every convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, drop: float = 0.0) -> None:
        super().__init__()
        self.conv1 = ConvUnit(inputs, outputs, stride=stride, drop=drop)
        self.conv2 = ConvUnit(outputs, outputs, drop=drop)
        changes_shape = stride != 1 or inputs != outputs
        self.shortcut = ConvUnit(inputs, outputs, 1, stride, drop) if changes_shape else nn.Identity()
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved and the shortcut path."""
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))


class Inception(nn.Module):
    """Three concatenated branches: 1x1, 1x1 then 3x3, and max-pooling then 1x1.

    Args:
        inputs: Input channels.
        drop: Channel dropout of every convolution.
    """

    def __init__(self, inputs: int, drop: float = 0.0) -> None:
        super().__init__()
        self.point = nn.Sequential(ConvUnit(inputs, POINT, 1, drop=drop), nn.ReLU())
        self.local = nn.Sequential(
            ConvUnit(inputs, LOCAL, 1, drop=drop), nn.ReLU(), ConvUnit(LOCAL, LOCAL, drop=drop), nn.ReLU()
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvUnit(inputs, POOLED, 1, drop=drop), nn.ReLU())
        self.outputs = POINT + LOCAL + POOLED

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches along the channels."""
        return torch.cat([self.point(x), self.local(x), self.pooled(x)], dim=1)


class DigitsNet(nn.Module):
    """Stem and residual block at 8x8, then residual, concatenation and residual blocks at 4x4.

    Args:
        drop: Channel dropout of every convolution but the stem's, whose only input is the image.
    """

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvUnit(1, STEM), nn.ReLU())
        self.block1 = Residual(STEM, STEM, drop=drop)
        self.block2 = Residual(STEM, WIDE, stride=2, drop=drop)
        self.mixed = Inception(WIDE, drop)
        self.block3 = Residual(self.mixed.outputs, WIDE, drop=drop)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop)
        self.classifier = nn.Linear(WIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the ten logits of every image."""
        x = self.block2(self.block1(self.stem(x)))
        x = self.block3(self.mixed(x))
        return self.classifier(self.drop(self.pool(x).flatten(1)))
