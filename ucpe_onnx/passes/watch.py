"""Look at the draft between the passes: ``--verify-each`` and ``--dump-after``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ucpe_onnx.errors import ModelError
from ucpe_onnx.model.bodies import Unfolding, fold
from ucpe_onnx.model.files import check_model, save_model
from ucpe_onnx.model.offload import copy_model
from ucpe_onnx.passes.infra import Observer, Pass, PassResult

ALL = "all"
"""In place of a name: every pass."""


@dataclass(frozen=True)
class Watch:
    """What to do with the draft after each pass; by default nothing, at no cost.

    Passes that belong together are a step. Within a step the draft need not add up (weights are cut before the
    attributes and declared shapes that depend on them), so its structure is checked: names, types, attributes, order,
    single assignment. At the end of a step shapes are inferred and checked too.

    Attributes:
        verify: run ``onnx.checker``.
        dump_after: names of the passes after which the draft is written, or ``all``.
        dump_beside: the output that the drafts are written beside, see :func:`dump_path`.
    """

    verify: bool = False
    dump_after: frozenset[str] = frozenset()
    dump_beside: Path | None = None

    @property
    def looks(self) -> bool:
        """Whether anything is to be done."""
        return self.verify or bool(self.dump_after)

    def observer(self, step: Sequence[Pass], unfolding: Unfolding, *, last: bool) -> Observer | None:
        """What to call after each pass of a step; None if there is nothing to do.

        Args:
            step: passes that belong together.
            unfolding: how the draft was unfolded; it is looked at with its bodies folded.
            last: whether no step follows.
        """
        if not self.looks:
            return None

        def look(done: Pass, results: Mapping[str, PassResult], unfolded: onnx.ModelProto) -> None:
            draft = unfolded
            if unfolding.bodies:
                draft = copy_model(unfolded, ())
                fold(draft, unfolding)
            if self.dump_beside is not None and self.dump_after & {done.name, ALL}:
                save_model(draft, dump_path(self.dump_beside, done.name))
            if self.verify:
                self._check(draft, step, results, last)

        return look

    def _check(
        self, draft: onnx.ModelProto, step: Sequence[Pass], results: Mapping[str, PassResult], last: bool
    ) -> None:
        """Raise ModelError if the checker refuses the draft, and tell what the passes did that may be to blame."""
        complete, done = len(results) == len(step), step[len(results) - 1]
        where = f"--verify-each: after pass {done.name}"
        if complete and len(step) > 1:
            where += f" (with {', '.join(other.name for other in step[:-1])})"
        subject = draft
        if draft.ir_version < 4 and not (last and complete):  # the last pass declares constants as that version wants
            subject = onnx.ModelProto()
            subject.CopyFrom(draft)
            subject.ir_version = 4
        try:
            check_model(subject, where, shapes=complete)
        except ModelError as error:
            accused = results.items() if complete else [(done.name, results[done.name])]
            did = "; ".join(f"{name} {result}" for name, result in accused)
            raise ModelError(f"{error}; {did}") from error


def dump_path(output: Path, name: str) -> Path:
    """Where the draft after a pass is written: ``out.after-<pass>.onnx`` beside ``out.onnx``."""
    return output.with_name(f"{output.stem}.after-{name}{output.suffix or '.onnx'}")
