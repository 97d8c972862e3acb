"""Apply a plan: the passes in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import onnx

from ucpe_onnx.analysis.trace import Trace
from ucpe_onnx.model.bodies import fold, unfold
from ucpe_onnx.model.offload import copy_model
from ucpe_onnx.passes.adapt_nodes import AdaptNodes
from ucpe_onnx.passes.declare_constants import DeclareConstants
from ucpe_onnx.passes.fix_lengths import FixLengths
from ucpe_onnx.passes.infra import Emission, Pass, run_passes
from ucpe_onnx.passes.name_nodes import NameNodes
from ucpe_onnx.passes.prune_weights import PruneWeights
from ucpe_onnx.passes.refresh_shapes import RefreshShapes
from ucpe_onnx.passes.remove_orphans import RemoveOrphans
from ucpe_onnx.passes.route_channels import RouteChannels
from ucpe_onnx.passes.views import Views
from ucpe_onnx.passes.watch import Watch
from ucpe_onnx.plan import Plan


@dataclass(frozen=True)
class Work:
    """What the passes of one emission are made of; what several of them need is worked out once.

    Attributes:
        emission: trace, plan and layouts.
    """

    emission: Emission

    @cached_property
    def views(self) -> Views:
        """Which parts of which tensors are made."""
        return Views(self.emission)

    @cached_property
    def weights(self) -> PruneWeights:
        """The pass that replaces weights, which others ask for their names."""
        return PruneWeights(self.views)


STEPS: tuple[tuple[tuple[type[Pass], Callable[[Work], Pass]], ...], ...] = (
    ((NameNodes, lambda work: NameNodes()),),
    (
        (PruneWeights, lambda work: work.weights),
        (AdaptNodes, lambda work: AdaptNodes(work.views)),
        (RouteChannels, lambda work: RouteChannels(work.views, work.weights.replaced)),
        (FixLengths, lambda work: FixLengths(work.emission)),
        (RefreshShapes, lambda work: RefreshShapes(work.emission)),
    ),
    ((RemoveOrphans, lambda work: RemoveOrphans(work.emission)),),
    ((DeclareConstants, lambda work: DeclareConstants()),),
)
"""The passes that emit a model, in order, step by step, and how each is made.

After each step, though not within it, the draft is a valid model. The passes up to AdaptNodes address nodes by their
index in the input graph, which inserted nodes change; the others by their names.
"""

PASS_NAMES = tuple(kind.name for step in STEPS for kind, _ in step)
"""The passes in their order, for those who have no emission yet."""


def emission_steps(emission: Emission) -> tuple[tuple[Pass, ...], ...]:
    """The passes that emit a model, see :data:`STEPS`."""
    return _made(Work(emission))


def _made(work: Work) -> tuple[tuple[Pass, ...], ...]:
    return tuple(tuple(make(work) for _, make in step) for step in STEPS)


def emission_passes(emission: Emission) -> tuple[Pass, ...]:
    """All passes, in order."""
    return tuple(one for step in emission_steps(emission) for one in step)


def emit(model: onnx.ModelProto, trace: Trace, plan: Plan, watch: Watch | None = None) -> onnx.ModelProto:
    """Write the model that a plan describes.

    The model proto itself is copied and edited, field by field: what the passes don't know (metadata, functions, custom
    domains, sparse initializers, quantisation annotations ...) they can't lose. The copy leaves out the weights that
    are going to be replaced, unless somebody watches.

    Args:
        model: the model that was traced; not changed.
        trace: its analysis.
        plan: the decisions.
        watch: how to look at the draft between the passes.

    Returns:
        The emitted model.

    Raises:
        ModelError: the watch found that a pass broke the draft.
    """
    watch = watch or Watch()
    work = Work(Emission(trace, plan))
    steps = _made(work)
    watched, replaced = watch.verify or watch.dump_after, work.weights.replaced
    unfolding = unfold(model)
    stored = unfolding.model.graph.initializer
    hollow = [] if watched else [i for i, tensor in enumerate(stored) if tensor.name in replaced]
    draft = copy_model(unfolding.model, hollow)
    for step in steps:
        run_passes(draft, step, watch.observer(step, unfolding, last=step is steps[-1]))
    fold(draft, unfolding)
    return draft
