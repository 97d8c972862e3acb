"""N:M sparsity: of every M consecutive weights N stay."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ucpe_onnx.errors import UsageError
from ucpe_onnx.train.pruning.layers import Member, WeightLayer


class BlockLayer(WeightLayer):
    """Blocks of M consecutive weights along the inputs of each output, N of which stay.

    Each block has a threshold of its own, midway between its N-th and its next largest magnitude (PDP, arXiv
    2305.11203, on N:M). If the number of inputs is no multiple of M, the last block of each row is shorter and keeps
    the same share, rounded up.

    Args:
        name: of the layer.
        members: the modules that hold the parameter; several if it is shared. All are masked, the first is scored.
        kept: N.
        block: M.
        axis: blocks run along this axis of the weight. None: along everything but the axis of outputs, in the order
            in which it is stored; (out, in * height * width) for a convolution.
        outputs: the axis of outputs; 0 for Conv and Linear, 1 for ConvTranspose.

    Raises:
        UsageError: N and M make no sense, or the weight has no such axis.
    """

    def __init__(
        self, name: str, members: Sequence[Member], kept: int, block: int, *, axis: int | None = None, outputs: int = 0
    ) -> None:
        if not 1 <= kept < block:
            raise UsageError(f"{kept}:{block} is no sparsity: of M weights at least 1 and at most M - 1 stay")
        shape = tuple(members[0].weight.shape)
        if len(shape) < 2 or not -len(shape) <= (axis or 0) < len(shape):
            raise UsageError(f"layer {name}: a weight of shape {shape} has no blocks along axis {axis or 0}")
        self.fixed = block - kept
        self._block = block
        self._first = [outputs] if axis is None else [at for at in range(len(shape)) if at != axis % len(shape)]
        self._order = self._first + [at for at in range(len(shape)) if at not in self._first]
        self._length = math.prod(shape[at] for at in self._order[len(self._first) :])
        rest = self._length % block
        self._spare = rest - math.ceil(rest * kept / block)
        super().__init__(name, members)

    def dropped_at(self, final: int, share: float) -> int:
        """How many of a block are dropped when the ratio is ``share`` of the final one, to the nearest.

        Rounded down, 1:2 would have no ramp at all.
        """
        return math.floor(final * share + 0.5)

    @torch.no_grad()
    def threshold(self, dropped: int) -> Tensor:
        """t² of each weight's block when so many of each block go, in the weight's shape."""
        if not dropped:
            return self.magnitudes().new_full((), -math.inf)
        ordered = self._blocks(self.magnitudes()).sort().values
        gone = self._gone(dropped, ordered.device)[:, None].expand(*ordered.shape[:2], 1)
        below = ordered.gather(2, (gone - 1).clamp(min=0))
        squared = ((below + ordered.gather(2, gone)) / 2).square()
        return self._weights(squared.masked_fill(gone == 0, -math.inf).expand(ordered.shape))

    @torch.no_grad()
    def keep(self, dropped: int) -> Tensor:
        """The hard mask that drops so many of each block, the first ones of equal magnitudes; the weight's shape."""
        blocks = self._blocks(self.magnitudes())
        ranks = blocks.sort(stable=True).indices.argsort()
        return self._weights(ranks >= self._gone(dropped, blocks.device)[:, None])

    def _gone(self, dropped: int, device: torch.device) -> Tensor:
        """How many go from each block of a row, shape (blocks of a row,)."""
        gone = torch.full((-(-self._length // self._block),), dropped, device=device)
        if self._length % self._block:
            gone[-1] = min(dropped, self._spare)
        return gone

    def _blocks(self, values: Tensor) -> Tensor:
        """Values of the weight's shape as (rows, blocks of a row, M); what is missing from the last is infinite."""
        rows = values.permute(self._order).reshape(-1, self._length)
        padded = pad(rows, (0, -self._length % self._block), value=math.inf)
        return padded.view(rows.shape[0], -1, self._block)

    def _weights(self, blocks: Tensor) -> Tensor:
        """The way back."""
        rows = blocks.reshape(blocks.shape[0], -1)[:, : self._length]
        back = [self._order.index(at) for at in range(len(self._order))]
        return rows.reshape([self._shape[at] for at in self._order]).permute(back).contiguous()


def parse_pattern(text: str) -> tuple[int, int] | None:
    """N and M of "N:M"; None if the text is something else."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
