"""Readers of channels that must stay: which of them are predicted to gain if they select some of these channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ucpe_onnx.analysis.structure import Consumer, Trace
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.rates import Rates
from ucpe_onnx.runtime.target import Target

_WORTHWHILE = 0.85
"""Of the time that a consumer takes: a smaller gain may be an error of the prediction."""

_FEWEST = 8
"""A consumer of fewer channels, the colours of an image for one, is never offered a selection of them."""


def selecting_readers(
    trace: Trace, target: Target, rates: Rates, ratio_of: Callable[[Consumer], float]
) -> frozenset[str]:
    """Consumers that had better select from channels that stay than read them all.

    What stands behind a LayerNormalization, say, reads channels that nobody can take away; but a Gather of half of
    them and half of the product may take less time than the product.

    Args:
        trace: the analysed model.
        target: the runtime.
        rates: of its kernels.
        ratio_of: the share of its channels that a consumer is to lose.

    Returns:
        Their names, without those that only read channels that may disappear.
    """
    costs = Costs(trace, target, rates, lambda axis: int(trace.slots.axes[axis].size), {})
    return frozenset(
        name
        for name, consumer in trace.consumers.items()
        if not consumer.prunable.all() and _gains(costs, consumer, ratio_of(consumer))
    )


def _gains(costs: Costs, consumer: Consumer, ratio: float) -> bool:
    tensor, axis = consumer.use.tensor_axis
    kept = consumer.channels - int(ratio * consumer.channels)
    if not isinstance(tensor, str) or consumer.channels < _FEWEST or not 0 < kept < consumer.channels:
        return False
    whole, part = costs.reads_us(consumer, np.array([consumer.channels, kept]))
    return bool(part + costs.selects_us(tensor, axis, consumer.channels, kept) < _WORTHWHILE * whole)
