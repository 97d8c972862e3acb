"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ucpe_onnx.errors import ModelError
from ucpe_onnx.train.network.call import Call, Operator, Result


def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, *statistics: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, with the statistics of the batch or the running ones.

    A pass that updates the running statistics uses those of the batch, and sets ``running * momentum + batch *
    (1 - momentum)`` with the biased variance, as ONNX defines training (torch takes the unbiased one, and the
    complement as momentum).
    """
    if call.flag("training_mode") or any(call.node.has(i) for i in range(1, 5)) or not call.integer("spatial", 1):
        raise call.refused("training_mode, more than one output, or statistics for each place")
    mean, var = statistics
    epsilon = call.number("epsilon", 1e-5)
    if call.node.inputs[3] not in call.run.updated:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ModelError(
            f"{call.label}: node {call.node.name!r} gets one value per channel, which has no variance: train on larger"
            " batches, or freeze the statistics"
        )
    batch_mean, batch_var = torch.zeros_like(mean), torch.ones_like(var)
    y = F.batch_norm(x, batch_mean, batch_var, scale, bias, True, 1.0, epsilon)  # writes what it finds into them
    momentum = call.number("momentum", 0.9)
    with torch.no_grad():
        mean.mul_(momentum).add_(batch_mean, alpha=1 - momentum)
        var.mul_(momentum).add_(batch_var, alpha=(1 - momentum) * (count - 1) / count)
    return y


def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise every channel of every example over space."""
    return torch.group_norm(x, x.shape[1], scale, bias, call.number("epsilon", 1e-5))


def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise groups of channels over space; before opset 21 scale and bias have one element for each group."""
    groups = call.integer("num_groups", 1)
    if call.opset < 21:
        scale, bias = (p.repeat_interleave(x.shape[1] // groups) for p in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, call.number("epsilon", 1e-5))


def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """Normalise over the axes from ``axis`` on, the last by default."""
    axis, epsilon = call.integer("axis", -1) % x.ndim, call.number("epsilon", 1e-5)
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if not (call.node.has(1) or call.node.has(2)):
        return y
    var, mean = torch.var_mean(x, tuple(range(axis, x.ndim)), correction=0, keepdim=True)
    return y, mean, torch.rsqrt(var + epsilon)


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root of the mean square over the axes from ``axis`` on, the last by default."""
    axes = tuple(range(call.integer("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5)) * scale


def lrn(call: Call, x: Tensor) -> Tensor:
    """X / (bias + alpha / size * sum of squares)^beta, the sum over ``size`` channels around each."""
    size = call.integer("size", 1)
    squares = x.square().flatten(2).unsqueeze(1)
    squares = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    means = F.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
    return x / (call.number("bias", 1.0) + call.number("alpha", 1e-4) * means) ** call.number("beta", 0.75)


def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divide by the norm along an axis; where it is zero, so is the result."""
    norm = torch.linalg.vector_norm(x, call.integer("p", 2), call.integer("axis", -1), keepdim=True)
    return torch.where(norm > 0, x / torch.where(norm > 0, norm, torch.ones_like(norm)), torch.zeros_like(x))


def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """(x - mean) / (deviation + 1e-9) over ``axes``, all but the channels by default."""
    axes = call.integers("axes") or [0, 2, 3]
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    var = var.clamp_min(torch.finfo(x.dtype).tiny)  # the root has no gradient at zero
    return (x - mean) / (torch.sqrt(var) + 1e-9)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
