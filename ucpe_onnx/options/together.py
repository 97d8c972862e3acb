"""Which options go with which others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ucpe_onnx.errors import UsageError
from ucpe_onnx.selection.data_criteria import DATA_CRITERIA

if TYPE_CHECKING:
    from ucpe_onnx.options.options import Options


def check_together(options: Options) -> None:
    """Refuse options that contradict each other, or that need another one.

    Raises:
        UsageError: names both flags.
    """
    _check_replaced(options)
    _check_budget(options)
    _check_samples(options)
    if options.dump_after and options.dump_beside is None:
        raise UsageError("--dump-after needs a place to write to: give dump_beside, a path such as 'out.onnx'")


def _check_replaced(options: Options) -> None:
    """Masks replace what masks are chosen by, and a plan replaces masks."""
    for limit, given in (("--ignore", options.ignore), ("--ratio-for", options.ratio_for)):
        for other, replacement in (("--masks", options.masks), ("--plan", options.plan)):
            if given and replacement is not None:
                raise UsageError(f"{limit} and {other} exclude each other: {other} says what every consumer keeps")
    if options.masks is not None and options.plan is not None:
        raise UsageError("--masks and --plan exclude each other: a plan holds its own masks")
    if options.plan is not None and options.compensate:
        raise UsageError("--compensate and --plan exclude each other: a plan holds its own weights")


def _check_budget(options: Options) -> None:
    given = {f"--target-{kind}": budget for kind, budget in options.budgets().items() if budget is not None}
    if options.max_accuracy_drop is not None:
        if options.data is None:
            raise UsageError("--max-accuracy-drop needs samples: give them with --data")
        given["--max-accuracy-drop"] = options.max_accuracy_drop
    if given and options.ratio is not None:
        raise UsageError(
            f"--ratio and {next(iter(given))} exclude each other: the target decides how much goes; --max-ratio limits"
            " what a layer may lose"
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(list(given)[:2])} exclude each other: give one target")
    for other, replacement in (("--masks", options.masks), ("--plan", options.plan)):
        if given and replacement is not None:
            raise UsageError(f"{next(iter(given))} and {other} exclude each other: {other} says what is kept")
    if options.target_latency is not None and not options.measures:
        raise UsageError("--target-latency needs to measure: give --bench-seconds above 0")


def _check_samples(options: Options) -> None:
    if options.steps > 1 and (options.criterion not in DATA_CRITERIA or options.has_budget):
        raise UsageError("--steps goes with --ratio and a --criterion from data: others don't change on the way")
    for wish, wanted in (("--sensitivity", options.sensitivity), ("--save-stats", options.save_stats is not None)):
        if wanted and options.data is None:
            raise UsageError(f"{wish} needs samples: give them with --data")
    if options.criterion in DATA_CRITERIA and options.data is None and options.masks is None and options.plan is None:
        raise UsageError(f"--criterion {options.criterion} needs samples: give them with --data")
