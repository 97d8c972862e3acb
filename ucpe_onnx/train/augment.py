"""Random changes of images that leave their class as it is: mirroring and shifting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ucpe_onnx.errors import UsageError

KINDS = ("flip", "crop")

_SHIFT = 8
"""Images are shifted by up to this part of their size: 4 pixels of 32, as is usual for CIFAR-10."""


def augment(feeds: Mapping[str, Tensor], kinds: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    """Mirror and shift images at random; inputs of other shapes stay as they are.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Args:
        feeds: inputs; float tensors of shape (N, C, H, W) are images.
        kinds: of ``KINDS``: ``flip`` mirrors half of the images left to right, ``crop`` shifts each by up to an eighth
            of its size, with its edge repeated.
        generator: of the random numbers, on the CPU.

    Raises:
        UsageError: a kind is unknown, or no input is images.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--augment: unknown {kind!r}; choose from {', '.join(KINDS)}")
    images = [name for name, value in feeds.items() if value.ndim == 4 and value.is_floating_point()]
    if kinds and not images:
        raise UsageError("--augment: the model has no input of images, shape (N, C, H, W); leave the flag out")
    changed = dict(feeds)
    for name in images:
        value = feeds[name]
        if "flip" in kinds:
            mirrored = torch.rand(len(value), generator=generator).to(value.device) < 0.5
            value = torch.where(mirrored[:, None, None, None], value.flip(-1), value)
        changed[name] = _shifted(value, generator) if "crop" in kinds else value
    return changed


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    margins = [max(1, size // _SHIFT) for size in (height, width)]
    padded = functional.pad(images, (margins[1], margins[1], margins[0], margins[0]), mode="replicate")
    rows, columns = (
        torch.randint(0, 2 * margin + 1, (count, 1), generator=generator) + torch.arange(size)
        for margin, size in zip(margins, (height, width), strict=True)
    )
    rows, columns = rows.to(images.device), columns.to(images.device)
    chosen = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[chosen, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
