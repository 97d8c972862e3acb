"""What the runtime's kernels like: the numbers that decide which widths and lowerings are fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A description of the machine and runtime that the emitted model is for.

    Attributes:
        blocked: convolutions run in a layout of channel blocks (onnxruntime's NCHWc).
        block: channels in a block; work is done in whole blocks.
        read_multiple: a convolution stays in the blocked layout only if it reads a multiple of this.
        joined_multiple: pools stay blocked, and so does a Concat, only if its inputs are multiples of this.
        minimum: below this many channels a convolution reads the plain layout, so a blocked input is reordered.
        gflops: rough speed of a convolution, in GFLOP/s.
        bytes_per_us: rough speed of a copy, in bytes per microsecond.
        call_us: cost of one more node, in microseconds.
    """

    blocked: bool = True
    block: int = 16
    read_multiple: int = 4
    joined_multiple: int = 16
    minimum: int = 16
    gflops: float = 130.0
    bytes_per_us: float = 10_500.0
    call_us: float = 5.0

    def width(self, needed: int, available: int, multiple: int) -> int:
        """The width that an axis of ``available`` channels gets when ``needed`` of them must stay.

        Rounded up so that nothing leaves the blocked layout, but never beyond what is there. An axis that never was in
        that layout (too narrow, or of an odd width from the start) gains by multiples all the same.
        """
        if not self.blocked:
            return needed
        width = -(-needed // multiple) * multiple
        if available >= self.minimum:
            width = max(width, self.minimum)
        return min(width, available)


def target_for(providers: Sequence[str], opt_level: str) -> Target:
    """The target that onnxruntime's options describe.

    The blocked layout exists in the CPU provider alone and only at the levels ``layout`` and ``all``. Constants are
    those measured on a machine with AVX-512 (see ``benchmarks/``); ratios carry over better than absolute figures.
    """
    if providers and providers[0] not in ("CPUExecutionProvider", "cpu"):
        return Target(blocked=False, read_multiple=8, joined_multiple=8)
    if opt_level in ("disable", "basic", "extended"):
        return Target(blocked=False, read_multiple=4, joined_multiple=4)
    return Target()
