"""How a trap is sprung: masks in every lowering, the outputs compared with the masked model's, and something gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tests.builders import Masked, Net, masks_for
from tests.suites.onnx_check import weights
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.make import Settings, make_plan
from ucpe_onnx.runtime.target import Target

PLAIN = Target(blocked=False)
"""Widths are not rounded up, which would keep most of so few channels."""


def check(net: Net, kept: Mapping[str, Sequence[int]], target: Target = PLAIN) -> dict[str, onnx.ModelProto]:
    """Emit with masks given as kept indices, in every lowering; returns the emitted models by lowering."""
    model = net.model()
    traced = trace(model)
    return _check(model, traced, masks_for(traced, kept), target)


def check_halves(model: onnx.ModelProto, seed: int = 0) -> Trace:
    """Emit with random masks that between them drop every prunable channel, in every lowering."""
    traced = trace(model)
    for masks in halves(traced, seed):
        _check(model, traced, masks, PLAIN)
    return traced


def halves(traced: Trace, seed: int) -> Iterator[dict[str, Mask]]:
    """Masks that drop a random half of the slots, then masks that drop the other; every consumer drops a few more."""
    random = np.random.default_rng(seed)
    first = {
        s.id: random.permutation(np.flatnonzero(~s.frozen))[: int((~s.frozen).sum()) // 2] for s in traced.segments
    }
    for other in (False, True):
        masks = {}
        for name, consumer in traced.consumers.items():
            mask = np.isin(consumer.slots, first[consumer.segment]) == other
            mask &= random.random(consumer.channels) < 0.9
            mask |= ~consumer.prunable
            mask[random.integers(consumer.channels)] |= not mask.any()
            masks[name] = mask
        yield masks


UNDIVIDED = ("union", "gather", "slice")
"""Lowerings that leave every layer one node, whose weights can be looked at."""


def width(model: onnx.ModelProto, name: str, axis: int = 0) -> int:
    """Length of an axis of a node's weight."""
    (node,) = [node for node in model.graph.node if node.name == name]
    dims: dict[str, Any] = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return int(dims[node.input[1]][axis])


def _check(
    model: onnx.ModelProto, traced: Trace, masks: Mapping[str, Mask], target: Target
) -> dict[str, onnx.ModelProto]:
    masked = Masked(model, masks)
    found = {}
    for lowering in LOWERING_RULES:
        emitted = emit(model, traced, make_plan(traced, masks, Settings(target=target, lowering=lowering)))
        masked.check(emitted, lowering)
        assert weights(emitted) < weights(model), f"nothing was pruned with {lowering}"
        if lowering in UNDIVIDED:
            found[lowering] = emitted
    return found
