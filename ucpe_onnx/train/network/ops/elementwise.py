"""Arithmetic, comparison and logic, element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from ucpe_onnx.train.network.call import Call, Operator, together


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call, a, b: function(*together(a, b))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call, *tensors: reduce(function, together(*tensors))


def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Quotient, which integers round towards zero."""
    a, b = together(a, b)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Remainder with the sign of the divisor, or with ``fmod`` that of the dividend."""
    a, b = together(a, b)
    return torch.fmod(a, b) if call.flag("fmod") else torch.remainder(a, b)


def power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """Power, of the type of the base."""
    base, exponent = together(base, exponent)
    return torch.pow(base, exponent).to(base.dtype)


def mean(call: Call, *tensors: Tensor) -> Tensor:
    """Mean of several tensors."""
    return reduce(torch.add, together(*tensors)) / len(tensors)


def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One or the other."""
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


def is_inf(call: Call, x: Tensor) -> Tensor:
    """Whether elements are infinite, of one sign or either."""
    found = torch.isinf(x)
    if not call.integer("detect_positive", 1):
        found = found & (x < 0)
    return found if call.integer("detect_negative", 1) else found & (x > 0)


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": div,
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "IsInf": is_inf,
    "IsNaN": _unary(torch.isnan),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "Max": _variadic(torch.maximum),
    "Mean": mean,
    "Min": _variadic(torch.minimum),
    "Mod": mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": power,
    "Reciprocal": _unary(torch.reciprocal),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Tan": _unary(torch.tan),
    "Where": where,
    "Xor": _binary(torch.logical_xor),
}
