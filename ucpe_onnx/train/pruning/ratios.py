"""How much of each layer goes, so that together they meet the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.layers import PrunableLayer

_MOST = 0.95
"""No layer loses more than this share unless that is asked for or the ratio needs it."""


@dataclass(frozen=True)
class Allotment:
    """What is to go in all, and how it is shared out between layers.

    Attributes:
        ratio: share that goes, from 0 to less than 1, of everything that is not frozen.
        scope: "global": one ranking of all magnitudes decides how much each layer loses (PDP, arXiv 2305.11203, at the
            end of the warm-up). "local": the same share of each layer, to the nearest number that makes the sum right.
        by: with scope "global", what the ratio is a share of: "groups" counts the numbers of masks (channels; single
            weights in unstructured pruning), "weights" the masked weights that hang on them.
        rank: with scope "global", how layers compare: by "magnitude" as it is, as in the paper, or by "lamp", which
            divides the square of each by the sum of squares of those that are not smaller in its layer (Lee et al.,
            "PrunableLayer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, arXiv 2010.07611, equation 4).
        most: the largest share that a layer may lose; what it would lose beyond that, others lose. None for 0.95, or
            half-way from the ratio to 1 if that is more.
        min_keep: how many a layer keeps at least, with those that are frozen.
        ratios: shares for layers that have their own, by name. The others meet the target among themselves.

    Raises:
        UsageError: a value is out of range.
    """

    ratio: float
    scope: str = "global"
    by: str = "groups"
    rank: str = "magnitude"
    most: float | None = None
    min_keep: int = 1
    ratios: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for ratio in (self.ratio, *self.ratios.values()):
            if not 0 <= ratio < 1:
                raise UsageError(f"a ratio is the share that goes, from 0 to less than 1, not {ratio}")
        allowed = {"scope": ("global", "local"), "by": ("groups", "weights"), "rank": ("magnitude", "lamp")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UsageError(f"{name} is {' or '.join(values)}, not {getattr(self, name)!r}")
        if self.most is not None and not self.ratio <= self.most <= 1:
            raise UsageError(f"if no layer may lose more than {self.most}, {self.ratio} of all can't go")
        if self.min_keep < 1:
            raise UsageError("a layer keeps at least 1")


def allot(layers: Sequence[PrunableLayer], allotment: Allotment | None) -> dict[str, int]:
    """How many of each layer go in the end, from the magnitudes as they are.

    The sum is the target rounded down, or what the limits of the layers allow if that is less. With ``by="weights"`` it
    falls short of the target by less than the largest group.

    Args:
        layers: all layers.
        allotment: what is to go; None if all layers have a fixed number.

    Returns:
        The number by name of layer: of those that are not frozen; of each block for N:M.

    Raises:
        UsageError: ``allotment.ratios`` names no layer that has a ratio, or there is no allotment for one that has.
    """
    counts = {layer.name: layer.fixed for layer in layers if layer.fixed is not None}
    free = [layer for layer in layers if layer.fixed is None]
    if allotment is None:
        if free:
            raise UsageError(f"layer {free[0].name} needs a ratio")
        return counts
    if unknown := sorted(set(allotment.ratios) - {layer.name for layer in free}):
        raise UsageError(f"there is no layer {unknown[0]} that has a ratio")
    for layer in free:
        if (ratio := allotment.ratios.get(layer.name)) is not None:
            counts[layer.name] = min(_floor(ratio * layer.prunable), _limit(layer, allotment.min_keep, 1.0))
    free = [layer for layer in free if layer.name not in allotment.ratios]
    most = max(_MOST, (1 + allotment.ratio) / 2) if allotment.most is None else allotment.most
    limits = [_limit(layer, allotment.min_keep, most) for layer in free]
    share = _local if allotment.scope == "local" else _global
    return counts | dict(zip((layer.name for layer in free), share(free, limits, allotment), strict=True))


def _floor(count: float) -> int:
    """Rounded down, but 0.29 * 100 is 29."""
    return math.floor(count + 1e-6)


def _limit(layer: PrunableLayer, min_keep: int, most: float) -> int:
    """The largest number that a layer may lose."""
    frozen = 0 if layer.frozen is None else int(layer.frozen.sum())
    return max(0, min(_floor(most * layer.prunable), layer.prunable - max(0, min_keep - frozen)))


def _local(layers: Sequence[PrunableLayer], limits: Sequence[int], allotment: Allotment) -> list[int]:
    """The same share of each; the largest remainders are rounded up until the sum is right."""
    shares = [allotment.ratio * layer.prunable for layer in layers]
    counts = [min(_floor(share), limit) for share, limit in zip(shares, limits, strict=True)]
    missing = _floor(math.fsum(shares)) - sum(counts)
    order = sorted(range(len(shares)), key=lambda at: _floor(shares[at]) - shares[at])
    while missing > 0 and (open_ones := [at for at in order if counts[at] < limits[at]]):
        for at in open_ones[:missing]:
            counts[at] += 1
        missing -= len(open_ones[:missing])
    return counts


def _global(layers: Sequence[PrunableLayer], limits: Sequence[int], allotment: Allotment) -> list[int]:
    """The smallest of all layers; of each layer those beyond its limit do not take part."""
    scores, sizes, owners = [], [], []
    for at, (layer, limit) in enumerate(zip(layers, limits, strict=True)):
        magnitudes = layer.candidates(layer.magnitudes()).cpu().float()
        order = magnitudes.sort(stable=True).indices[:limit]
        scores.append((_lamp(magnitudes) if allotment.rank == "lamp" else magnitudes)[order])
        size = layer.candidates(layer.sizes().expand(layer.shape)) if allotment.by == "weights" else None
        sizes.append(torch.ones(limit, dtype=torch.long) if size is None else size[order])
        owners.append(torch.full((limit,), at))
    if not layers:
        return []
    order = torch.cat(scores).sort(stable=True).indices
    gone = torch.cat(sizes)[order].cumsum(0) <= _floor(allotment.ratio * _all(layers, allotment.by))
    return torch.bincount(torch.cat(owners)[order][gone], minlength=len(layers)).tolist()


def _all(layers: Sequence[PrunableLayer], by: str) -> int:
    """What the ratio is a share of."""
    if by == "groups":
        return sum(layer.prunable for layer in layers)
    return sum(int(layer.candidates(layer.sizes().expand(layer.shape)).sum()) for layer in layers)


def _lamp(magnitudes: Tensor) -> Tensor:
    """The square of each over the sum of squares of those that are not smaller."""
    squares, order = magnitudes.double().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / rest.clamp(min=torch.finfo(rest.dtype).tiny)
    return scores.float()
