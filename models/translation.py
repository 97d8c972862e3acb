"""Encoder and decoder: the Transformer (Vaswani et al. 2017) as Marian has it, and T5 (Raffel et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import dynamic
from .attention import attend
from .builder import Net
from .emitter import Value

_MASKED = -10000.0
_LONGEST = 512

Adjust = Callable[[Value], Value]
"""What happens to scores: masks, biases."""


@dataclass(frozen=True)
class Translation:
    """Tokens of one language and of the other, up to now, to scores of the next ones.

    The decoder looks at itself with a causal mask, and at the encoder with the mask of the encoder's tokens. Both have
    their embedding in common with the output layer in the original; here each has its own.

    Attributes:
        width: Of both streams.
        heads: Of every attention.
        inner: Width of the feed-forward layers.
        layers: Of the encoder, and of the decoder.
        vocabulary: Number of tokens.
        relative: As in T5: root-mean-square norms in front, no biases, scores that are not scaled, and a bias by the
            distance of two tokens; otherwise norms behind, and a table of positions.
    """

    width: int = 192
    heads: int = 6
    inner: int = 512
    layers: int = 2
    vocabulary: int = 1000
    relative: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        bias = 0 if self.relative else 1
        attention = 4 * (self.width**2 + bias * self.width)
        forward = 2 * self.width * self.inner + bias * (self.width + self.inner)
        norm = (1 + bias) * self.width
        blocks = self.layers * (3 * attention + 2 * forward + 5 * norm)
        ends = 3 * self.vocabulary * self.width
        if self.relative:
            return ends + blocks + 2 * norm + 2 * _BUCKETS * self.heads
        return ends + blocks + 2 * _LONGEST * self.width + bias * self.vocabulary

    def __call__(self, net: Net) -> Value:
        """Write the network."""
        batch = net.input.shape[0]
        target = net.add_input("decoder_input_ids", (batch, "target"), np.int64)
        hidden = _padding(net, net.inputs[1])
        memory = self._stack(net, net.input, "encoder", hidden)
        x = self._stack(net, target, "decoder", hidden, memory)
        return net.linear(x, "lm_head", self.vocabulary, bias=not self.relative)

    def _stack(self, net: Net, tokens: Value, module: str, hidden: Value, memory: Value | None = None) -> Value:
        """The encoder or, with a memory, the decoder."""
        x = net.embedding(tokens, f"{module}.embed_tokens", self.vocabulary, self.width)
        if not self.relative:
            x = net.add(x, _positions(net, tokens, f"{module}.embed_positions", self.width), module)
        own = self._own(net, tokens, module, hidden if memory is None else None)
        for layer in range(self.layers):
            x = self._layer(net, x, f"{module}.layers.{layer}", (own, _adding(net, hidden, module)), memory)
        return net.rms_norm(x, f"{module}.final_layer_norm") if self.relative else x

    def _own(self, net: Net, tokens: Value, module: str, hidden: Value | None) -> Adjust:
        """What is added to the scores within a stack: padding or the causal mask, and the bias of distances."""
        mask = _causal(net, tokens, module) if hidden is None else hidden
        if self.relative:
            bias = _distance_bias(net, tokens, f"{module}.relative_attention_bias", self.heads, causal=hidden is None)
            mask = net.emit("Add", [bias, mask], module)
        return _adding(net, mask, module)

    def _layer(self, net: Net, x: Value, module: str, adjust: tuple[Adjust, Adjust], memory: Value | None) -> Value:
        x = self._added(net, x, f"{module}.self_attn", lambda y, name: self._attention(net, y, y, name, adjust[0]))
        if memory is not None:
            read = memory
            x = self._added(
                net, x, f"{module}.encoder_attn", lambda y, name: self._attention(net, y, read, name, adjust[1])
            )
        return self._added(net, x, f"{module}.mlp", lambda y, name: self._feed_forward(net, y, name))

    def _added(self, net: Net, x: Value, module: str, function: Callable[[Value, str], Value]) -> Value:
        """A residual branch, with its norm in front or behind."""
        if self.relative:
            return net.add(x, function(net.rms_norm(x, f"{module}_layer_norm"), module), module)
        return net.layer_norm(net.add(x, function(x, module), module), f"{module}_layer_norm", epsilon=1e-5)

    def _attention(self, net: Net, x: Value, memory: Value, module: str, adjust: Adjust) -> Value:
        bias = not self.relative
        heads = []
        for name, read in (("q", x), ("k", memory), ("v", memory)):
            y = net.linear(read, f"{module}.{name}_proj", self.width, bias=bias)
            y = dynamic.view_tail(net, y, [self.heads, self.width // self.heads], module)
            heads.append(net.transpose(y, (0, 2, 1, 3), module))
        scaled = "nothing" if self.relative else "query"
        y = net.transpose(attend(net, heads, module, scaled=scaled, adjust=adjust), (0, 2, 1, 3), module)
        y = dynamic.view_tail(net, y, [self.width], module)
        return net.linear(y, f"{module}.out_proj", self.width, bias=bias)

    def _feed_forward(self, net: Net, x: Value, module: str) -> Value:
        y = net.relu(net.linear(x, f"{module}.fc1", self.inner, bias=not self.relative), module)
        return net.linear(y, f"{module}.fc2", self.width, bias=not self.relative)


def _adding(net: Net, mask: Value, module: str) -> Adjust:
    return lambda scores: net.emit("Add", [scores, mask], module)


def _padding(net: Net, mask: Value) -> Value:
    """Zero for tokens that count, far below zero for padding: (batch, 1, 1, length)."""
    x = net.emit("Cast", [net.unsqueeze(net.unsqueeze(mask, 1), 2)], to=1)
    return net.scale(net.emit("Sub", [net.constant(1.0), x], shape=x.shape), _MASKED)


def _numbers(net: Net, tokens: Value, module: str) -> tuple[Value, Value]:
    """The numbers of the tokens, as a column and as a row."""
    length = tokens.shape[1]
    every = dynamic.arange(net, dynamic.size(net, tokens, 1, module), module, length)
    return net.unsqueeze(every, 1, module), net.unsqueeze(every, 0, module)


def _causal(net: Net, tokens: Value, module: str) -> Value:
    """Zero for tokens that are not later, far below zero for those that are: (1, 1, length, length)."""
    column, row = _numbers(net, tokens, module)
    later = net.emit("Greater", [row, column], module, shape=(tokens.shape[1], tokens.shape[1]))
    x = net.scale(net.emit("Cast", [later], module, to=1), _MASKED, module)
    return net.unsqueeze(net.unsqueeze(x, 0, module), 1, module)


def _positions(net: Net, tokens: Value, module: str, width: int) -> Value:
    """A row of a table for each position."""
    every = dynamic.arange(net, dynamic.size(net, tokens, 1, module), module, tokens.shape[1])
    return net.embedding(every, module, _LONGEST, width)


_BUCKETS = 32
_FAR = 128


def _distance_bias(net: Net, tokens: Value, module: str, heads: int, *, causal: bool) -> Value:
    """A number for each head and each class of distances, (1, heads, length, length).

    Small distances have a class each, larger ones share them by their logarithm; in the encoder half of the classes are
    for tokens that come later.
    """
    column, row = _numbers(net, tokens, module)
    square = (tokens.shape[1], tokens.shape[1])
    apart = net.emit("Sub", [row, column], module, shape=square)
    classes, shift = _BUCKETS, None
    if causal:
        apart = net.emit("Min", [apart, net.constant(np.int64(0), module)], module)
    else:
        classes //= 2
        later = net.emit("Greater", [apart, net.constant(np.int64(0), module)], module)
        shift = net.emit(
            "Mul", [net.emit("Cast", [later], module, to=7), net.constant(np.int64(classes), module)], module
        )
    apart = net.emit("Abs", [apart], module)
    exact = classes // 2
    near = net.emit("Less", [apart, net.constant(np.int64(exact), module)], module)
    ratio = net.emit("Div", [net.emit("Cast", [apart], module, to=1), net.constant(float(exact), module)], module)
    steps = net.scale(net.emit("Log", [ratio], module), (classes - exact) / math.log(_FAR / exact), module)
    far = net.emit("Add", [net.emit("Cast", [steps], module, to=7), net.constant(np.int64(exact), module)], module)
    far = net.emit("Min", [far, net.constant(np.int64(classes - 1), module)], module)
    bucket = net.emit("Where", [near, apart, far], module, shape=square)
    if shift is not None:
        bucket = net.emit("Add", [bucket, shift], module)
    y = net.embedding(bucket, module, _BUCKETS, heads)
    return net.unsqueeze(net.transpose(y, (2, 0, 1), module), 0, module)
