"""Trials that verify: a segment whose emission does not verify is left alone, and the rest goes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ucpe_onnx.errors import REFUSALS, ModelError, UcpeError, VerificationError
from ucpe_onnx.plan import Plan
from ucpe_onnx.planning.apply import left_alone
from ucpe_onnx.run.context import Run
from ucpe_onnx.run.trials import LeftAlone, Trial, carry_out

if TYPE_CHECKING:
    from ucpe_onnx.run.candidates import Candidate

_MOST = 4
"""Segments that are looked for one by one; with more of them, all that are not known to be right are left alone."""


def verified_trials(run: Run, candidate: Candidate) -> list[Trial]:
    """Carry out the plans of a candidate.

    The first plan is the one that was asked for: what does not verify of it is left alone, in the other plans too, so
    that all have the same masks. Another one that does not verify even so is left out.

    Raises:
        UcpeError: the first plan does not verify even if everything is left alone, or defects are looked for.
    """
    masked = candidate.mode in ("masks", "plan")
    (name, plan), *others = candidate.plans.items()
    trials, refused = [verified_trial(run, name, plan, masked=masked)], {}
    alone = trials[0].alone
    for name, plan in others:
        try:
            same = left_alone(run.traced, plan, [each.segment for each in alone], masked=masked)
            trials.append(replace(carry_out(run, name, same), alone=alone))
        except _survived(run) as error:
            refused[name] = said(run, error)
    return [replace(trial, refused=refused) for trial in trials]


def verified_trial(run: Run, name: str, plan: Plan, *, masked: bool, known: Sequence[LeftAlone] = ()) -> Trial:
    """Carry out a plan; if it does not verify, without the segments that it does not verify with.

    Args:
        run: what stages share.
        name: what to call the trial.
        plan: the decisions.
        masked: whether segments that are left alone keep their masks, as zero weights; else they keep everything.
        known: segments that the plan leaves alone already.

    Raises:
        UcpeError: it does not verify even if everything is left alone; the error is that of the whole plan. Or it does
            not verify, and the user looks for the defect.
    """
    try:
        return replace(carry_out(run, name, plan), alone=tuple(known))
    except _survived(run) as error:
        # Only of what is no clear refusal anybody wants the traceback, which keeps the refused model in memory.
        refusal = error.with_traceback(None) if isinstance(error, UcpeError) else error
    search = _Search(run, name, plan, masked)
    parts = [number for number in range(len(plan.segments)) if search.changes(number)]
    if not parts:
        raise refusal
    try:
        trial = search.trial(parts)
    except REFUSALS:
        raise refusal from None
    alone, trial = search.without_culprits(parts, trial, said(run, refusal))
    segments = run.traced.segments
    found = (LeftAlone(s, segments[s].producers, segments[s].consumers, why) for s, why in sorted(alone.items()))
    return replace(trial, alone=(*known, *found))


@dataclass(frozen=True)
class _Search:
    """Looks for the segments that a plan does not verify with.

    Attributes:
        run: what stages share.
        name: what to call the trial.
        plan: the decisions.
        masked: whether segments that are left alone keep their masks.
    """

    run: Run
    name: str
    plan: Plan
    masked: bool

    def without(self, segments: Collection[int]) -> Plan:
        """The plan with some segments left alone."""
        return left_alone(self.run.traced, self.plan, segments, masked=self.masked)

    def changes(self, segment: int) -> bool:
        """Whether the plan does anything to a segment that is not done to one left alone."""
        return not self.plan.emits_the_same_as(self.without([segment]))

    def trial(self, segments: Collection[int]) -> Trial:
        """Carry the plan out with some segments left alone."""
        return carry_out(self.run, self.name, self.without(segments))

    def without_culprits(self, parts: Sequence[int], trial: Trial, why: str) -> tuple[dict[int, str], Trial]:
        """Leave one segment after the other alone until the rest verifies.

        With the first ``good`` parts, but for those left alone, the plan always verifies, and with the first ``bad``
        it does not: halving what is between finds the next culprit in log2(parts) trials.

        Args:
            parts: the segments that the plan changes.
            trial: the plan with all of them left alone.
            why: what was said of the plan as a whole.

        Returns:
            What was said of each segment that is left alone, and the plan carried out without them.
        """
        alone: dict[int, str] = {}
        good = 0
        while True:
            bad = len(parts)
            while bad - good > 1:
                middle = (good + bad) // 2
                try:
                    trial, good = self.trial([*alone, *parts[middle:]]), middle
                except REFUSALS as error:
                    bad, why = middle, said(self.run, error)
            alone[parts[good]] = why
            good += 1
            if good == len(parts):
                return alone, trial
            if len(alone) == _MOST:
                more = f"not tried, after {_MOST} segments that did not verify"
                return {**alone, **dict.fromkeys(parts[good:], more)}, trial
            try:
                return alone, self.trial(alone)
            except REFUSALS as error:
                why = said(self.run, error)


def _survived(run: Run) -> tuple[type[Exception], ...]:
    """Errors that do not end the job: none for those who look for a defect, whose drafts other trials would replace."""
    return () if run.options.watch().looks else REFUSALS


def said(run: Run, error: Exception) -> str:
    """What an error says of the emitted model, in one line."""
    if isinstance(error, VerificationError):
        text = error.found
    elif isinstance(error, ModelError):
        text = str(error)
    else:
        text = f"internal error ({type(error).__name__}: {error})"
    return " ".join(text.removeprefix(f"{run.source.label}: ").split())
