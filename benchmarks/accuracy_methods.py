"""Ways to prune a network, at a ratio or to a share of its multiply-accumulates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx

from benchmarks.accuracy_cases import Case
from benchmarks.accuracy_search import Found, search
from ucpe_onnx import UcpeError, prune

Row = dict[str, Any]

OURS, OURS_CONSTRAINED = "ours", "ours, constrained"
FAILURES = (UcpeError, ValueError, RuntimeError, ImportError)
"""What becomes an entry of the table instead of ending the benchmark."""

MACS_TOLERANCE = 0.005
"""Share of the unpruned multiply-accumulates by which a method may miss the target."""
MOST_TRIES = 12

CRITERIA = ("l1", "l2", "lamp", "fpgm", "bn", "random", "wanda", "energy", "variance", "hrank", "reconstruction")
FROM_DATA = CRITERIA[6:]


@dataclass(frozen=True, eq=False)
class Pruner:
    """One network with what has been found out about it.

    Attributes:
        case: the network.
        opt_level: onnxruntime's optimisation level that models are laid out for where nothing is timed. Below ``all``
            widths are not rounded to its blocked layout, so that ratios and targets are met exactly.
        seed: of everything random.
        known: values by ratio, for each search; filled as it goes.
    """

    case: Case
    opt_level: str = "extended"
    seed: int = 0
    known: dict[tuple[Any, ...], dict[float, float]] = field(default_factory=dict)

    def pruned(self, *, data: bool = True, **options: Any) -> onnx.ModelProto:
        """Prune with :func:`ucpe_onnx.prune`; nothing is timed unless ``options`` ask for it.

        Args:
            data: whether it gets the calibration samples.
            **options: of ``prune``.
        """
        fixed = {"threads": self.case.threads, "seed": self.seed, "allow_slower": True}
        given = {"data": dict(self.case.calibration)} if data else {}
        return prune(self.case.model, **{"bench_seconds": 0.0, **fixed, **given, **options}).model

    def ratio_for_macs(self, left: float, **options: Any) -> Found:
        """The ratio at which a share of the multiply-accumulates is left; weights don't matter to that."""

        def measured(ratio: float) -> float:
            model = self.pruned(ratio=ratio, data=options["criterion"] in FROM_DATA, compensate=False, **options)
            return self.case.macs_left(model)

        known = self.known.setdefault(("macs", *sorted(options.items())), {0.0: 1.0})
        return search(measured, left, known, tolerance=MACS_TOLERANCE, tries=MOST_TRIES)

    @cached_property
    def simplified(self) -> onnx.ModelProto:
        """The model as onnxsim expects it, with batch normalisations folded."""
        import onnxsim  # noqa: PLC0415  # an optional dependency

        return onnxsim.simplify(self.case.model)[0]

    def onnxsim(self, left: float, *, wanda: bool) -> tuple[onnx.ModelProto, Found]:
        """Structured pruning by onnxsim, at the sparsity that leaves a share of the multiply-accumulates.

        How many channels go does not depend on how they are ranked, so that the search ranks by weights.
        """
        import onnxsim  # noqa: PLC0415  # an optional dependency

        plain = self.simplified

        def measured(sparsity: float) -> float:
            return self.case.macs_left(onnxsim.apply_structured_pruning(plain, sparsity=sparsity))

        known = self.known.setdefault(("onnxsim",), {0.0: self.case.macs_left(plain)})
        found = search(measured, left, known, tolerance=MACS_TOLERANCE, tries=MOST_TRIES)
        if not wanda:
            return onnxsim.apply_structured_pruning(plain, sparsity=found.ratio), found
        feeds = _batches(self.case.calibration)
        return onnxsim.apply_structured_wanda_pruning(plain, feeds, sparsity=found.ratio), found


def _batches(samples: Mapping[str, Any], size: int = 32) -> list[dict[str, Any]]:
    count = len(next(iter(samples.values())))
    return [{name: array[i : i + size] for name, array in samples.items()} for i in range(0, count, size)]


Built = tuple[onnx.ModelProto, Found | None]


def _to_target(mode: str) -> Callable[[Pruner, float], Built]:
    return lambda pruner, left: (pruner.pruned(mode=mode, target_macs=left, opt_level=pruner.opt_level), None)


def _constrained(criterion: str, *, compensate: bool) -> Callable[[Pruner, float], Built]:
    def built(pruner: Pruner, left: float) -> Built:
        options = {"mode": "constrained", "criterion": criterion, "opt_level": pruner.opt_level}
        found = pruner.ratio_for_macs(left, **options)
        return pruner.pruned(ratio=found.ratio, compensate=compensate, **options), found

    return built


TO_MACS: Mapping[str, Callable[[Pruner, float], Built]] = {
    OURS: _to_target("auto"),
    OURS_CONSTRAINED: _to_target("constrained"),
    "constrained L2, compensated": _constrained("l2", compensate=True),
    "constrained reconstruction, compensated": _constrained("reconstruction", compensate=True),
    "constrained L2": _constrained("l2", compensate=False),
    "onnxsim L2": lambda pruner, left: pruner.onnxsim(left, wanda=False),
    "onnxsim Wanda": lambda pruner, left: pruner.onnxsim(left, wanda=True),
}
"""Methods at equal multiply-accumulates, by the name in the table."""


def judged(pruner: Pruner, row: Row, build: Callable[[], Built]) -> Row:
    """Build a model and complete its row: accuracy, what is left, seconds; or the reason why there is none.

    Where a search was needed, ``at`` is the ratio that it ended with, and ``met`` says whether that
    met the target: where widths go in steps, none may.
    """
    case = pruner.case
    row = {"model": case.name, "unpruned": case.unpruned} | row
    start = time.perf_counter()
    try:
        model, found = build()
        built = time.perf_counter()
        row |= {"top1": case.accuracy(model), "agreement": case.agreement(model), "macs": case.macs_left(model)}
    except FAILURES as error:
        return row | {"error": " ".join(str(error).split())[:300]}
    row |= {"parameters": case.weigh(model).parameters / case.stats.parameters, "seconds": built - start}
    return row if found is None else row | {"at": found.ratio, "tries": found.tries, "met": found.met}


def at_equal_ratio(pruner: Pruner, ratio: float, criterion: str) -> list[Row]:
    """Top-1 with every mode, as it is and compensated."""
    rows = []
    for mode in ("unconstrained", "constrained"):
        for compensate in (False, True):
            row = {"section": "ratio", "ratio": ratio, "criterion": criterion, "mode": mode, "compensated": compensate}
            options = {"mode": mode, "criterion": criterion, "opt_level": pruner.opt_level, "compensate": compensate}
            needed = compensate or criterion in FROM_DATA
            rows.append(
                judged(
                    pruner,
                    row,
                    lambda options=options, needed=needed: (pruner.pruned(ratio=ratio, data=needed, **options), None),
                )
            )
    return rows


def at_equal_macs(pruner: Pruner, removed: float, method: str) -> Row:
    """Top-1 of one method with a share of the multiply-accumulates removed."""
    row = {"section": "macs", "target": removed, "method": method}
    return judged(pruner, row, lambda: TO_MACS[method](pruner, 1 - removed))
