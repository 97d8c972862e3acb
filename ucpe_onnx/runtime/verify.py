"""Does the emitted model compute what the reference model computes? Both run on the same feeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ucpe_onnx.errors import DataError, ModelError, VerificationError
from ucpe_onnx.runtime.compare import Difference, compare
from ucpe_onnx.runtime.session import ModelLike, RunOptions, Session, as_session, run


@dataclass(frozen=True)
class OutputCheck:
    """The worst of one output over all feeds.

    Attributes:
        name: name of the output.
        worst: the difference on the feed on which it is worst.
        feed: index of this feed.
    """

    name: str
    worst: Difference
    feed: int


@dataclass(frozen=True)
class Verification:
    """What a comparison of two models found.

    Attributes:
        outputs: one check per output, in graph order.
        feeds: number of feeds that the outputs were compared on.
        chaotic: number of feeds left out because the reference does not reproduce its own outputs on them.
    """

    outputs: tuple[OutputCheck, ...]
    feeds: int
    chaotic: int = 0

    @property
    def passed(self) -> bool:
        """Whether every output is within its bound on every feed."""
        return all(check.worst.passed for check in self.outputs)

    @property
    def worst(self) -> OutputCheck:
        """The output that is furthest from, or nearest to, failing."""
        return max(self.outputs, key=lambda check: check.worst.severity)

    def raise_if_failed(self, where: str) -> None:
        """Fail if some output differs.

        Args:
            where: what to call the emitted model in the message, usually its path.

        Raises:
            VerificationError: names the worst output, its error, the bound and the feed.
        """
        if self.passed:
            return
        check, worst = self.worst, self.worst.worst
        difference, advice = worst.problem, "don't use the emitted model"
        if not difference:
            difference = f"differs by {worst.error:.3g}, more than the bound {worst.bound:.3g},"
            advice += ", or raise --rtol/--atol if an error of that size is harmless"
        raise VerificationError(
            f"{where}: output {check.name!r} {difference} on feed {check.feed};"
            f" the emitted model does not compute what the masked model computes: {advice}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an infinite error, which JSON can't hold, is None and has a problem beside it."""
        outputs = [
            {
                "name": check.name,
                "passed": check.worst.passed,
                "error": None if check.worst.error == inf else check.worst.error,
                "bound": check.worst.bound,
                "problem": check.worst.problem,
                "feed": check.feed,
            }
            for check in self.outputs
        ]
        return {"passed": self.passed, "feeds": self.feeds, "chaotic": self.chaotic, "outputs": outputs}


def verify(
    emitted: ModelLike | Session,
    reference: ModelLike | Session,
    feeds: Iterable[Mapping[str, Any]],
    options: RunOptions | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> Verification:
    """Run two models on the same feeds and compare every output.

    ``compare.compare`` says what passes. A feed on which the emitted model fails is left out if the reference fails
    there too, compared with itself at another optimisation level: rounding alone then decides the outputs, as noise
    does that is fed to a network with a power or a division in it. One feed at least must remain.

    Args:
        emitted: the model in question.
        reference: the model that is right by definition.
        feeds: what to run them on.
        options: how to run them.
        rtol: relative tolerance; 1e-4 if None, 1e-2 for float16.
        atol: absolute tolerance; likewise.

    Raises:
        DataError: there are no feeds.
        ModelError: a model can't be loaded, or the reference can't be run.
        VerificationError: the emitted model has other outputs, or fails on a feed that the reference runs on, or the
            reference reproduces its outputs on no feed.
    """
    reference_session = as_session(reference, options, where="the reference model")
    emitted_session = as_session(emitted, options, where="the emitted model")
    names = [output.name for output in reference_session.get_outputs()]
    emitted_names = [output.name for output in emitted_session.get_outputs()]
    if names != emitted_names:
        raise VerificationError(
            f"the emitted model has the outputs {emitted_names}, the reference model {names};"
            " rewriting must keep their names and order"
        )
    again = _Again(reference, options or RunOptions())
    worst: list[OutputCheck] = []
    count = chaotic = 0
    for count, feed in enumerate(feeds, 1):
        expected = run(reference_session, feed, where=f"the reference model, feed {count - 1}")
        found = _run_emitted(emitted_session, feed, count - 1)
        differences = [compare(a, b, rtol=rtol, atol=atol) for a, b in zip(found, expected, strict=True)]
        if not all(d.passed for d in differences) and not again.reproduces(feed, expected, rtol, atol):
            chaotic += 1
            continue
        checks = [OutputCheck(name, d, count - 1) for name, d in zip(names, differences, strict=True)]
        worst = [
            max(pair, key=lambda check: check.worst.severity) for pair in zip(worst or checks, checks, strict=True)
        ]
    if not count:
        raise DataError("nothing to verify on: there are no feeds; give --data with at least one sample")
    if chaotic == count:
        raise VerificationError(
            "the model does not reproduce its own outputs on random inputs at another optimisation level, so that"
            " nothing can be verified on them; give --data with real samples"
        )
    return Verification(tuple(worst), count - chaotic, chaotic)


@dataclass
class _Again:
    """The reference at another optimisation level, loaded when it is first needed."""

    reference: ModelLike | Session
    options: RunOptions
    session: Session | None = None

    def reproduces(
        self, feed: Mapping[str, Any], expected: Sequence[Any], rtol: float | None, atol: float | None
    ) -> bool:
        """Whether the reference gives the same outputs again; yes for a session, which can't be loaded anew."""
        if isinstance(self.reference, Session):
            return True
        if self.session is None:
            other = "all" if self.options.opt_level == "disable" else "disable"
            self.session = as_session(self.reference, replace(self.options, opt_level=other))
        outputs = run(self.session, feed, where="the reference model")
        return all(compare(a, b, rtol=rtol, atol=atol).passed for a, b in zip(outputs, expected, strict=True))


def _run_emitted(session: Session, feed: Mapping[str, Any], index: int) -> list[Any]:
    try:
        return run(session, feed, where=f"the emitted model, feed {index}")
    except ModelError as error:
        raise VerificationError(f"{error}; the reference model runs on that feed") from error
