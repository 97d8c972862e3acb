"""Everything a user can ask for, checked once, in one frozen value."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ucpe_onnx.errors import UsageError
from ucpe_onnx.passes import PASS_NAMES, Watch
from ucpe_onnx.passes.watch import ALL
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.runtime.session import OPT_LEVELS, RunOptions, resolve_providers
from ucpe_onnx.selection.criteria import CRITERIA
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA

MODES = ("auto", "unconstrained", "constrained")
SCOPES = ("local", "global")
DUMPS = (ALL, *PASS_NAMES)
"""What ``dump_after`` may name."""

_MOST_STEPS = 100

_MOST_THREADS = 1024
"""onnxruntime starts as many as it is told, until the machine gives in."""


@dataclass(frozen=True)
class Options:
    """Options of :func:`ucpe_onnx.prune`; the command line's flags have the same names.

    Attributes:
        ratio: share of each consumer's prunable input channels to remove, in [0, 1).
        criterion: importance of a channel, a key of ``CRITERIA`` or, with ``data``, of ``DATA_CRITERIA``.
        scope: ``local``: the ratio holds for every consumer; ``global``: for the model, by one threshold.
        mode: ``unconstrained``: every consumer keeps what it needs; ``constrained``: consumers of a channel keep it all
            or none; ``auto``: unconstrained, and channels that cost nothing stay; constrained if that alone is faster.
        masks: mask file, or masks by consumer name; replaces ratio, criterion, scope and mode.
        plan: plan file, or plan, to apply again; replaces masks.
        ignore: patterns of consumers that keep everything.
        ratio_for: (pattern, ratio) pairs; the last match counts.
        target_latency: share of the input's measured latency to reach, in (0, 1); replaces ratio, criterion and scope.
        target_macs: share of the input's multiply-accumulates, likewise.
        target_params: share of its parameters, likewise.
        max_accuracy_drop: points of top-1 accuracy, or without labels of agreement with the input, that may be lost on
            held-out samples of ``data``: the smallest latency that keeps to it is searched for.
        steps: choose masks in so many rounds of growing ratio, each with the statistics of the network that the round
            before has left; for criteria from data.
        sensitivity: report how much the outputs mind the loss of channels, segment by segment.
        max_ratio: no consumer loses a larger share of its prunable channels, whatever ranks lowest; None: no limit.
        lowering: how consumers get their channels, a key of ``LOWERING_RULES``.
        data: samples to compensate and verify on, and with labels to report accuracy on; see
            :mod:`ucpe_onnx.samples.dataset`.
        test_data: labelled samples to report accuracy on instead, which nothing is fitted to.
        compensate: refit what is left so that outputs are what they were; None: if there is ``data``. Without data the
            means that batch normalisations tell of dropped channels go into biases.
        save_stats: return what the consumers read on ``data`` with the result; the command line writes it to this file.
        input_shapes: shapes for inputs with dynamic dimensions, by input name.
        providers: onnxruntime's execution providers, in order of preference.
        threads: threads within an operator, 0 for onnxruntime's default.
        opt_level: onnxruntime's graph optimisation level.
        seed: of everything random: inputs, the random criterion, the solver, the bootstrap.
        rtol: relative tolerance of the verification; None for the default (1e-4, float16 1e-2).
        atol: absolute tolerance, likewise.
        measure: choose lowerings by timing whole models that differ in one segment, instead of by prediction alone.
        calibrate: measure how fast onnxruntime's kernels are here, some 20 seconds, if that has not been done before.
        solver_seconds: time limit of the ordering solver, for the whole model.
        bench_seconds: time to measure latency for; 0 skips the measurement.
        allow_slower: if nothing is faster than the input, return the masks in its own layout, should that be fastest.
        verify_each: run ``onnx.checker`` on the draft after every pass.
        dump_after: names of passes after which the draft is written, or ``all``; of two candidates the later one's.
        dump_beside: the path beside which, as ``<name>.after-<pass>.onnx``; the command line's is the output.
    """

    ratio: float = 0.25
    criterion: str = "l2"
    scope: str = "local"
    mode: str = "auto"
    masks: str | os.PathLike[str] | Mapping[str, Any] | None = None
    plan: str | os.PathLike[str] | Plan | None = None
    ignore: tuple[str, ...] = ()
    ratio_for: tuple[tuple[str, float], ...] = ()
    max_ratio: float | None = None
    target_latency: float | None = None
    target_macs: float | None = None
    target_params: float | None = None
    max_accuracy_drop: float | None = None
    steps: int = 1
    sensitivity: bool = False
    lowering: str = "auto"
    data: Any = None
    test_data: Any = None
    compensate: bool | None = None
    save_stats: str | os.PathLike[str] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 0
    opt_level: str = "all"
    seed: int = 0
    rtol: float | None = None
    atol: float | None = None
    measure: bool = False
    calibrate: bool = False
    solver_seconds: float = 10.0
    bench_seconds: float = 3.0
    allow_slower: bool = False
    verify_each: bool = False
    dump_after: tuple[str, ...] = ()
    dump_beside: str | os.PathLike[str] | None = None

    def checked(self) -> Options:
        """Check all values; sequences become tuples and providers get their full names.

        Raises:
            UsageError: a value makes no sense; the message names the flag.
        """
        ratio_for = self.ratio_for.items() if isinstance(self.ratio_for, Mapping) else self.ratio_for
        chosen = replace(
            self,
            ignore=_as_tuple(self.ignore),
            ratio_for=tuple((pattern, ratio) for pattern, ratio in ratio_for),
            providers=resolve_providers(_as_tuple(self.providers)),
            dump_after=_as_tuple(self.dump_after),
        )
        chosen._check_numbers()
        chosen._check_targets()
        chosen._check_names()
        for flag, given in (("--ignore", chosen.ignore), ("--ratio-for", chosen.ratio_for)):
            for other, replacement in (("--masks", self.masks), ("--plan", self.plan)):
                if given and replacement is not None:
                    raise UsageError(f"{flag} and {other} exclude each other: {other} says what every consumer keeps")
        if self.masks is not None and self.plan is not None:
            raise UsageError("--masks and --plan exclude each other: a plan holds its own masks")
        if self.plan is not None and self.compensate:
            raise UsageError("--compensate and --plan exclude each other: a plan holds its own weights")
        if not isinstance(self.steps, Integral) or not 1 <= self.steps <= _MOST_STEPS:
            raise UsageError(f"--steps: {self.steps} is not a whole number from 1 to {_MOST_STEPS}")
        if self.steps > 1 and (self.criterion not in DATA_CRITERIA or self.has_budget):
            raise UsageError("--steps goes with --ratio and a --criterion from data: others don't change on the way")
        if self.sensitivity and self.data is None:
            raise UsageError("--sensitivity needs samples: give them with --data")
        if self.save_stats is not None and self.data is None:
            raise UsageError("--save-stats needs samples: give them with --data")
        if self.criterion in DATA_CRITERIA and self.data is None and self.masks is None and self.plan is None:
            raise UsageError(f"--criterion {self.criterion} needs samples: give them with --data")
        if chosen.dump_after and self.dump_beside is None:
            raise UsageError("--dump-after needs a place to write to: give dump_beside, a path such as 'out.onnx'")
        return chosen

    def _check_numbers(self) -> None:
        for flag, ratio in (("--ratio", self.ratio), *((f"--ratio-for {p}", r) for p, r in self.ratio_for)):
            if not _is_number(ratio) or not 0 <= ratio < 1:
                raise UsageError(f"{flag}: {ratio} is outside of [0, 1); 0.25 removes a quarter of the channels")
        if self.max_ratio is not None and not (_is_number(self.max_ratio) and 0 <= self.max_ratio < 1):
            raise UsageError(f"--max-ratio: {self.max_ratio} is outside of [0, 1); 0.5 leaves every layer half")
        for flag, tolerance in (("--rtol", self.rtol), ("--atol", self.atol)):
            if tolerance is not None and not (_is_number(tolerance) and 0 <= tolerance < math.inf):
                raise UsageError(f"{flag}: {tolerance} is not a tolerance; give a finite number of at least 0")
        if not _is_number(self.solver_seconds) or not self.solver_seconds > 0:
            raise UsageError(f"--solver-seconds: {self.solver_seconds} must be above 0")
        if not _is_number(self.bench_seconds) or not 0 <= self.bench_seconds < math.inf:
            raise UsageError(f"--bench-seconds: {self.bench_seconds} must be at least 0 (0 skips the measurement)")
        for flag, count, limit in (("--seed", self.seed, 2**31), ("--threads", self.threads, _MOST_THREADS + 1)):
            if not isinstance(count, Integral) or not 0 <= count < limit:
                raise UsageError(f"{flag}: {count} is not a whole number from 0 to {limit - 1}")

    def _check_names(self) -> None:
        for flag, name, known in (
            ("--criterion", self.criterion, (*CRITERIA, *DATA_CRITERIA)),
            ("--scope", self.scope, SCOPES),
            ("--mode", self.mode, MODES),
            ("--lowering", self.lowering, tuple(LOWERING_RULES)),
            ("--opt-level", self.opt_level, tuple(OPT_LEVELS)),
            *(("--dump-after", name, DUMPS) for name in self.dump_after),
        ):
            if name not in known:
                raise UsageError(f"{flag}: unknown {name!r}; choose from {', '.join(known)}")

    def budgets(self) -> dict[str, float | None]:
        """The budgets by kind, None for those not asked for."""
        return {"latency": self.target_latency, "macs": self.target_macs, "params": self.target_params}

    @property
    def has_budget(self) -> bool:
        """Whether masks follow from a budget."""
        return self.max_accuracy_drop is not None or any(target is not None for target in self.budgets().values())

    def _check_targets(self) -> None:
        given = {f"--target-{kind}": target for kind, target in self.budgets().items() if target is not None}
        for flag, target in given.items():
            if not _is_number(target) or not 0 < target < 1:
                raise UsageError(f"{flag}: {target} is outside of (0, 1); 0.7 asks for 70 % of the input's")
        drop = self.max_accuracy_drop
        if drop is not None:
            if not _is_number(drop) or not 0 <= drop < 100:
                raise UsageError(f"--max-accuracy-drop: {drop} is no number of points from 0 to 100")
            if self.data is None:
                raise UsageError("--max-accuracy-drop needs samples: give them with --data")
            given["--max-accuracy-drop"] = drop
        if len(given) > 1:
            raise UsageError(f"{' and '.join(list(given)[:2])} exclude each other: give one target")
        for flag, other in (("--masks", self.masks), ("--plan", self.plan)):
            if given and other is not None:
                raise UsageError(f"{next(iter(given))} and {flag} exclude each other: {flag} says what is kept")
        if self.target_latency is not None and not self.bench_seconds:
            raise UsageError("--target-latency needs to measure: give --bench-seconds above 0")

    def run_options(self) -> RunOptions:
        """How onnxruntime is to run models."""
        return RunOptions(self.providers, self.threads, self.opt_level)

    def watch(self) -> Watch:
        """How to look at the draft between the passes."""
        beside = None if self.dump_beside is None else Path(self.dump_beside)
        return Watch(self.verify_each, frozenset(self.dump_after), beside)

    def recorded(self) -> dict[str, Any]:
        """The options as plain values, for plans and reports; objects are named by their type."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        for name in ("data", "test_data"):
            if isinstance(getattr(self, name), (tuple, list, Mapping)):  # samples, maybe thousands
                values[name] = f"<{type(getattr(self, name)).__name__}>"
        return values


def _as_tuple(value: str | Iterable[str]) -> tuple[str, ...]:
    """A lone string is one value, not a sequence of letters."""
    return (value,) if isinstance(value, str) else tuple(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(v, (tuple, list)) for v in value.values()):
        return {str(k): _plain(v) for k, v in value.items()}
    return f"<{type(value).__name__}>"
