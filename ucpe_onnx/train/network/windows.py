"""The windows of convolutions and pools: sizes, steps and padding, however the node says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ucpe_onnx.train.network.call import Call, padded


@dataclass(frozen=True)
class Window:
    """One number per spatial axis for each of these.

    Attributes:
        kernel: elements of the window.
        strides: distance of windows.
        dilations: distance of elements within a window.
        before: padding in front.
        after: padding behind.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """What a window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def symmetric(self) -> bool:
        """Whether the padding is the same on both sides, as torch's own is."""
        return self.before == self.after

    def room(self, sizes: Sequence[int], *, ceil: bool) -> tuple[int, ...]:
        """The padding behind with which the windows end where the tensor does.

        Args:
            sizes: spatial sizes of the tensor.
            ceil: whether there is a last window that is only partly filled, if it begins inside of the tensor or of
                the padding before it.
        """
        after = []
        axes = zip(sizes, self.extent, self.strides, self.before, self.after, strict=True)
        for size, extent, stride, before, behind in axes:
            space = size + before + behind - extent
            steps = space // stride
            if ceil and space % stride and (steps + 1) * stride < size + before:
                steps += 1
            after.append(steps * stride + extent - size - before)
        return tuple(after)

    def fitted(self, x: Tensor, value: float, *, ceil: bool = False) -> Tensor:
        """The tensor, padded so that the windows end where it does."""
        return padded(x, self.before, self.room(x.shape[2:], ceil=ceil), value)


def window_of(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """The windows of a convolution or a pool.

    Args:
        call: the node.
        sizes: spatial sizes of what it reads.
        kernel: spatial sizes of the window.

    Raises:
        ModelError: the sizes have another rank than the windows.
    """
    rank = len(kernel)
    if len(sizes) != rank or rank not in (1, 2, 3):
        raise call.refused(f"{rank} axes of windows over {len(sizes)} axes of space")
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    pads = call.integers("pads") or [0] * 2 * rank
    kind = call.text("auto_pad", "NOTSET")
    if kind == "VALID":
        pads = [0] * 2 * rank
    elif kind != "NOTSET":
        pads = _same(sizes, kernel, strides, dilations, lower=kind == "SAME_LOWER")
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:rank]), tuple(pads[rank:]))


def _same(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, lower: bool
) -> list[int]:
    """Padding for one window per stride, the odd one behind or, if ``lower``, in front."""
    totals = [
        max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    before = [(total + lower) // 2 for total in totals]
    return [*before, *(total - b for total, b in zip(totals, before, strict=True))]
