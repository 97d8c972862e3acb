"""Convolutions over one, two or three axes of space."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ucpe_onnx.train.network.call import Call, Operator, padded
from ucpe_onnx.train.network.windows import window_of

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution; padding that is not the same on both sides is added beforehand."""
    window = window_of(call, x.shape[2:], weight.shape[2:])
    padding: tuple[int, ...] | int = window.before
    if not window.symmetric():
        x, padding = padded(x, window.before, window.after), 0
    function = _CONV[len(window.kernel)]
    result: Tensor = function(
        x, weight, bias, window.strides, padding, window.dilations, groups=call.integer("group", 1)
    )
    return result


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution: everything that the kernel reaches, cut to the size asked for, then the bias.

    The output may be larger than what the kernel reaches (``output_padding``, ``output_shape``): there it is the bias.
    """
    kernel = weight.shape[2:]
    rank = len(kernel)
    window = window_of(call, x.shape[2:], kernel)
    more = call.integers("output_padding") or [0] * rank
    steps = zip(x.shape[2:], window.strides, window.extent, strict=True)
    reach = [(size - 1) * stride + extent for size, stride, extent in steps]
    whole = [size + extra for size, extra in zip(reach, more, strict=True)]
    before, sizes = list(window.before), call.integers("output_shape")
    kind = call.text("auto_pad", "NOTSET")
    if sizes is None and kind.startswith("SAME"):  # not more than there is, as onnxruntime has it
        sizes = [min(w, size * s) for w, size, s in zip(whole, x.shape[2:], window.strides, strict=True)]
    if sizes is None:
        sizes = [w - low - high for w, low, high in zip(whole, window.before, window.after, strict=True)]
    else:
        sizes = sizes[-rank:]
        totals = [max(0, w - size) for w, size in zip(whole, sizes, strict=True)]
        before = [total // 2 if kind == "SAME_UPPER" else total - total // 2 for total in totals]
    function = _TRANSPOSED[rank]
    y: Tensor = function(
        x, weight, None, window.strides, 0, 0, groups=call.integer("group", 1), dilation=window.dilations
    )
    after = [size + low - full for size, low, full in zip(sizes, before, reach, strict=True)]
    y = padded(y, [-low for low in before], after)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


OPERATORS: dict[str, Operator] = {"Conv": conv, "ConvTranspose": conv_transpose}
