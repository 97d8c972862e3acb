"""Random operators without a seed draw other numbers in every session: for a comparison, both models get the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import onnx

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def unseeded(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors that random operators without a seed make, those within subgraphs included."""
    return [node.output[0] for node in _random(model.graph)]


def seeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every random operator has a seed, which follows from the name of what it makes.

    The model itself if all have one.
    """
    if not unseeded(model):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in list(_random(copy.graph)):
        seed = 1 + zlib.crc32(node.output[0].encode()) % 65_521  # exact in float32
        kind = int if node.op_type == "Dropout" else float  # as its schema has it, unlike those of the others
        node.attribute.append(onnx.helper.make_attribute("seed", kind(seed)))
    return copy


def _random(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if _draws(node) and not any(attribute.name == "seed" for attribute in node.attribute):
            yield node
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            for body in bodies:
                yield from _random(body)


def _draws(node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2]))
