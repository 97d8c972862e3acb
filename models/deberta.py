"""DeBERTa (He et al. 2021): attention between contents and positions, each apart, in the form of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import dynamic
from .builder import Net
from .emitter import Value

_EPSILON = 1e-7
_LOWEST = float(np.finfo(np.float32).min)

Layers = Mapping[str, tuple[Value, Value]]
"""Weights and biases of the projections, by name: contents and positions go through the same."""


@dataclass(frozen=True)
class _Pairs:
    """What attention knows of pairs of tokens: the same in all layers.

    Attributes:
        distances: Their embeddings, (1, distances, width).
        places: Where the distance of each pair stands among them, seen from either side, (length, length).
        hidden: Whether one is padding, (batch, 1, length, length).
    """

    distances: Value
    places: Sequence[Value]
    hidden: Value


@dataclass(frozen=True)
class Deberta:
    """Classification of sequences by attention whose scores are a sum of three.

    Contents with contents, contents with the positions of what they look at, positions with contents: the last two are
    products with the distances' embeddings, from which GatherElements takes the distance of each pair. Heads are merged
    into the batch.

    Attributes:
        width: Of the stream.
        heads: Of every attention.
        layers: Their number.
        vocabulary: Number of tokens.
        span: Distances beyond it are treated alike.
    """

    width: int = 192
    heads: int = 6
    layers: int = 2
    vocabulary: int = 1000
    span: int = 32

    def parameters(self, classes: int) -> int:
        """Number of parameters with so many classes."""
        layer = 12 * self.width**2 + 13 * self.width
        ends = (self.vocabulary + 2 * self.span + 4) * self.width
        return ends + self.layers * layer + self.width**2 + self.width + (self.width + 1) * classes

    def __call__(self, net: Net) -> Value:
        """Write the network."""
        mask, module = net.inputs[1], "deberta.embeddings"
        x = net.embedding(net.input, f"{module}.word_embeddings", self.vocabulary, self.width)
        x = net.layer_norm(x, f"{module}.LayerNorm", epsilon=_EPSILON)
        x = net.emit("Mul", [x, net.emit("Cast", [net.unsqueeze(mask, 2, module)], module, to=1)], module)
        module = "deberta.encoder"
        table = net.parameter(f"{module}.rel_embeddings.weight", net.normal((2 * self.span, self.width), 0.5))
        distances = net.unsqueeze(net.layer_norm(table, f"{module}.LayerNorm", epsilon=_EPSILON), 0, module)
        pairs = _Pairs(distances, self._places(net, net.input, module), _hidden(net, mask, module))
        for layer in range(self.layers):
            x = self._layer(net, x, f"{module}.layer.{layer}", pairs)
        y = net.gelu(net.linear(net.take(x, "pooler", 1, 0), "pooler.dense", self.width), "pooler")
        return net.linear(y, "classifier", net.classes)

    def _places(self, net: Net, tokens: Value, module: str) -> list[Value]:
        """Where the distances of pairs stand among the embeddings, seen from either side: (length, length)."""
        length = tokens.shape[1]
        every = dynamic.arange(net, dynamic.size(net, tokens, 1, module), module, length)
        sides = [net.unsqueeze(every, axis, module) for axis in (1, 0)]
        apart = net.emit("Sub", sides, module, shape=(length, length))
        bounds = [net.constant(np.int64(limit), module) for limit in (0, 2 * self.span - 1)]
        middle = net.constant(np.int64(self.span), module)
        shifted = [net.emit(op, [middle, apart], module, shape=apart.shape) for op in ("Add", "Sub")]
        return [net.emit("Clip", [side, *bounds], module) for side in shifted]

    def _layer(self, net: Net, x: Value, module: str, pairs: _Pairs) -> Value:
        attention = f"{module}.attention"
        y = self._attention(net, x, f"{attention}.self", pairs)
        y = net.linear(y, f"{attention}.output.dense", self.width)
        x = net.layer_norm(net.add(y, x, f"{attention}.output"), f"{attention}.output.LayerNorm", epsilon=_EPSILON)
        y = net.gelu(net.linear(x, f"{module}.intermediate.dense", 4 * self.width), f"{module}.intermediate")
        y = net.linear(y, f"{module}.output.dense", self.width)
        return net.layer_norm(net.add(y, x, f"{module}.output"), f"{module}.output.LayerNorm", epsilon=_EPSILON)

    def _attention(self, net: Net, x: Value, module: str, pairs: _Pairs) -> Value:
        (batch, length), head = x.shape[:2], self.width // self.heads
        sizes = [dynamic.size(net, x, axis, module) for axis in range(2)]
        layers = {name: self._projection(net, f"{module}.{name}_proj", x.power) for name in ("query", "key", "value")}
        query, key, value = (self._heads(net, x, layers, name, module) for name in layers)
        scores = self._scores(net, (query, key), layers, pairs, module)
        scores = dynamic.view(
            net, scores, [-1, self.heads, sizes[1], sizes[1]], (batch, self.heads, length, length), module
        )
        scores = net.emit("Where", [pairs.hidden, net.constant(_LOWEST, module), scores], module, shape=scores.shape)
        weights = net.emit("Softmax", [scores], module, axis=-1)
        weights = net.emit("Where", [pairs.hidden, net.constant(0.0, module), weights], module, shape=scores.shape)
        weights = dynamic.view(net, weights, [-1, sizes[1], sizes[1]], (query.shape[0], length, length), module)
        y = net.emit("MatMul", [weights, value], module, shape=query.shape, power=0.1)
        y = dynamic.view(net, y, [-1, self.heads, sizes[1], head], (batch, self.heads, length, head), module)
        y = net.transpose(y, (0, 2, 1, 3), module)
        return dynamic.view(net, y, [*sizes, -1], x.shape, module)

    def _projection(self, net: Net, module: str, power: float) -> tuple[Value, Value]:
        weight = net.weight(f"{module}.weight", (self.width, self.width), (0,), power)
        return weight, net.parameter(f"{module}.bias", net.normal([self.width], 0.05))

    def _heads(self, net: Net, x: Value, layers: Layers, name: str, module: str) -> Value:
        """A projection of x, (batch, length, width), with its heads merged into the batch."""
        weight, bias = layers[name]
        batch, length = x.shape[:2]
        sizes, head = [dynamic.size(net, x, axis, module) for axis in range(2)], self.width // self.heads
        y = net.emit("MatMul", [x, weight], f"{module}.{name}_proj", shape=x.shape, power=1.0)
        y = net.emit("Add", [bias, y], f"{module}.{name}_proj", shape=x.shape, power=1.0)
        y = dynamic.view(net, y, [*sizes, self.heads, head], (batch, length, self.heads, head), module)
        y = net.transpose(y, (0, 2, 1, 3), module)
        merged = batch * self.heads if isinstance(batch, int) else "batch * heads"
        return dynamic.view(net, y, [-1, sizes[1], head], (merged, length, head), module)

    def _scores(self, net: Net, parts: tuple[Value, Value], layers: Layers, pairs: _Pairs, module: str) -> Value:
        """The sum of the three products, (batch * heads, length, length)."""
        query, key = parts
        merged, length = query.shape[:2]
        root = net.constant(math.sqrt(3 * self.width / self.heads), module)
        batch = dynamic.size(net, net.input, 0, module)
        sizes = [dynamic.size(net, query, axis, module) for axis in range(2)]

        def product(a: Value, b: Value) -> Value:
            turned = net.transpose(b, (0, 2, 1), module)
            y = net.emit("MatMul", [a, turned], module, shape=(merged, length, b.shape[1]), power=1.0)
            return net.emit("Div", [y, root], module)

        def by_distance(x: Value, name: str, place: Value) -> Value:
            repeats = dynamic.as_tensor(net, [batch, 1, 1], module)
            table = self._heads(net, pairs.distances, layers, name, module)
            table = net.emit("Tile", [table, repeats], module, shape=(merged, *table.shape[1:]))
            index = dynamic.expand(net, place, [*sizes, sizes[1]], (merged, length, length), module)
            return net.emit("GatherElements", [product(x, table), index], module, shape=index.shape, axis=-1)

        to_position = by_distance(query, "key", pairs.places[0])
        from_position = net.transpose(by_distance(key, "query", pairs.places[1]), (0, 2, 1), module)
        return net.add(product(query, key), net.add(to_position, from_position, module), module)


def _hidden(net: Net, mask: Value, module: str) -> Value:
    """Which pairs hold padding: (batch, 1, length, length)."""
    batch, length = mask.shape
    wide = net.unsqueeze(net.unsqueeze(mask, 1, module), 2, module)
    pairs = net.emit("Mul", [wide, net.transpose(wide, (0, 1, 3, 2), module)], module, shape=(batch, 1, length, length))
    return net.emit("Not", [net.emit("Cast", [pairs], module, to=9)], module)
