"""Everything a user can ask for, declared and checked once, in one frozen value."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ucpe_onnx.flags import Range, check_values, documented, flag, plain, python_only, whole
from ucpe_onnx.options.together import check_together
from ucpe_onnx.passes import PASS_NAMES, Watch
from ucpe_onnx.passes.watch import ALL
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.lower import LOWERING_RULES
from ucpe_onnx.runtime.random_feeds import parse_input_shapes
from ucpe_onnx.runtime.session import OPT_LEVELS, RunOptions, resolve_providers
from ucpe_onnx.selection.criteria import CRITERIA
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA

MODES = ("auto", "unconstrained", "constrained")
SCOPES = ("local", "global")
DUMPS = (ALL, *PASS_NAMES)
"""What ``dump_after`` may name."""

CHOICE = "what to prune"
BUDGETS = "how much in all: instead of a ratio, one of"
LIMITS = "how much, layer by layer"
SAMPLES = "samples"
LAYOUT = "how to lay it out"
CHECKS = "what to check it with"
DEFECTS = "to find a defect of ours"

_RATIO = Range("is outside of [0, 1); 0.25 removes a quarter of the channels", least=0, below=1)
_BUDGET = Range("is outside of (0, 1); 0.7 asks for 70 % of the input's", above=0, below=1)
_TOLERANCE = Range("is not a tolerance; give a finite number of at least 0", least=0, below=math.inf)

_DEFAULT_RATIO = 0.25

_BENCH_SECONDS, _MOST_BENCH_SECONDS = 3.0, 60.0
"""To measure latency for by default, and at most if runs are slow."""

_OVER = 1.8
"""A measurement may take so many times the seconds that were asked for."""

_MOST_THREADS = 1024
"""onnxruntime starts as many as it is told, until the machine gives in."""


def _pattern_ratio(text: str) -> tuple[str, float]:
    pattern, _, ratio = text.rpartition("=")
    if not pattern:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=RATIO")
    try:
        return pattern, float(ratio)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{ratio!r} is not a ratio") from None


@documented
@dataclass(frozen=True)
class Options:
    """Options of :func:`ucpe_onnx.prune`; the command line's flags have the same names.

    What a field means is said where it is declared. Plans and reports record the fields in this order.
    """

    ratio: float | None = flag(
        None,
        CHOICE,
        f"share of each consumer's input channels to remove, 0 <= R < 1 (default {_DEFAULT_RATIO})",
        more="None: the default, unless there is a target, a mask file or a plan",
        type=float,
        metavar="R",
        valid=_RATIO,
    )
    criterion: str = flag(
        "l2",
        CHOICE,
        f"importance of a channel, from weights or, with --data, from samples ({', '.join(DATA_CRITERIA)};"
        " default %(default)s)",
        choices=(*CRITERIA, *DATA_CRITERIA),
    )
    scope: str = flag(
        "local",
        CHOICE,
        "the ratio holds for each consumer, or for the model as a whole (default %(default)s)",
        more="global is one threshold for all consumers",
        choices=SCOPES,
    )
    mode: str = flag(
        "auto",
        CHOICE,
        "unconstrained: every consumer keeps what it needs; constrained: consumers of a channel keep"
        " it all or none; auto: unconstrained, and what costs nothing stays (default %(default)s)",
        more="auto takes constrained if that alone is faster",
        choices=MODES,
    )
    masks: str | os.PathLike[str] | Mapping[str, Any] | None = flag(
        None,
        CHOICE,
        "take masks from an .npz or .json file instead",
        more="in Python also masks by consumer name; they replace ratio, criterion, scope and mode",
        type=Path,
        metavar="FILE",
    )
    plan: str | os.PathLike[str] | Plan | None = flag(
        None,
        CHOICE,
        "apply a plan that --save-plan wrote",
        more="in Python also a plan; it replaces masks",
        type=Path,
        metavar="FILE",
    )
    ignore: tuple[str, ...] = flag(
        (),
        LIMITS,
        "consumers that keep everything, by name (wildcards; may be repeated)",
        action="append",
        metavar="PATTERN",
    )
    ratio_for: tuple[tuple[str, float], ...] = flag(
        (),
        LIMITS,
        "another ratio for some consumers (may be repeated, the last match counts)",
        more="pairs of a pattern and a ratio, or ratios by pattern",
        action="append",
        type=_pattern_ratio,
        metavar="PATTERN=R",
    )
    max_ratio: float | None = flag(
        None,
        LIMITS,
        "no consumer loses a larger share, also with --scope global or a target",
        more="None: no limit",
        type=float,
        metavar="R",
        valid=Range("is outside of [0, 1); 0.5 leaves every layer half", least=0, below=1),
    )
    target_latency: float | None = flag(
        None,
        BUDGETS,
        "share of the input's latency as measured here, e.g. 0.7",
        more="it replaces ratio, criterion and scope",
        type=float,
        metavar="F",
        valid=_BUDGET,
    )
    target_macs: float | None = flag(
        None, BUDGETS, "share of its multiply-accumulates", more="likewise", type=float, metavar="F", valid=_BUDGET
    )
    target_params: float | None = flag(
        None, BUDGETS, "share of its parameters", more="likewise", type=float, metavar="F", valid=_BUDGET
    )
    max_accuracy_drop: float | None = flag(
        None,
        BUDGETS,
        "points of accuracy (without labels: of agreement with the input) that may be lost on held-out samples of"
        " --data; the smallest latency that keeps to it is searched for",
        more="accuracy is top-1",
        type=float,
        metavar="P",
        valid=Range("is no number of points from 0 to 100", least=0, below=100),
    )
    steps: int = flag(
        1,
        SAMPLES,
        "choose masks in N rounds of growing ratio, each by what the network of the round before reads"
        " (default %(default)s)",
        more="for criteria from data",
        place=1,
        metavar="N",
        valid=whole(1, 100),
    )
    sensitivity: bool = flag(
        False, SAMPLES, "report how sensitive the outputs are to the loss of channels, segment by segment", place=1
    )
    lowering: str = flag(
        "auto",
        LAYOUT,
        "how consumers get their channels (default %(default)s: the cheapest for each)",
        choices=LOWERING_RULES,
    )
    data: Any = flag(
        None,
        SAMPLES,
        ".npz with arrays named like the inputs (and labels), a folder of test_data_set_N, or a"
        " callable that returns feeds",
        more="in Python also the arrays or feeds themselves, see :mod:`ucpe_onnx.samples.dataset`",
        metavar="PATH|MODULE:CALLABLE",
    )
    test_data: Any = flag(
        None,
        SAMPLES,
        "labelled samples to report accuracy on, likewise; nothing is fitted to them (default: those of --data)",
        metavar="PATH|MODULE:CALLABLE",
    )
    compensate: bool | None = flag(
        None,
        SAMPLES,
        "refit the weights that are left so that outputs are what they were (default: if there is --data; without,"
        " batch normalisations tell the means of what goes)",
        more="None: the default",
        place=2,
        action=argparse.BooleanOptionalAction,
    )
    save_stats: str | os.PathLike[str] | None = flag(
        None,
        SAMPLES,
        "write what the consumers read on the samples of --data: means, variances, second moments",
        more="in Python nothing is written: the result has them as ``statistics``",
        place=1,
        type=Path,
        metavar="FILE.npz",
    )
    input_shapes: Mapping[str, tuple[int, ...]] | None = flag(
        None,
        CHECKS,
        "shapes for inputs with dynamic dimensions",
        more="by input name",
        convert=parse_input_shapes,
        nargs="+",
        metavar="NAME:[1,3,224,224]",
    )
    providers: tuple[str, ...] = flag(
        ("CPUExecutionProvider",),
        CHECKS,
        "onnxruntime's execution providers, e.g. cpu or cuda (default cpu)",
        more="in order of preference",
        nargs="+",
        metavar="NAME",
    )
    threads: int = flag(
        0,
        CHECKS,
        "threads within an operator (default: onnxruntime's choice)",
        more="0 is the default",
        metavar="N",
        valid=whole(0, _MOST_THREADS),
    )
    opt_level: str = flag(
        "all", CHECKS, "onnxruntime's graph optimisation level (default %(default)s)", choices=OPT_LEVELS
    )
    seed: int = flag(
        0,
        LAYOUT,
        "seed of everything random (default %(default)s)",
        more="inputs, the random criterion, the solver, the bootstrap",
        place=1,
        valid=whole(0, 2**31 - 1),
    )
    rtol: float | None = flag(
        None,
        CHECKS,
        "relative tolerance of the verification (default 1e-4)",
        more="None: the default, which is 1e-2 for float16",
        type=float,
        valid=_TOLERANCE,
    )
    atol: float | None = flag(
        None, CHECKS, "absolute tolerance of the verification (default 1e-4)", type=float, valid=_TOLERANCE
    )
    measure: bool = flag(
        False, LAYOUT, "choose lowerings by timing candidates on this machine, for ten times the --bench-seconds"
    )
    calibrate: bool = flag(
        False,
        LAYOUT,
        "measure how fast onnxruntime's kernels are here, once, in about 20 seconds, and predict with that",
    )
    solver_seconds: float = flag(
        10.0,
        LAYOUT,
        "time limit for laying out the channels (default %(default)s)",
        more="for the whole model",
        metavar="S",
        valid=Range("must be above 0", above=0),
    )
    bench_seconds: float | None = flag(
        None,
        CHECKS,
        "time to measure latency for, with a latency target for each of up to six looks; 0 skips it (default 3, and of"
        " slow models as long as six rounds take)",
        type=float,
        metavar="S",
        valid=Range("must be at least 0 (0 skips the measurement)", least=0, below=math.inf),
    )
    allow_slower: bool = flag(
        False,
        CHECKS,
        "write the output even if it is not faster",
        more="where the masks are fastest in the input's own layout, that is what is returned",
    )
    verify_each: bool = flag(
        False, DEFECTS, "run onnx.checker after every pass of the rewrite; with shapes where the draft has to add up"
    )
    dump_after: tuple[str, ...] = flag(
        (),
        DEFECTS,
        "write the draft after a pass to out.after-PASS.onnx, even if the run fails (may be repeated):"
        f" {', '.join(PASS_NAMES)}, or all",
        more="of two candidates the later one's draft stays",
        choices=DUMPS,
        action="append",
        metavar="PASS",
    )
    dump_beside: str | os.PathLike[str] | None = python_only(
        None,
        "the path beside which drafts are written, as ``<name>.after-<pass>.onnx``; the command line's is the output",
    )

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
        check_values(chosen)
        for pattern, ratio in chosen.ratio_for:
            _RATIO.check(f"--ratio-for {pattern}", ratio)
        check_together(chosen)
        chooses = not chosen.has_budget and chosen.masks is None and chosen.plan is None
        return replace(chosen, ratio=_DEFAULT_RATIO) if chosen.ratio is None and chooses else chosen

    def budgets(self) -> dict[str, float | None]:
        """The budgets by kind, None for those not asked for."""
        return {"latency": self.target_latency, "macs": self.target_macs, "params": self.target_params}

    @property
    def has_budget(self) -> bool:
        """Whether masks follow from a budget."""
        return self.max_accuracy_drop is not None or any(target is not None for target in self.budgets().values())

    @property
    def measures(self) -> bool:
        """Whether latency is measured."""
        return self.bench_seconds is None or self.bench_seconds > 0

    @property
    def timing_seconds(self) -> float:
        """Seconds that a measurement of latency takes, if models are fast enough for that."""
        return _BENCH_SECONDS if self.bench_seconds is None else self.bench_seconds

    @property
    def timing_limit(self) -> float:
        """Seconds after which a measurement of latency ends with what there is."""
        return _MOST_BENCH_SECONDS if self.bench_seconds is None else _OVER * self.bench_seconds

    def run_options(self) -> RunOptions:
        """How onnxruntime is to run models."""
        return RunOptions(self.providers, self.threads, self.opt_level)

    def watch(self) -> Watch:
        """How to look at the draft between the passes."""
        beside = None if self.dump_beside is None else Path(self.dump_beside)
        return Watch(self.verify_each, frozenset(self.dump_after), beside)

    def recorded(self) -> dict[str, Any]:
        """The options as plain values, for plans and reports; objects are named by their type."""
        values = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        for name in ("data", "test_data"):
            if isinstance(getattr(self, name), (tuple, list, Mapping)):  # samples, maybe thousands
                values[name] = f"<{type(getattr(self, name)).__name__}>"
        return values


def _as_tuple(value: str | Iterable[str]) -> tuple[str, ...]:
    """A lone string is one value, not a sequence of letters."""
    return (value,) if isinstance(value, str) else tuple(value)
