"""Weights that several nodes read: where a constant comes from, and which consumers read by the same one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ucpe_onnx.analysis.graph import GraphView
from ucpe_onnx.analysis.structure import Consumer, Trace

_ELEMENTWISE = ("Identity", "Cast")
CARRYING = (*_ELEMENTWISE, "Transpose")
"""Operators that make a constant of another, element by element."""


@dataclass(frozen=True)
class Origin:
    """What a constant is computed from, element by element.

    Attributes:
        name: of the constant that nothing of the kind stands in front of.
        axes: the axis of that one for each of its own axes.
    """

    name: str
    axes: tuple[int, ...]


def origin(graph: GraphView, name: str) -> Origin:
    """Follow a constant upwards through Identity, Cast and Transpose."""
    axes = tuple(range(len(graph.constants.shape(name) or ())))
    while (maker := graph.makers.get(name)) is not None:
        if maker.op_type == "Transpose":
            perm = maker.attributes.get("perm", tuple(reversed(range(len(axes)))))
            axes = tuple(int(perm[axis]) for axis in axes)
        elif maker.op_type not in _ELEMENTWISE:
            break
        name = maker.inputs[0]
    return Origin(name, axes)


def tied_consumers(trace: Trace, names: Iterable[str] | None = None) -> list[tuple[Consumer, ...]]:
    """Consumers by the weight, and its axis, that they read channels by; those alone are families of one.

    One mask for a whole family is one weight in the emitted model. Consumers whose channels fall into slots in other
    ways are not of one family, since what may go together differs.

    Args:
        trace: the analysed model.
        names: the consumers to look at; None: all.

    Returns:
        The families, each in graph order, in the order of their first members.
    """
    families: dict[tuple[object, ...], list[Consumer]] = defaultdict(list)
    for name in trace.consumers if names is None else names:
        consumer = trace.consumers[name]
        source = origin(trace.graph, consumer.use.weight)
        _, first, numbers = np.unique(consumer.slots, return_index=True, return_inverse=True)
        pattern = first[numbers.reshape(-1)].tobytes()
        axis = source.axes[consumer.use.weight_axis]
        families[source.name, axis, consumer.use.groups, consumer.channels, pattern].append(consumer)
    return [tuple(members) for members in families.values()]
