"""Accuracy at equal measured latency: methods without a target are brought to it by the ratio that meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from benchmarks.accuracy_methods import FAILURES, OURS, OURS_CONSTRAINED, Pruner, Row, judged
from benchmarks.accuracy_search import Found, search
from ucpe_onnx.runtime.latency import measure

TOLERANCE = 0.02
"""Share of the target by which a method may miss it."""
MOST_TRIES = 6
RELOADS = 6
INPUT = "input"


@dataclass(frozen=True)
class Method:
    """What to prune with, at the ratio that meets a latency.

    Attributes:
        options: of ``prune``, but for the ratio or target and ``compensate``.
        compensate: whether weights are refitted; how long the model takes does not depend on it.
        targeted: whether ``prune`` is told the latency.
    """

    options: Mapping[str, Any]
    compensate: bool = True
    targeted: bool = False


METHODS: Mapping[str, Method] = {
    OURS: Method({"mode": "auto"}, targeted=True),
    OURS_CONSTRAINED: Method({"mode": "constrained"}, targeted=True),
    "unconstrained L2, compensated": Method({"mode": "unconstrained", "criterion": "l2", "lowering": "auto"}),
    "unconstrained L2 by Gather, compensated": Method(
        {"mode": "unconstrained", "criterion": "l2", "lowering": "gather"}
    ),
    "constrained L2, compensated": Method({"mode": "constrained", "criterion": "l2", "lowering": "auto"}),
    "constrained L2": Method({"mode": "constrained", "criterion": "l2", "lowering": "auto"}, compensate=False),
}
"""Methods at equal latency, by the name in the table."""


def at_equal_latency(pruner: Pruner, target: float, methods: list[str], seconds: float) -> list[Row]:
    """Top-1 of every method near a share of the unpruned latency.

    The models that the searches end with are timed once more, all in turns in one process: that is what rows say.

    Args:
        pruner: the network.
        target: share of the unpruned latency.
        methods: keys of ``METHODS``.
        seconds: to measure each try for; the last measurement takes so long for each of its models.
    """
    models: dict[str, onnx.ModelProto] = {}
    rows = []
    for name in methods:

        def build(name: str = name) -> tuple[onnx.ModelProto, Found | None]:
            models[name], found = build_for(pruner, METHODS[name], target, seconds)
            return models[name], found

        rows.append(judged(pruner, {"section": "latency", "target": target, "method": name}, build))
    timed = timings(pruner, models, seconds * (len(models) + 1))
    return [row | timed.get(row["method"], {}) for row in rows]


def build_for(pruner: Pruner, method: Method, target: float, seconds: float) -> tuple[onnx.ModelProto, Found | None]:
    """A model whose latency is about the target, and how it was found."""
    options = dict(method.options)
    if method.targeted:
        return pruner.pruned(target_latency=target, bench_seconds=seconds, **options), None
    found = ratio_for_latency(pruner, target, seconds, options)
    return pruner.pruned(ratio=found.ratio, compensate=method.compensate, data=method.compensate, **options), found


def ratio_for_latency(pruner: Pruner, target: float, seconds: float, options: Mapping[str, Any]) -> Found:
    """The ratio at which a model takes a share of the unpruned latency."""

    def measured(ratio: float) -> float:
        model = pruner.pruned(ratio=ratio, compensate=False, data=False, **options)
        return timings(pruner, {"output": model}, seconds)["output"]["latency"]

    known = pruner.known.setdefault(("latency", *sorted(options.items())), {0.0: 1.0})
    return search(measured, target, known, tolerance=TOLERANCE * target, tries=MOST_TRIES)


def timings(
    pruner: Pruner,
    models: Mapping[str, onnx.ModelProto],
    seconds: float,
    timer: Callable[..., Any] = measure,
) -> dict[str, Row]:
    """Latency of models over that of the unpruned one, with its interval."""
    if not models:
        return {}
    case = pruner.case
    try:
        report = timer(
            {INPUT: case.model, **models},
            case.feed,
            case.options,
            baseline=INPUT,
            seconds=seconds,
            reloads=RELOADS,
            seed=pruner.seed,
        )
    except FAILURES as error:
        return {name: {"error": " ".join(str(error).split())[:300]} for name in models}
    return {
        name: {"latency": report[name].ratio, "low": report[name].low, "high": report[name].high} for name in models
    }
