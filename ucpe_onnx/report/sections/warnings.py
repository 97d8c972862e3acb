"""What a user should know before deploying the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ucpe_onnx.planning.precision import precision_of
from ucpe_onnx.report.html_text import listed, plural, sentence
from ucpe_onnx.report.sections.budget import UNITS
from ucpe_onnx.report.sections.section import Section

if TYPE_CHECKING:
    from ucpe_onnx.report.report import Report
    from ucpe_onnx.run.context import Run
    from ucpe_onnx.run.trials import Outcome

_FLAG, _CODE = re.compile(r"--[a-z-]+"), r"<code>\g<0></code>"

_GROWN, _NAMES = 1.001, 4096
"""Factor, and bytes, above which a file counts as larger: names and shapes alone may add a little."""

_USELESS = 0.5
"""Share of the saved work that should have become saved time, or it is worth a warning."""


@dataclass(frozen=True)
class Warnings(Section):
    """Sentences without a full stop, each of which says what may go wrong and what to do.

    Attributes:
        texts: the warnings.
    """

    texts: tuple[str, ...]

    absent: ClassVar = {"warnings": []}

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Warnings | None:
        """What there is to warn of; little if no channel was removed."""
        checks = [_mended, _few_samples]
        if outcome.trial.plan.masks():
            checks += [_unseen_accuracy, _quantised, _grown, _no_time_saved]
        texts = tuple(text for check in checks if (text := check(run, outcome)))
        return cls(texts) if texts else None

    def entries(self) -> dict[str, Any]:
        """Plain values by key."""
        return {"warnings": list(self.texts)}

    def lines(self, report: Report) -> Iterator[str]:
        """A line each."""
        for text in self.texts:
            yield f"warning: {text}"

    def html(self, report: Report) -> str:
        """A list."""
        items = "".join(f"<li>{_FLAG.sub(_CODE, sentence(text))}.</li>" for text in self.texts)
        return f'<div class="card warnings"><h3 class="warn">Before you deploy it</h3><ul>{items}</ul></div>'


def _mended(run: Run, outcome: Outcome) -> str:
    mending = run.source.mending
    if mending is None:
        return ""
    return f"{mending.problem}; onnxruntime runs it, and what it declares is written as it was"


def _unseen_accuracy(run: Run, outcome: Outcome) -> str:
    if run.accuracy is not None or outcome.candidate.mode == "plan":
        return ""
    if run.feeds.test is not None:
        return "accuracy was not looked at, since the samples have no labels: give labelled ones with --test-data"
    advice = "give labelled samples with --test-data"
    if run.feeds.dataset is None and outcome.candidate.mode != "masks":
        advice = "give samples with --data, to which weights are refitted, and labelled ones with --test-data"
    return f"accuracy was not looked at, and may be lost: {advice}"


def _quantised(run: Run, outcome: Outcome) -> str:
    if precision_of(run.traced) != "int8":
        return ""
    return (
        "the model is quantised, and what is ranked or refitted in 8 bits is coarse: prune the float model, and"
        " quantise the result"
    )


def _few_samples(run: Run, outcome: Outcome) -> str:
    budget, asked = outcome.candidate.budget, run.options.max_accuracy_drop
    if budget is None or asked is None or not budget.held_out or 100 / budget.held_out <= asked:
        return ""
    return (
        f"the {plural(budget.held_out, 'sample')} held out tell accuracy in steps of {100 / budget.held_out:.2g}"
        f" points, coarser than the {asked:g} that may be lost: give more --data"
    )


def _grown(run: Run, outcome: Outcome) -> str:
    before, after = outcome.before.bytes, outcome.after.bytes
    if after <= max(_GROWN * before, before + _NAMES):
        return ""
    grown = f"the file is {after / before - 1:.1%} larger than the input"
    if outcome.after.parameters < outcome.before.parameters:
        return f"{grown}: of so small a network the nodes that were added weigh more than the weights that went"
    known = {tensor.name for tensor in run.source.model.graph.initializer}
    added = [tensor.name for tensor in outcome.trial.emitted.graph.initializer if tensor.name not in known]
    why = f", {listed(added[:3])} among what was added" if added else ""
    return (
        f"{grown}: layers that need different channels of a weight or of a feature map got their own{why}; --mode"
        " constrained keeps them shared"
    )


def _no_time_saved(run: Run, outcome: Outcome) -> str:
    budget, speed = outcome.candidate.budget, outcome.speed
    if budget is None or budget.kind == "latency" or speed is None or not speed.trusted:
        return ""
    if 1 - speed.ratio >= _USELESS * (1 - budget.reached):
        return ""
    return (
        f"x{budget.reached:.2f} of the {UNITS[budget.kind]}, but x{speed.ratio:.2f} of the time: --target-latency"
        " chooses by what time is saved here"
    )
