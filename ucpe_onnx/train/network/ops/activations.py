"""Activations, Softmax and its kin, and Dropout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ucpe_onnx.train.network.call import Call, Operator, Result, together


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Limits, which are attributes before opset 11 and then inputs; either may be left out."""
    if call.opset < 11:
        return torch.clamp(x, call.number("min", -math.inf), call.number("max", math.inf))
    # Bounds stay tensors: to read their values would be to wait for an accelerator.
    low, high = (None if bound is None else together(x, bound)[1] for bound in (low, high))
    return x if low is None and high is None else torch.clamp(x, low, high)


def elu(call: Call, x: Tensor) -> Tensor:
    """The identity above zero, alpha (exp(x) - 1) below."""
    return F.elu(x, call.number("alpha", 1.0))


def celu(call: Call, x: Tensor) -> Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    return F.celu(x, call.number("alpha", 1.0))


def selu(call: Call, x: Tensor) -> Tensor:
    """Elu, scaled by gamma."""
    alpha = call.number("alpha", 1.67326319217681884765625)
    return F.elu(x, alpha) * call.number("gamma", 1.05070102214813232421875)


def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """The identity above zero, alpha x below."""
    return F.leaky_relu(x, call.number("alpha", 0.01))


def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """The identity above zero, slope x below; the slope is broadcast."""
    return torch.where(x < 0, slope * x, x)


def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """The identity above alpha, zero below."""
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """min(max(alpha x + beta, 0), 1)."""
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0.0, 1.0)


def gelu(call: Call, x: Tensor) -> Tensor:
    """X Phi(x), exactly or by tanh."""
    return F.gelu(x, approximate=call.text("approximate", "none"))


def shrink(call: Call, x: Tensor) -> Tensor:
    """Bring elements nearer to zero by ``bias``; those that are nearer than ``lambd`` become zero."""
    bias, limit = call.number("bias", 0.0), call.number("lambd", 0.5)
    nearer = torch.where(x > limit, x - bias, torch.zeros_like(x))
    return torch.where(x < -limit, x + bias, nearer)


def swish(call: Call, x: Tensor) -> Tensor:
    """X sigmoid(alpha x)."""
    return x * torch.sigmoid(call.number("alpha", 1.0) * x)


def _along(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """A function along one axis, for which before opset 13 all axes from ``axis`` on count as one."""

    def operator(call: Call, x: Tensor) -> Tensor:
        if call.opset >= 13:
            return function(x, call.integer("axis", -1))
        return function(x.flatten(call.integer("axis", 1)), -1).reshape(x.shape)

    return operator


def _hardmax(x: Tensor, axis: int) -> Tensor:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None) -> Result:
    """While training, zero a share of the elements and scale up the others; what the file says of a mode is not heeded.

    The ratio is an attribute before opset 12 and then an input, one half by default.
    """
    share = call.number("ratio", 0.5) if ratio is None else float(ratio)
    ones = torch.ones_like(x)
    kept = F.dropout(ones, share) if call.run.training else ones
    return x * kept if call.run.training else x, kept != 0 if call.node.has(1) else None


OPERATORS: dict[str, Operator] = {
    "Celu": celu,
    "Clip": clip,
    "Dropout": dropout,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda call, x: F.hardswish(x),
    "Hardmax": _along(_hardmax),
    "LeakyRelu": leaky_relu,
    "LogSoftmax": _along(torch.log_softmax),
    "Mish": lambda call, x: F.mish(x),
    "PRelu": prelu,
    "Relu": lambda call, x: torch.relu(x),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": lambda call, x: torch.sigmoid(x),
    "Softmax": _along(torch.softmax),
    "Softplus": lambda call, x: F.softplus(x),
    "Softsign": lambda call, x: F.softsign(x),
    "Swish": swish,
    "Tanh": lambda call, x: torch.tanh(x),
    "ThresholdedRelu": thresholded_relu,
}
