"""BERT (Devlin et al. 2019), in the form of the transformers library: classification of sequences."""

from __future__ import annotations

import numpy as np

from . import dynamic
from .attention import attend
from .builder import Net
from .emitter import Value

LAYERS = 4
"""Of the 12 of BERT base, which repeat each other."""
VOCABULARY = 1000
"""Of 30,522 tokens; their table is never pruned."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_WIDTH = 768
_HEADS = 12
_LONGEST = 512
_EPSILON = 1e-12
_MASKED = -10000.0


def parameters(layers: int = LAYERS, vocabulary: int = VOCABULARY, classes: int = 2) -> int:
    """Number of parameters; 12 layers and 30,522 tokens give the 109,482,240 of BERT base, and two classes 1,538."""
    embeddings = (vocabulary + _LONGEST + 2 + 2) * _WIDTH
    layer = 12 * _WIDTH**2 + 13 * _WIDTH
    return embeddings + layers * layer + _WIDTH**2 + _WIDTH + (_WIDTH + 1) * classes


def bert(net: Net) -> Value:
    """Base width, separate projections to queries, keys and values, a mask that is added to the scores.

    A dynamic length makes the exporter compute every target of a Reshape from a Shape. Below opset 17 the layer
    normalisations are subgraphs.
    """
    mask = _additive_mask(net, net.inputs[1])
    x = _embed(net, "bert.embeddings")
    for index in range(LAYERS):
        x = _layer(net, x, mask, f"bert.encoder.layer.{index}")
    pooled = net.tanh(
        net.linear(net.take(x, "bert.pooler", 1, 0), "bert.pooler.dense", _WIDTH), "bert.pooler.activation"
    )
    return net.linear(pooled, "classifier", net.classes)


def _additive_mask(net: Net, mask: Value) -> Value:
    """Zero for tokens that count, far below zero for padding."""
    x = net.unsqueeze(net.unsqueeze(mask, 1), 2)
    x = net.emit("Cast", [x], to=1)
    x = net.emit("Sub", [net.constant(1.0), x], shape=x.shape)
    return net.scale(x, _MASKED)


def _embed(net: Net, module: str) -> Value:
    words = net.embedding(net.input, f"{module}.word_embeddings", VOCABULARY, _WIDTH)
    types = net.embedding(net.inputs[2], f"{module}.token_type_embeddings", 2, _WIDTH)
    x = net.add(words, types, module)
    positions = net.embedding(_positions(net, module), f"{module}.position_embeddings", _LONGEST, _WIDTH)
    return net.layer_norm(net.add(x, positions, module), f"{module}.LayerNorm", epsilon=_EPSILON)


def _positions(net: Net, module: str) -> Value:
    length = net.input.shape[1]
    if isinstance(length, int):
        if length > _LONGEST:
            raise ValueError(f"bert: a sequence has at most {_LONGEST} tokens, not {length}")
        return net.constant(np.arange(length)[None], module)
    every = net.constant(np.arange(_LONGEST)[None], module)
    bounds = [dynamic.as_tensor(net, [bound], module) for bound in (0, dynamic.size(net, net.input, 1, module), 1)]
    return net.emit("Slice", [every, *bounds], module, shape=(1, length))


def _layer(net: Net, x: Value, mask: Value, module: str) -> Value:
    attention = f"{module}.attention"
    heads = []
    for name in ("query", "key", "value"):
        y = net.linear(x, f"{attention}.self.{name}", _WIDTH)
        y = dynamic.view_tail(net, y, [_HEADS, _WIDTH // _HEADS], f"{attention}.self")
        heads.append(net.transpose(y, (0, 2, 1, 3), f"{attention}.self"))

    def adjust(scores: Value) -> Value:
        return net.emit("Add", [scores, mask], f"{attention}.self")

    y = net.transpose(attend(net, heads, f"{attention}.self", scaled="scores", adjust=adjust), (0, 2, 1, 3))
    y = net.linear(dynamic.view_tail(net, y, [_WIDTH], f"{attention}.self"), f"{attention}.output.dense", _WIDTH)
    x = net.layer_norm(net.add(y, x, f"{attention}.output"), f"{attention}.output.LayerNorm", epsilon=_EPSILON)
    y = net.gelu(net.linear(x, f"{module}.intermediate.dense", 4 * _WIDTH), f"{module}.intermediate")
    y = net.linear(y, f"{module}.output.dense", _WIDTH)
    return net.layer_norm(net.add(y, x, f"{module}.output"), f"{module}.output.LayerNorm", epsilon=_EPSILON)
