"""The builders that ``benchmarks.lowerings`` compares.

That is what a straightforward exporter makes of a model and its masks, what this compiler makes of them, and what
constrained pruning leaves at as many parameters. A variant is one entry in :data:`VARIANTS`; every lowering that the
compiler knows has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ucpe_onnx import prune
from ucpe_onnx.analysis.counts import model_stats
from ucpe_onnx.analysis.layout import segment_layouts
from ucpe_onnx.analysis.slots import IntArray
from ucpe_onnx.analysis.trace import Consumer, Segment, Trace
from ucpe_onnx.masks import Mask
from ucpe_onnx.passes import emit
from ucpe_onnx.plan import ConsumerPlan, Plan, SegmentPlan
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.planning.widths import emitted_slots
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import Target, target_for
from ucpe_onnx.samples.inputs import Feed
from ucpe_onnx.solve import OrderingProblem, Reader, path_ordering

EXACT = Target(blocked=False)
"""Widths as the masks give them, which is what an exporter emits that knows nothing about kernels."""


CONTEST_SECONDS = 3.0
"""For the command's own measurement, as by default; before the table's, and apart from it."""


@dataclass(frozen=True)
class Case:
    """A model with masks and a way to run it: what every variant is built from.

    Attributes:
        name: what the model is called.
        model: the unpruned model.
        traced: its analysis.
        trace_seconds: time that the analysis took; every builder of ours needs it.
        masks: what each consumer keeps, the same for all variants.
        options: how onnxruntime runs the variants.
        feed: one feed that the model runs on.
        precision: ``float32`` or ``int8``.
        constrained: models that ``onnxsim`` has made of this model already, by their sparsity; filled as it goes.
    """

    name: str
    model: onnx.ModelProto
    traced: Trace
    trace_seconds: float
    masks: Mapping[str, Mask]
    options: RunOptions
    feed: Feed
    precision: str = "float32"
    constrained: dict[float, onnx.ModelProto] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """What widths are rounded for."""
        return target_for(self.options.providers, self.options.opt_level, self.precision)

    def parameters(self, model: onnx.ModelProto) -> int:
        """Parameters of a variant."""
        return model_stats(model, {name: array.shape for name, array in self.feed.items()}).parameters


@dataclass(frozen=True)
class Built:
    """What a variant's builder made.

    Attributes:
        model: the model.
        seconds: compile time, analysis included.
        plan: what was decided, if a plan was made.
        facts: what else is worth a place in the JSON.
    """

    model: onnx.ModelProto
    seconds: float
    plan: Plan | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One column of the table.

    Attributes:
        title: its heading.
        build: makes it.
        masked: it must compute what the masked model computes.
        naive: an exporter that looks for no more than channels that lie side by side.
    """

    title: str
    build: Callable[[Case], Built]
    masked: bool = True
    naive: bool = False


def unpruned(case: Case) -> Built:
    """The model as it is."""
    return Built(case.model, 0.0)


def compiled(case: Case, lowering: str) -> Built:
    """This compiler, masks honoured exactly."""
    result = prune(
        case.model,
        masks=case.masks,
        lowering=lowering,
        providers=case.options.providers,
        threads=case.options.threads,
        opt_level=case.options.opt_level,
        bench_seconds=0,
    )
    took = result.report.seconds
    seconds = sum(took[stage] for stage in ("analyse", "plan", "emit"))
    return Built(result.model, seconds, result.plan, {"stages": {k: took[k] for k in ("analyse", "plan", "emit")}})


def written(case: Case) -> Built:
    """What the command writes with these masks: the fastest that it measured, of the choice and what it has to beat."""
    result = prune(
        case.model,
        masks=case.masks,
        providers=case.options.providers,
        threads=case.options.threads,
        opt_level=case.options.opt_level,
        bench_seconds=CONTEST_SECONDS,
    )
    return Built(result.model, sum(result.report.seconds.values()), result.plan, {"layout": result.report.layout})


def exported(case: Case, *, published_order: bool, aligned: bool) -> Built:
    """A straightforward exporter: producers make the union, each consumer copies what it keeps.

    Args:
        case: what to build from.
        published_order: order channels by UPSCALE's longest paths and slice where that makes them contiguous; else
            leave them in their order and gather.
        aligned: round widths as this compiler does; else emit what the masks give.
    """
    start = time.perf_counter()
    target = case.target if aligned else EXACT
    consumers: dict[str, ConsumerPlan] = {}
    segments = []
    for segment in case.traced.segments:
        emitted = emitted_slots(case.traced, segment, case.masks, target)
        groups = tuple(tuple(slot for slot in group if emitted[slot]) for group in segment.groups)
        if published_order:
            groups = _published(case, segment, groups)
        order = tuple(slot for group in groups for slot in group)
        layouts = segment_layouts(case.traced, segment, order)
        kinds = {}
        for name in segment.consumers:
            consumer = case.traced.consumers[name]
            layout = layouts[consumer.use.tensor_axis]
            kinds[name], consumers[name] = _copying(consumer, layout, case.masks.get(name), target)
        segments.append(SegmentPlan(segment.id, order, groups, kinds))
    plan = Plan("", "", {}, {name: consumers[name] for name in case.traced.consumers}, tuple(segments))
    model = emit(case.model, case.traced, plan)
    return Built(model, case.trace_seconds + time.perf_counter() - start, plan)


