"""Mixtures of experts (Shazeer et al. 2017), all experts on all tokens, weighed by a router that picks the best."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import dynamic
from .builder import Net
from .emitter import Value


@dataclass(frozen=True)
class Experts:
    """Experts whose weights are one tensor each, as Llama 4 and gpt-oss have them in transformers.

    Attributes:
        inner: Width within an expert; the two halves of its first layer, gate and other, are twice as wide.
        count: Number of experts.
        best: How many of them count for a token.
        einsum: Products are an Einsum each, not a MatMul of rank three.
    """

    inner: int = 128
    count: int = 4
    best: int = 2
    einsum: bool = False

    def parameters(self, width: int) -> int:
        """Number of parameters of a layer of this width."""
        return self.count * (width + 1 + 3 * width * self.inner)

    def __call__(self, net: Net, x: Value, module: str) -> Value:
        """Write one layer over (batch, length, width)."""
        width = int(x.shape[2])
        sizes = [dynamic.size(net, x, axis, module) for axis in range(2)]
        tokens = net.view(x, [-1, width], ("tokens", width), module)
        weights = self._routed(net, tokens, module)
        y = (
            self._by_einsum(net, tokens, weights, module)
            if self.einsum
            else self._by_matmul(net, tokens, weights, module)
        )
        return dynamic.view(net, y, [*sizes, width], x.shape, module)

    def _routed(self, net: Net, tokens: Value, module: str) -> Value:
        """Weights of the experts, (tokens, experts): a softmax over the best, zero for the others."""
        logits = net.linear(tokens, f"{module}.gate", self.count, bias=True)
        best = net.constant(np.array([self.best], dtype=np.int64), module)
        like = replace(logits, shape=(tokens.shape[0], self.best))
        values, places = net.emit_many("TopK", [logits, best], module, [like, like], axis=1, largest=1, sorted=1)
        chances = net.emit("Softmax", [values], module, axis=1)
        sizes = net.emit("Shape", [logits], module, shape=(2,))
        zeros = net.emit("ConstantOfShape", [sizes], module, shape=logits.shape, value=net.filling(0.0))
        return net.emit("ScatterElements", [zeros, places, chances], module, shape=logits.shape, axis=1)

    def _drawn(self, net: Net, tokens: Value, module: str) -> list[Value]:
        width = int(tokens.shape[1])
        return [
            net.weight(f"{module}.experts.gate_up_proj", (self.count, width, 2 * self.inner), (1,), tokens.power),
            net.weight(f"{module}.experts.down_proj", (self.count, self.inner, width), (1,), 0.33),
        ]

    def _gated(self, net: Net, x: Value, module: str) -> Value:
        gate, up = net.emit_split(x, module, 2, axis=2)
        return net.emit("Mul", [net.silu(gate, module), up], module, power=0.33)

    def _by_matmul(self, net: Net, tokens: Value, weights: Value, module: str) -> Value:
        first, second = self._drawn(net, tokens, module)
        many, width = tokens.shape[0], int(tokens.shape[1])
        y = net.emit("Unsqueeze", [tokens, net.constant(np.array([0]), module)], module, shape=(1, many, width))
        y = net.emit("MatMul", [y, first], module, shape=(self.count, many, 2 * self.inner), power=1.0)
        y = net.emit(
            "MatMul", [self._gated(net, y, module), second], module, shape=(self.count, many, width), power=1.0
        )
        column = net.unsqueeze(net.transpose(weights, (1, 0), module), 2, module)
        y = net.emit("Mul", [y, column], module, power=0.4)
        return net.reduce("ReduceSum", y, module, [0], keepdims=False)

    def _by_einsum(self, net: Net, tokens: Value, weights: Value, module: str) -> Value:
        first, second = self._drawn(net, tokens, module)
        many, width = tokens.shape[0], int(tokens.shape[1])
        shape = (many, self.count, 2 * self.inner)
        y = net.emit("Einsum", [tokens, first], module, shape=shape, power=1.0, equation="td,edf->tef")
        y = self._gated(net, y, module)
        y = net.emit("Einsum", [y, second], module, shape=(many, self.count, width), power=1.0, equation="tef,efd->ted")
        return net.emit("Einsum", [y, weights], module, shape=(many, width), power=0.4, equation="ted,te->td")
