"""Node names: the key by which listings, mask files and plans know a consumer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operators that read their own output of the step before, through a weight of its own."""


def node_names(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Name every node of a graph uniquely.

    A node without a name, or with one that several nodes bear, is called ``<op_type>_<index in graph order>``;
    should another node already bear that very name, ``_1``, ``_2`` ... is appended.

    Args:
        nodes: the nodes in graph order.

    Returns:
        One unique name per node, in the same order.
    """
    borne = Counter(node.name for node in nodes)
    unique = {name for name, count in borne.items() if name and count == 1}
    taken = set(unique)
    names = []
    for index, node in enumerate(nodes):
        if node.name in unique:
            names.append(node.name)
            continue
        names.append(fresh_name(f"{node.op_type}_{index}", taken))
    return names


def recurrence_names(nodes: Sequence[onnx.NodeProto]) -> dict[int, str]:
    """Name the recurrence of every recurrent layer: a consumer of its own, beside the layer that reads an input.

    It is called ``<node>/recurrence``; should a node already bear that very name, ``_1``, ``_2`` ... is appended.

    Args:
        nodes: the nodes in graph order.

    Returns:
        By the index of each LSTM, GRU and RNN the name of its recurrence.
    """
    names = node_names(nodes)
    taken = set(names)
    return {
        index: fresh_name(f"{name}/recurrence", taken)
        for index, (node, name) in enumerate(zip(nodes, names, strict=True))
        if node.op_type in RECURRENT and node.domain in ("", "ai.onnx")
    }


def fresh_name(stem: str, taken: set[str]) -> str:
    """Return ``stem``, or ``stem_1``, ``stem_2`` ..., whichever is not taken yet, and take it."""
    name, suffix = stem, 0
    while name in taken:
        suffix += 1
        name = f"{stem}_{suffix}"
    taken.add(name)
    return name


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor name in a graph and its subgraphs: those that a new tensor must not take."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer)}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names |= {*node.input, *node.output}
        for attribute in node.attribute:
            bodies = (attribute.g,) if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for body in bodies:
                names |= tensor_names(body)
    return names
