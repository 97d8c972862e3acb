"""What is timed: chains of one repeated unit, of the shapes that convolutional networks have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ucpe_onnx.calibration.chain import Chain
from ucpe_onnx.runtime.target import Target

_LARGE = 112
"""Maps of this size are timed for the traffic to memory alone: a convolution on them takes too long."""


@dataclass(frozen=True)
class Case:
    """A chain of so many equal units.

    Attributes:
        name: what is timed.
        channels: that the chain begins with.
        size: height and width.
        unit: adds one unit to a chain; the tensor then is of the shape that it began with, or nearly.
    """

    name: str
    channels: int
    size: int
    unit: Callable[[Chain], None]

    def chain(self, target: Target, depth: int, threads: int = 1) -> Chain:
        """The chain with so many units."""
        chain = Chain(target, self.channels, self.size, threads)
        for _ in range(depth):
            self.unit(chain)
        return chain


def cases_for(target: Target) -> tuple[Case, ...]:
    """All that is worth timing for a target."""
    cases = [*_convolutions(target), *_copies(target)]
    if target.blocked:
        cases += [*_blocked(target), *_fused(target), *_outside(target)]
    if target.precision == "float32":
        cases += _products()
    return tuple(cases)


def _convolutions(target: Target) -> Iterator[Case]:
    """Pairs of convolutions between two widths."""
    unit = target.block if target.blocked else 16
    for kernel, wide, narrow, size in (
        (1, 4, 4, 56), (1, 8, 4, 56), (1, 6, 1, 56), (1, 2, 2, 28), (1, 16, 4, 28), (1, 3, 3, 28), (1, 5, 5, 28),
        (1, 36, 6, 14), (1, 32, 8, 14), (1, 8, 8, 14), (1, 60, 10, 7), (1, 32, 32, 7), (1, 64, 32, 7), (1, 4, 4, 7),
        (1, 8, 1, 1), (1, 64, 64, 1), (1, 2, 2, 80), (1, 8, 1, 112),
        (3, 4, 2, 56), (3, 4, 4, 28), (3, 8, 8, 14), (3, 12, 12, 14), (3, 12, 12, 7), (3, 24, 24, 7), (3, 1, 1, 56),
        (3, 1, 1, 14), (3, 2, 2, 28), (3, 3, 3, 28), (3, 5, 5, 14), (3, 6, 6, 14), (3, 4, 4, 7), (3, 1, 1, 7),
        (3, 2, 8, 7), (3, 12, 2, 14), (5, 2, 2, 14), (5, 4, 3, 7), (7, 1, 2, 14), (3, 1, 2, 112),
    ):  # fmt: skip
        yield Case(
            f"conv {kernel}x{kernel}, {wide * unit} and {narrow * unit} channels, {size}x{size}",
            narrow * unit,
            size,
            _pair(wide * unit, narrow * unit, kernel),
        )
    for kernel, blocks, size in (
        (3, 2, 112), (3, 8, 112), (3, 9, 56), (3, 12, 28), (3, 24, 14), (3, 60, 7), (3, 4, 7),
        (5, 15, 28), (5, 42, 14), (5, 60, 7), (1, 12, 28), (1, 16, 56),
    ):  # fmt: skip
        yield Case(
            f"depthwise conv {kernel}x{kernel}, {blocks * unit} channels, {size}x{size}",
            blocks * unit,
            size,
            _depthwise(kernel),
        )


def _blocked(target: Target) -> Iterator[Case]:
    """What only the blocked layout has: few channels read, selections that leave it, sums within a convolution."""
    for narrow, blocks, kernel, size in (
        (3, 4, 3, 56), (3, 2, 3, 112), (8, 4, 3, 28), (3, 4, 7, 28), (3, 2, 5, 56), (4, 3, 1, 56), (12, 4, 1, 28),
    ):  # fmt: skip
        wide = blocks * target.block
        yield Case(f"conv {kernel}x{kernel}, {narrow} and {wide} channels", narrow, size, _pair(wide, narrow, kernel))
    for blocks, kernel, size in ((4, 1, 56), (16, 1, 14), (8, 1, 28), (2, 3, 56), (8, 3, 14)):
        yield Case(
            f"partial sums {kernel}x{kernel}, {blocks * target.block} channels, {size}x{size}",
            blocks * target.block,
            size,
            _partial(kernel),
        )


def _fused(target: Target) -> Iterator[Case]:
    """Convolutions with an activation that is a pass over their output: all but Relu."""
    for blocks, size in ((9, 56), (24, 14), (60, 7)):
        width = blocks * target.block
        yield Case(f"depthwise conv 3x3 and Clip, {width} channels, {size}x{size}", width, size, _clipped)


def _outside(target: Target) -> Iterator[Case]:
    """Convolutions that can't stay in the blocked layout."""
    for blocks, kernel, size in ((4, 3, 28), (2, 3, 56), (8, 3, 14), (16, 3, 7), (4, 1, 56), (8, 1, 28), (32, 1, 7)):
        width = blocks * target.block + 2
        yield Case(f"conv {kernel}x{kernel} of {width} channels", width, size, _pair(width, width, kernel))
    for blocks, kernel, size in ((6, 3, 56), (24, 3, 14), (15, 5, 28)):
        width = blocks * target.block + 2
        yield Case(f"depthwise conv {kernel}x{kernel} of {width} channels", width, size, _depthwise(kernel))


