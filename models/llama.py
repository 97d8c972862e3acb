"""Decoders of text: Llama (Touvron et al. 2023) and Mixtral (Jiang et al. 2024), as optimum exports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import dynamic
from .attention import attend
from .builder import Net
from .emitter import Value
from .experts import Experts

_LOWEST = float(np.finfo(np.float32).min)
_BASE = 10000.0
_TOTAL = "past_sequence + sequence"


@dataclass(frozen=True)
class Llama:
    """A decoder that reads tokens, and keys and values of the tokens before them, and writes these and logits.

    Root-mean-square norms are written out, positions turn queries and keys (rotary embedding), several query heads
    share a key head (which is repeated by Expand), the feed-forward layer is gated by SiLU, and the causal mask is made
    from the lengths.

    Attributes:
        width: Of the residual stream.
        heads: Of queries.
        groups: Heads of keys and values.
        inner: Width of the feed-forward layers.
        layers: Their number.
        vocabulary: Number of tokens.
        experts: Takes the place of the feed-forward layers, if it is given.
    """

    width: int = 192
    heads: int = 6
    groups: int = 2
    inner: int = 512
    layers: int = 2
    vocabulary: int = 1000
    experts: Experts | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters; the embedding and the output layer share none."""
        head = self.width // self.heads
        attention = 2 * self.width**2 + 2 * self.width * self.groups * head
        forward = self.experts.parameters(self.width) if self.experts else 3 * self.width * self.inner
        return 2 * self.vocabulary * self.width + self.layers * (attention + forward + 2 * self.width) + self.width

    def __call__(self, net: Net) -> list[Value]:
        """Write the network; its first output are the logits, then keys and values of each layer."""
        batch, length = net.input.shape
        head = self.width // self.heads
        mask = net.add_input("attention_mask", (batch, _TOTAL), np.int64)
        positions = net.add_input("position_ids", (batch, length), np.int64)
        before = (batch, self.groups, "past_sequence", head)
        past = [
            [net.add_input(f"past_key_values.{layer}.{part}", before, np.float32) for part in ("key", "value")]
            for layer in range(self.layers)
        ]
        hidden = net.embedding(net.input, "model.embed_tokens", self.vocabulary, self.width)
        causal = _causal_mask(net, mask, past[0][0])
        angles = _angles(net, positions, head)
        presents: list[Value] = []
        for layer in range(self.layers):
            module = f"model.layers.{layer}"
            y = net.rms_norm(hidden, f"{module}.input_layernorm")
            y, present = self._attention(net, y, f"{module}.self_attn", (causal, angles, past[layer]))
            presents += present
            hidden = net.add(hidden, y, module)
            y = net.rms_norm(hidden, f"{module}.post_attention_layernorm")
            hidden = net.add(hidden, self._feed_forward(net, y, module), module)
        return [
            net.linear(net.rms_norm(hidden, "model.norm"), "lm_head", self.vocabulary, bias=False),
            *presents,
        ]

    def _attention(
        self, net: Net, x: Value, module: str, given: tuple[Value, Sequence[Value], Sequence[Value]]
    ) -> tuple[Value, list[Value]]:
        causal, angles, past = given
        query, key, value = (
            _heads(net, net.linear(x, f"{module}.{name}_proj", count * (self.width // self.heads), bias=False), count)
            for name, count in (("q", self.heads), ("k", self.groups), ("v", self.groups))
        )
        query, key = (_rotated(net, part, angles, module) for part in (query, key))
        present = [
            net.emit(
                "Concat", [old, new], module, shape=(*new.shape[:2], _TOTAL, new.shape[3]), power=new.power, axis=2
            )
            for old, new in zip(past, (key, value), strict=True)
        ]
        key, value = (_repeated(net, part, self.heads // self.groups, module) for part in present)

        def adjust(scores: Value) -> Value:
            return net.emit("Add", [scores, causal], module)

        y = net.transpose(
            attend(net, [query, key, value], module, scaled="scores", adjust=adjust), (0, 2, 1, 3), module
        )
        y = dynamic.view_tail(net, y, [self.width], module)
        return net.linear(y, f"{module}.o_proj", self.width, bias=False), present

    def _feed_forward(self, net: Net, x: Value, module: str) -> Value:
        if self.experts:
            return self.experts(net, x, f"{module}.block_sparse_moe")
        gate = net.linear(x, f"{module}.mlp.gate_proj", self.inner, bias=False)
        up = net.linear(x, f"{module}.mlp.up_proj", self.inner, bias=False)
        y = net.emit("Mul", [net.silu(gate, f"{module}.mlp.act_fn"), up], f"{module}.mlp", power=0.33)
        return net.linear(y, f"{module}.mlp.down_proj", self.width, bias=False)


def _heads(net: Net, x: Value, heads: int) -> Value:
    """From (batch, length, width) to (batch, heads, length, width of a head)."""
    y = dynamic.view_tail(net, x, [heads, int(x.shape[2]) // heads], "model.heads")
    return net.transpose(y, (0, 2, 1, 3), "model.heads")


def _repeated(net: Net, x: Value, times: int, module: str) -> Value:
    """`x.repeat_interleave(times, dim=1)`, as transformers' repeat_kv does it."""
    batch, heads, length, width = x.shape
    sizes = [dynamic.size(net, x, axis, module) for axis in (0, 2)]
    y = net.unsqueeze(x, 2, module)
    wide = (batch, int(heads), times, length, int(width))
    y = dynamic.expand(net, y, [sizes[0], int(heads), times, sizes[1], int(width)], wide, module)
    joined = (batch, int(heads) * times, length, int(width))
    return dynamic.view(net, y, [sizes[0], int(heads) * times, sizes[1], int(width)], joined, module)


def _angles(net: Net, positions: Value, width: int) -> list[Value]:
    """Cosine and sine of each position times each frequency, (batch, 1, length, width)."""
    module = "model.rotary_emb"
    frequencies = (1.0 / _BASE ** (np.arange(0, width, 2) / width)).astype(np.float32)
    batch, length = positions.shape
    first = net.constant(frequencies[None, :, None], module)
    column = (batch, width // 2, 1)
    first = dynamic.expand(net, first, [dynamic.size(net, positions, 0, module), width // 2, 1], column, module)
    second = net.emit("Cast", [net.unsqueeze(positions, 1, module)], module, to=1)
    y = net.emit("MatMul", [first, second], module, shape=(batch, width // 2, length))
    y = net.transpose(y, (0, 2, 1), module)
    y = net.concat([y, y], module, axis=2)
    return [net.unsqueeze(net.emit(op, [y], module), 1, module) for op in ("Cos", "Sin")]


def _rotated(net: Net, x: Value, angles: Sequence[Value], module: str) -> Value:
    """The product of x and the cosine, plus x with its halves swapped, the second negated, times the sine."""
    cosine, sine = angles
    width = int(x.shape[-1])
    low = net.slice(x, module, 3, (0, width // 2))
    high = net.slice(x, module, 3, (width // 2, None))
    turned = net.concat([net.emit("Neg", [high], module), low], module, axis=3)
    y = net.emit("Add", [net.emit("Mul", [x, cosine], module), net.emit("Mul", [turned, sine], module)], module)
    return replace(y, power=x.power)


def _causal_mask(net: Net, mask: Value, past: Value) -> Value:
    """Zero for the tokens that a token may see, far below zero for later ones and padding."""
    module = "model"
    lengths = (dynamic.size(net, past, 2, module), dynamic.size(net, net.input, 1, module))
    end = dynamic.total(net, *lengths, module)
    length = net.input.shape[1]
    shape = (length, _TOTAL)
    lowest = net.constant(_LOWEST, module)
    every = dynamic.expand(net, lowest, [lengths[1], end], shape, module)
    if net.opset >= 14:  # which has Trilu; the comparison below is enough by itself
        every = net.emit("Trilu", [every, net.constant(np.int64(1), module)], module, upper=1)
    columns = dynamic.arange(net, end, module, _TOTAL)
    rows = dynamic.view(net, dynamic.arange(net, end, module, length, start=lengths[0]), [-1, 1], (length, 1), module)
    later = net.emit("Greater", [columns, rows], module, shape=shape)
    causal = net.emit("Mul", [every, net.emit("Cast", [later], module, to=1)], module)
    causal = net.unsqueeze(net.unsqueeze(causal, 0, module), 1, module)
    batch = dynamic.size(net, net.input, 0, module)
    whole = (net.input.shape[0], 1, *shape)
    causal = dynamic.expand(net, causal, [batch, 1, lengths[1], end], whole, module)
    seen = net.emit("Cast", [net.unsqueeze(net.unsqueeze(mask, 1, module), 2, module)], module, to=1)
    hidden = net.emit("Equal", [net.emit("Add", [causal, seen], module), net.constant(0.0, module)], module)
    return net.emit("Where", [hidden, lowest, causal], module, shape=whole)
