"""The table of all operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ucpe_onnx.train.network.call import Operator
from ucpe_onnx.train.network.ops import (
    activations,
    convolution,
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resize,
    shapes,
)

TABLES: tuple[Mapping[str, Operator], ...] = (
    activations.OPERATORS,
    convolution.OPERATORS,
    elementwise.OPERATORS,
    indexing.OPERATORS,
    linear.OPERATORS,
    normalisation.OPERATORS,
    pooling.OPERATORS,
    recurrent.OPERATORS,
    reduction.OPERATORS,
    resize.OPERATORS,
    shapes.OPERATORS,
)


def merged(tables: Iterable[Mapping[str, Operator]]) -> dict[str, Operator]:
    """One table of several.

    Raises:
        ValueError: two tables hold the same operator.
    """
    table: dict[str, Operator] = {}
    for part in tables:
        if twice := table.keys() & part.keys():
            raise ValueError(f"operators in two tables: {', '.join(sorted(twice))}")
        table.update(part)
    return table


OPERATORS = merged(TABLES)
"""What each operator of the standard domain computes, by its name."""
