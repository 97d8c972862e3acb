"""Small networks that budgets are tried on, and how their choices are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from tests.builders import Array, Net
from ucpe_onnx.activations.collector import collect
from ucpe_onnx.activations.layers import find_layers
from ucpe_onnx.activations.statistics import Statistics
from ucpe_onnx.analysis.trace import Trace, trace
from ucpe_onnx.budget.choices import ChoiceLimits, Reading, SegmentChoices, choices_for
from ucpe_onnx.budget.greedy import Greedy, State
from ucpe_onnx.budget.knapsack import Knapsack
from ucpe_onnx.budget.losses import Losses
from ucpe_onnx.budget.prices import Prices, Time, Work
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.cost import Costs
from ucpe_onnx.planning.rates import default_rates
from ucpe_onnx.runtime.session import RunOptions
from ucpe_onnx.runtime.target import TARGETS
from ucpe_onnx.samples.dataset import Dataset, load_data
from ucpe_onnx.samples.inputs import input_specs

OPTIONS = RunOptions(threads=1)


def residual() -> onnx.ModelProto:
    """A stem that two layers and a skip connection read, and a head."""
    net = Net()
    a = net.op("Relu", net.batch_norm(net.conv(net.input("x", ("N", 3, 6, 6)), 12, 3, name="stem", bias=False)))
    b = net.op("Relu", net.conv(a, 10, 3, name="left"))
    c = net.op("Relu", net.op("Add", net.conv(b, 12, 3, name="right"), a))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", c))
    return net.output(net.gemm(pooled, 4, name="fc")).model()


def joined() -> onnx.ModelProto:
    """Two branches that a Concat joins, of which one is read by itself too."""
    net = Net()
    x = net.input("x", (1, 3, 6, 6))
    a, b = net.conv(x, 8, 3, name="a"), net.conv(x, 6, name="b")
    c = net.conv(net.op("Relu", net.op("Concat", a, b, axis=1)), 6, 3, name="c")
    return net.output(net.conv(c, 4, name="d"), net.conv(b, 4, name="e")).model()


def depthwise() -> onnx.ModelProto:
    """Depthwise convolutions, one of which makes two channels of each; a transposed one at the end."""
    net = Net()
    a = net.depthwise(net.conv(net.input("x", (1, 3, 6, 6)), 8, 3, name="a"))
    b = net.depthwise(net.conv(net.op("Relu", a), 6, name="b"), 2)
    weight = net.weight(net.normal(12, 5, 2, 2))
    c = net.op("ConvTranspose", b, weight, name="up", strides=[2, 2])
    return net.output(net.conv(c, 3, name="c")).model()


def grouped() -> onnx.ModelProto:
    """A convolution in two groups between plain ones."""
    net = Net()
    a = net.op("Relu", net.conv(net.input("x", (1, 4, 6, 6)), 12, 3, name="a"))
    b = net.op("Relu", net.conv(a, 8, 3, groups=2, name="b"))
    return net.output(net.conv(b, 5, name="c")).model()


def products() -> onnx.ModelProto:
    """Gemm and MatMul, one of them on several rows of each sample."""
    net = Net()
    a = net.op("Relu", net.gemm(net.input("x", (2, 7)), 16, name="a", trans_b=False))
    b = net.op("Relu", net.op("MatMul", a, net.weight(net.normal(16, 12)), name="b"))
    rows = net.op("MatMul", net.input("z", (1, 5, 6)), net.weight(net.normal(6, 10)), name="c")
    d = net.op("MatMul", net.op("Relu", rows), net.weight(net.normal(10, 4)), name="d")
    return net.output(net.gemm(b, 3, name="e"), d).model()


def recurrent() -> onnx.ModelProto:
    """A bidirectional LSTM with peepholes, its directions side by side, and a GRU of which the last state is read."""
    net = Net()
    a = net.op("MatMul", net.input("x", (3, 1, 5)), net.weight(net.normal(5, 8)), name="a")
    weights = [net.weight(net.normal(2, *shape)) for shape in ((24, 8), (24, 6), (48,), (18,))]
    y = net.op("LSTM", a, *weights[:3], "", "", "", weights[3], hidden_size=6, direction="bidirectional", name="b")
    y = net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 3, 1, 12)
    weights = [net.weight(net.normal(1, *shape)) for shape in ((15, 12), (15, 5), (30,))]
    _, last = net.ops("GRU", y, *weights, hidden_size=5, name="c", outputs=2)
    return net.output(net.op("MatMul", last, net.weight(net.normal(5, 3)), name="d")).model()


NETS = (residual, joined, depthwise, grouped, products, recurrent)


def by_weights(traced: Trace, **weights: float) -> Losses:
    """Losses without samples."""
    names = [name for name, consumer in traced.consumers.items() if consumer.prunable.any()]
    return Losses(traced, Statistics({}, 0), find_layers(traced.graph), {n: weights.get(n, 1.0) for n in names})


def gathered(model: onnx.ModelProto, x: Array) -> tuple[Trace, Statistics, Dataset]:
    """A model with one input, its analysis and what its consumers read."""
    traced, specs = trace(model), input_specs(model)
    data = load_data({specs[0].name: x}, specs)
    return traced, collect(model, traced, data, OPTIONS), data


def limits(
    mode: str = "auto", most: float | Mapping[str, float] = 0.95, multiple: int = 1, reading: int = 1
) -> ChoiceLimits:
    """ChoiceLimits that are alike for all, or by name."""
    share = (lambda name: most.get(name, 0.95)) if isinstance(most, Mapping) else (lambda name: most)
    return ChoiceLimits(mode, share, lambda segment: multiple, lambda consumer: reading)


def timed(traced: Trace) -> Time:
    """Predicted times by the default rates."""
    target = TARGETS["cpu"]
    return Time(Costs(traced, target, default_rates(target), lambda axis: int(traced.slots.axes[axis].size), {}))


def problem(
    model: onnx.ModelProto, limit: ChoiceLimits | None = None, prices: Prices | None = None, **weights: float
) -> Knapsack:
    """The knapsack of a model, by its weights alone."""
    traced = trace(model)
    losses = by_weights(traced, **weights)
    return Knapsack(traced, choices_for(traced, losses, limit or limits()), prices or Work(traced))


def planned_cost(traced: Trace, plan: Plan, prices: Prices) -> tuple[float, float]:
    """What the model costs as it is, and as planned: by a knapsack with no other choice."""
    choices = []
    for segment, decided in zip(traced.segments, plan.segments, strict=True):
        emitted = np.isin(np.arange(len(segment.classes)), decided.order)
        bases = (np.ones(len(segment.classes), dtype=bool), emitted)
        readings = {}
        for name in segment.consumers:
            consumer = traced.consumers[name]
            read = np.isin(np.arange(consumer.channels), plan.consumers[name].read)
            whole = np.ones(consumer.channels, dtype=bool)
            readings[name] = (Reading(0, whole, consumer.channels, 0.0), Reading(1, read, int(read.sum()), 1.0))
        choices.append(SegmentChoices(segment.id, bases, readings))
    greedy = Greedy(Knapsack(traced, choices, prices))
    states = (State({c.segment: i for c in choices}, {n: i for c in choices for n in c.readings}) for i in range(2))
    before, after = map(greedy.cost, states)
    return before, after


def states(knapsack: Knapsack) -> Iterator[State]:
    """Every combination of bases and ways."""

    def extended(found: State, left: list[SegmentChoices]) -> Iterator[State]:
        if not left:
            yield found
            return
        for base in range(len(left[0].bases)):
            yield from chosen({**found.bases, left[0].segment: base}, found.ways, list(left[0].readings), left)

    def chosen(
        bases: dict[int, int], ways: dict[str, int], names: list[str], left: list[SegmentChoices]
    ) -> Iterator[State]:
        if not names:
            yield from extended(State(bases, ways), left[1:])
            return
        for index, way in enumerate(left[0].readings[names[0]]):
            if way.base == bases[left[0].segment]:
                yield from chosen(bases, {**ways, names[0]: index}, names[1:], left)

    return extended(State(), list(knapsack.choices))


def loss_of(knapsack: Knapsack, state: State) -> float:
    return sum(knapsack.readings[name][index].loss for name, index in state.ways.items())