def _published(case: Case, segment: Segment, groups: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    fixed = frozenset(i for i, group in enumerate(segment.groups) if segment.frozen[group[0]])
    readers = []
    for name in segment.consumers:
        consumer = case.traced.consumers[name]
        sequence = segment.group_of[consumer.slots]
        runs = sequence[np.flatnonzero(np.diff(sequence, prepend=-1))].tolist()
        if name in case.masks and len(set(runs)) == len(runs):
            kept = frozenset(consumer.slots[case.masks[name]].tolist())
            readers.append(Reader(name, kept, tuple(runs)))
    return path_ordering(OrderingProblem(groups, tuple(readers), fixed)).groups


def _copying(consumer: Consumer, layout: IntArray, mask: Mask | None, target: Target) -> tuple[str, ConsumerPlan]:
    """Slice what is contiguous, gather what is not, read all that is wanted whole or bound to groups."""
    kept = np.ones(consumer.channels, dtype=bool) if mask is None else mask
    places = np.flatnonzero(kept[layout])
    contiguous = bool(places[-1] - places[0] + 1 == places.size)
    multiple = target.read_multiple if consumer.use.node.op_type == "Conv" else 1
    width = places.size if multiple == 1 else target.width(places.size, layout.size, multiple)
    places = _widened(places, width, layout.size, contiguous)
    if places.size == layout.size or consumer.use.groups > 1:
        places, kind = np.arange(layout.size), "direct" if kept[layout].all() else "union"
    else:
        kind = "slice" if contiguous else "gather"
    keep, read, slots = (tuple(a.tolist()) for a in (np.flatnonzero(kept), layout[places], consumer.slots))
    return kind, ConsumerPlan(consumer.channels, keep, read, consumer.segment, slots)


def _widened(places: IntArray, width: int, size: int, contiguous: bool) -> npt.NDArray[np.int64]:
    if contiguous:
        start = min(int(places[0]), size - width)
        return np.arange(start, start + width)
    spare = np.setdiff1d(np.arange(size), places, assume_unique=True)
    return np.sort(np.concatenate([places, spare[: width - places.size]]))


def constrained(case: Case) -> Built:
    """Structured pruning by onnxsim, to the parameters that ours has left (within 1 %, if some sparsity gives that).

    Raises:
        ValueError: it removes nothing.
    """
    import onnxsim  # noqa: PLC0415  # an optional dependency

    wanted = case.parameters(compiled(case, "auto").model)
    start = time.perf_counter()
    if not case.constrained:
        case.constrained[0.0], _ = onnxsim.simplify(case.model)
    plain = case.constrained[0.0]
    quantised = any(node.op_type == "DequantizeLinear" for node in plain.graph.node)
    prune_at = onnxsim.apply_structured_pruning_qdq if quantised else onnxsim.apply_structured_pruning
    simplify_seconds = time.perf_counter() - start
    low, high, best, seconds = 0.0, 0.95, 0.0, 0.0
    for _ in range(10):
        sparsity = (low + high) / 2
        start = time.perf_counter()
        if sparsity not in case.constrained:
            case.constrained[sparsity] = prune_at(plain, sparsity=sparsity)
        seconds = time.perf_counter() - start
        found = case.parameters(case.constrained[sparsity])
        if abs(found - wanted) < abs(case.parameters(case.constrained[best]) - wanted):
            best = sparsity
        if abs(found - wanted) <= 0.01 * wanted:
            break
        low, high = (sparsity, high) if found > wanted else (low, sparsity)
    if best == 0.0:
        raise ValueError("onnxsim removes nothing")
    return Built(case.constrained[best], simplify_seconds + seconds, None, {"sparsity": best, "wanted": wanted})


_EXPORTERS = {
    "naive-gather": Variant("naive gather", partial(exported, published_order=False, aligned=False), naive=True),
    "naive-slice": Variant("naive slice", partial(exported, published_order=True, aligned=False), naive=True),
    "gather": Variant("aligned gather", partial(exported, published_order=False, aligned=True)),
    "slice": Variant("aligned slice", partial(exported, published_order=True, aligned=True)),
}

VARIANTS: Mapping[str, Variant] = {
    "unpruned": Variant("unpruned", unpruned, masked=False),
    **_EXPORTERS,
    **{
        kind: Variant("predicted best" if kind == "auto" else kind, partial(compiled, lowering=kind))
        for kind in LOWERING_RULES
        if kind not in _EXPORTERS
    },
    "written": Variant("ours", written),
    "onnxsim": Variant("onnxsim", constrained, masked=False),
}
"""The columns, by the name that ``--variants`` takes."""