def _copies(target: Target) -> Iterator[Case]:
    """Selections and element-wise operators.

    Of tensors that no near cache holds, since within a network the output goes where other tensors have been; and of
    next to nothing, for what a call costs.
    """
    unit = target.block if target.blocked else 16
    for blocks, size in ((1, 7), (16, 28), (8, 56), (64, 14), (4, 112)):
        width, where = blocks * unit, f"{blocks * unit} channels, {size}x{size}"
        if size < _LARGE:
            yield Case(f"gather after a conv, {where}", width, size, _after_conv(Chain.gather))
        if target.precision == "float32":
            yield Case(f"gather, {where}", width, size, Chain.gather)
            yield Case(f"slice, {where}", width, size, _shrink)
            yield Case(f"concat, {where}", width, size, Chain.join)
            yield Case(f"Relu, {where}", width, size, Chain.activation)
            yield Case(f"Sigmoid, {where}", width, size, Chain.curved)
        elif size < _LARGE:
            yield Case(f"slice after a conv, {where}", width, size, _slice_after_conv)
            yield Case(f"concat after convs, {where}", width, size, Chain.concat)
        yield Case(f"add, {where}", width, size, Chain.add)


def _products() -> Iterator[Case]:
    for cin, cout, size in (
        (1024, 1024, 1), (512, 2048, 1), (256, 256, 1), (64, 1000, 1), (192, 768, 14), (256, 512, 7), (64, 64, 8),
    ):  # fmt: skip
        yield Case(f"product of {size * size} rows, {cin} and {cout} channels", cin, size, _products_of(cout, cin))


def _pair(wide: int, narrow: int, kernel: int) -> Callable[[Chain], None]:
    def unit(chain: Chain) -> None:
        chain.conv(wide, kernel)
        chain.conv(narrow, kernel)

    return unit


def _depthwise(kernel: int) -> Callable[[Chain], None]:
    return lambda chain: chain.depthwise(kernel)


def _clipped(chain: Chain) -> None:
    chain.depthwise(3)
    chain.clip()


def _partial(kernel: int) -> Callable[[Chain], None]:
    return lambda chain: chain.partial(kernel)


def _products_of(cout: int, cin: int) -> Callable[[Chain], None]:
    def unit(chain: Chain) -> None:
        chain.product(cout)
        chain.product(cin)

    return unit


def _after_conv(copy: Callable[[Chain], None]) -> Callable[[Chain], None]:
    def unit(chain: Chain) -> None:
        chain.conv(chain.channels)
        copy(chain)

    return unit


def _slice_after_conv(chain: Chain) -> None:
    width = chain.channels
    chain.conv(width + 16)
    chain.slice_(width)


def _shrink(chain: Chain) -> None:
    chain.slice_(chain.channels - 1)
