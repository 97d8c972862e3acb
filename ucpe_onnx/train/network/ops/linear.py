"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from ucpe_onnx.train.network.call import Call, Operator


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Alpha A B + beta C, A and B possibly transposed; C is broadcast to the product's shape."""
    a = a.T if call.flag("transA") else a
    b = b.T if call.flag("transB") else b
    alpha = call.number("alpha", 1.0)
    if c is None:
        return alpha * (a @ b)
    return torch.addmm(c, a, b, beta=call.number("beta", 1.0), alpha=alpha)


def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Product over the last two axes, the others broadcast; vectors are rows or columns."""
    return torch.matmul(a, b)


def einsum(call: Call, *tensors: Tensor) -> Tensor:
    """Sum of products by an equation."""
    return torch.einsum(call.text("equation", "").replace(" ", ""), *tensors)


OPERATORS: dict[str, Operator] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
