"""The work in onnxruntime's kernels, counted: what a prediction of their times is linear in.

A kernel belongs to a family (a 1x1 convolution in the blocked layout, a copy, ...), and its work is a few amounts:
calls, millions of operations (MFLOP), megabytes. Its time is the sum of the amounts, each times a rate; the rates of
this machine are measured (:mod:`ucpe_onnx.calibration`), and :class:`ucpe_onnx.planning.rates.Rates` holds them.

Amounts take numbers or numpy arrays of channel counts alike, so they are written without branches on them.

What they rest on, in onnxruntime's kernels: the blocked convolution computes output channels in sets of four blocks,
and what is left over in a set of one, two or three is another loop; a set goes through all rows of the output before
the next one, and rows of sets are what threads share; output positions whose window reaches into the padding are
computed one by one. Of fewer input channels than a block, each is a pass of its own over the output. Without the
blocked layout a convolution is a matrix product, after a copy of its windows (im2col) unless it is 1x1.

Times are linear in bytes, without a threshold where a cache ends: within a network, weights were last read an inference
ago and outputs go where other tensors have been since, so both are far away however small they are. A threshold would
moreover promise gains to whoever splits a kernel in two below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

Amounts: TypeAlias = Mapping[str, Any]
"""Amount by name; numbers, or arrays of one shape."""

MEGA = 1e6
SET = 4
"""Blocks of output channels that the blocked convolution computes together."""

_COLUMNS = 16
"""Columns that a matrix product works on at once; those of a float32 convolution without blocks are positions."""

_INT8_ROW = 4
"""Bytes that the quantised product multiplies and adds up at once."""

AMOUNTS: Mapping[str, tuple[str, ...]] = {
    "spatial": ("call", "set4", "set1", "set2", "set3", "edge", "rows", "weight", "read", "write"),
    "pointwise": ("call", "set4", "set1", "set2", "set3", "weight", "read", "write"),
    "shallow": ("call", "set4", "set1", "set2", "set3", "edge", "rows", "read", "write", "passes"),
    "depthwise": ("call", "mflop", "edge", "rows", "read", "write"),
    "plain": ("call", "mflop", "unrolled", "weight", "read", "write"),
    "plain-depthwise": ("call", "pieces", "mflop", "read", "write"),
    "gemm": ("call", "mflop", "weight", "read", "write"),
    "partial": ("write",),
    "fused": ("write",),
    "partial-spatial": ("write",),
    **dict.fromkeys(("gather", "normal"), ("call", "pieces", "write")),
    **dict.fromkeys(("reorder", "slice", "concat", "add", "straight", "curved"), ("call", "write")),
}
"""Names of the amounts of each family."""


def ceil_to(count: Any, multiple: int) -> Any:
    """Round up to a multiple."""
    return -(-count // multiple) * multiple


def blocked_conv(
    cin: Any,
    cout: Any,
    kernel: tuple[int, int],
    out_positions: int,
    in_positions: int,
    *,
    block: int,
    threads: int = 1,
    width: int | None = None,
    groups: int = 1,
) -> Amounts:
    """A convolution in the blocked layout, of the family ``pointwise``, ``spatial`` or (few inputs) ``shallow``.

    Args:
        cin: channels that it reads.
        cout: channels that it makes.
        kernel: height and width of the window.
        out_positions: height times width of the output, times the batch.
        in_positions: likewise of the input.
        block: channels in a block.
        threads: threads that share the work.
        width: of the output; None: it is about square.
        groups: of the convolution.
    """
    deep = cin >= block * groups
    reads = ceil_to(cin // groups, block) * deep + (cin // groups) * (1 - deep)
    blocks = -(-(cout // groups) // block)
    left = blocks % SET
    sets = -(-blocks // SET) * groups
    width = width or max(1, round(math.sqrt(out_positions)))
    rows = max(1, out_positions // width)
    stride = max(1, round(math.sqrt(in_positions / out_positions)))
    taps = kernel[0] * kernel[1]
    share = -(-(sets * rows) // threads) * threads / (sets * rows)  # the thread with most rows is waited for
    per_block = 2 * block * reads * taps * out_positions * groups / MEGA * share
    weight = 4 * blocks * block * reads * taps * groups / MEGA
    read = 4 * reads * groups * in_positions / (stride if taps == 1 else 1) / MEGA
    write = 4 * blocks * block * groups * out_positions / MEGA
    edges = min(width, (kernel[1] - 1) / stride)  # output columns whose window reaches into the padding
    return {
        "call": 1.0,
        "set4": per_block * (blocks - left),
        **{f"set{count}": per_block * count * (left == count) for count in (1, 2, 3)},
        "edge": 2 * block * reads * taps * sets * rows * edges * share / MEGA,
        "rows": sets * rows * -(-reads // block) * kernel[0] * share * (taps > 1) / 1e3,
        "weight": weight,
        "read": read,
        "write": write,
        "passes": write * reads * (1 - deep),
    }


def plain_conv(
    cin: Any,
    cout: Any,
    kernel: tuple[int, int],
    out_positions: int,
    in_positions: int,
    *,
    element: int = 4,
    groups: int = 1,
    align: int = 1,
) -> Amounts:
    """A convolution as a matrix product, family ``plain``; ``align``: what its widths are filled up to within.

    Quantised kernels work on 16 columns, the output channels, and on four input channels at once; rows of another
    length, read or written, are moved twice more.
    """
    quantised = element == 1
    odd = quantised * ((cin % _INT8_ROW > 0) | (cout % _INT8_ROW > 0))
    cin = ceil_to(cin, max(align, _INT8_ROW * quantised))
    cout = ceil_to(cout, max(align, _COLUMNS * quantised))
    taps = kernel[0] * kernel[1]
    columns = out_positions if quantised or out_positions == 1 else ceil_to(out_positions, _COLUMNS)
    windows = element * cin * taps * out_positions / MEGA
    read, write = element * cin * in_positions / MEGA, element * cout * out_positions / MEGA
    weight = element * cout * cin * taps / groups / MEGA
    return {
        "call": float(groups),
        "mflop": 2 * cin * cout * taps * columns / groups / MEGA,
        "unrolled": windows * ((taps > 1 or in_positions > out_positions) + 2 * odd),
        "weight": weight,
        "read": read,
        "write": write * (1 + 2 * odd),
    }


def transposed_conv(
    cin: Any,
    cout: Any,
    kernel: tuple[int, int],
    out_positions: int,
    in_positions: int,
    *,
    element: int = 4,
    groups: int = 1,
) -> Amounts:
    """A transposed convolution, family ``plain``: a matrix product, and its windows added up where they overlap."""
    taps = kernel[0] * kernel[1]
    return {
        "call": float(groups),
        "mflop": 2 * cin * cout * taps * in_positions / groups / MEGA,
        "unrolled": element * cout * taps * in_positions / MEGA,
        "weight": element * cin * cout * taps / groups / MEGA,
        "read": element * cin * in_positions / MEGA,
        "write": element * cout * out_positions / MEGA,
    }


def depthwise_conv(
    channels: Any, kernel: tuple[int, int], out_positions: int, *, in_positions: int, block: int = 1, element: int = 4
) -> Amounts:
    """A convolution of every channel for itself; family ``depthwise`` in blocks, else ``plain-depthwise``.

    The quantised kernel takes whole columns of channels; for any other number it is a slower one.
    """
    slow = (element == 1) * (channels % _COLUMNS > 0)
    channels = ceil_to(channels, block)
    taps = kernel[0] * kernel[1]
    width = max(1.0, math.sqrt(out_positions))
    stride = max(1, round(math.sqrt(in_positions / out_positions)))
    read, write = element * channels * in_positions / MEGA, element * channels * out_positions / MEGA
    mflop = 2 * channels * taps * out_positions / MEGA
    return {
        "call": 1.0,
        "mflop": mflop * (1 + 1.5 * slow),
        "edge": mflop * min(1.0, (kernel[1] - 1) / stride / width),
        "rows": channels / block * out_positions / width / 1e3,
        "pieces": channels / 1e3,
        "read": read,
        "write": write,
    }


def gemm(rows: int, cin: Any, cout: Any, *, element: int = 4) -> Amounts:
    """A product with a constant matrix, family ``gemm``."""
    weight = element * cin * cout / MEGA
    return {
        "call": 1.0,
        "mflop": 2 * rows * cin * cout / MEGA,
        "weight": weight,
        "read": element * rows * cin / MEGA,
        "write": element * rows * cout / MEGA,
    }


def moved(written: Any, pieces: Any = 0) -> Amounts:
    """A copy, a reorder, an element-wise operator: by the bytes that it writes, and in how many pieces."""
    megabytes = written / MEGA
    return {"call": 1.0, "pieces": pieces / 1e3, "write": megabytes}
